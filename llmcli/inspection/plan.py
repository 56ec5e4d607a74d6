"""What to change in the run of one prompt: the grammar's entries with their places found. No torch.

Texts become positions of the prompt or ids of other prompts; what the prompt does not hold, and
what contradicts itself, is a UsageError under the entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from unicodedata import category

from llmcli.checkpoint import read_header
from llmcli.config import ModelConfig
from llmcli.errors import IntegrityError, UsageError, shown, shown_path
from llmcli.inspection import grammar
from llmcli.inspection.grammar import Ablation, Entry, Knockout, Place, Steer, Swap

MAKE_AGAIN = "Make it again: see inspect --view steer --save-vector."
QueryKey = tuple[int | None, int | None]  # (query, key); None: every position but the other one


@dataclass(frozen=True, slots=True)
class HiddenKeys:
    """Queries that may not see keys, in some heads of some layers."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    pairs: tuple[QueryKey, ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """What is added to a layer's resid_post, times `strength`: of a file, or made from texts."""

    layer: int
    strength: float
    path: str | None = None
    plus: tuple[int, ...] = ()
    minus: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Transplant:
    """A point's value at `positions` (of one head, if any) taken from the run of other `ids`."""

    point: str
    head: int | None
    positions: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes to the run of one prompt."""

    ablations: tuple[Ablation, ...] = ()
    hidden_keys: tuple[HiddenKeys, ...] = ()
    vectors: tuple[Vector, ...] = ()
    transplants: tuple[Transplant, ...] = ()
    steer_prompt: bool = False
    n_prefix: int = 0  # ids that the tokenizer puts before every text
    reference: tuple[tuple[int, ...], ...] = ()  # what a mean is taken over

    def __bool__(self) -> bool:
        return bool(self.ablations or self.hidden_keys or self.vectors or self.transplants)


@dataclass(frozen=True, slots=True)
class Wishes:
    """The entries as they were read, before any prompt is known."""

    ablations: tuple[Ablation, ...] = ()
    knockouts: tuple[Knockout, ...] = ()
    steers: tuple[Steer, ...] = ()
    swaps: tuple[Swap, ...] = ()
    steer_prompt: bool = False

    def __bool__(self) -> bool:
        return bool(self.ablations or self.knockouts or self.steers or self.swaps)

    @property
    def entries(self) -> list[Entry]:
        """All of them, in the order in which they apply."""
        every: list[Swap | Ablation | Knockout | Steer] = [*self.swaps, *self.ablations]
        return [wish.entry for wish in [*every, *self.knockouts, *self.steers]]

    @property
    def of_mean(self) -> list[Entry]:
        """The entries that need a mean over the prompt, or over a reference."""
        means: list[Ablation | Steer] = [a for a in self.ablations if a.fill == "mean"]
        means += [s for s in self.steers if s.path is None and s.minus is None]
        return [wish.entry for wish in means]

    @property
    def of_places(self) -> list[Entry]:
        """The entries that name places of the prompt, or where it ends."""
        places: list[Swap | Knockout | Steer] = [*self.swaps, *self.knockouts]
        places += [] if self.steer_prompt else self.steers
        return [wish.entry for wish in places]


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a file, before and after it has become ids."""

    line: int  # from 1, as editors count
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """The ids of a prompt, and how texts and ids become each other."""

    ids: Sequence[int]
    encode: Callable[[str], Sequence[int]]  # with what the tokenizer puts before a text
    token_bytes: Callable[[int], bytes]
    n_prefix: int = 0
    reference: tuple[tuple[int, ...], ...] = ()  # what a mean is taken over; empty: the prompt


def read(
    config: ModelConfig,
    ablate: Sequence[str] = (),
    knockout: Sequence[str] = (),
    steer: Sequence[str] = (),
    patch: Sequence[str] = (),
    steer_prompt: bool = False,
) -> Wishes:
    """The entries of all four options. Raises UsageError with a caret."""
    wishes = Wishes(
        tuple(grammar.ablation(text, config) for text in ablate),
        tuple(grammar.knockout(text, config) for text in knockout),
        tuple(grammar.steer(text, config) for text in steer),
        tuple(grammar.swap(text, config) for text in patch),
        steer_prompt,
    )
    for wish in wishes.steers:
        if wish.path is not None:
            vector_name(Path(wish.path), config.n_embd)
    grammar.check(wishes.ablations, wishes.knockouts, wishes.swaps, config)
    if steer_prompt and not steer:
        raise UsageError(
            "--steer-prompt needs --steer.", 'For example: --steer \'" water" - " fire" @ L5 * 1\''
        )
    return wishes


def vector_name(path: Path, n_embd: int) -> str:
    """The name of the one tensor in a vector's file.

    Raises UsageError for another width, IntegrityError where the file is damaged.
    """
    try:
        shapes = {name: info.shape for name, info in read_header(path).items()}
    except IntegrityError as error:
        raise IntegrityError(error.fact, MAKE_AGAIN) from error
    if list(shapes.values()) != [(n_embd,)]:
        told = ", ".join(str(list(shape)) for shape in list(shapes.values())[:4]) or "nothing"
        raise UsageError(
            f"{shown_path(path)} holds {told}; this model is steered by one vector of [{n_embd}].",
            "A vector belongs to the model that it was made with.",
        )
    return next(iter(shapes))


def plan(wishes: Wishes, prompt: Prompt, config: ModelConfig) -> Plan:
    """What the entries mean for one prompt. Raises UsageError where they cannot be."""
    knocked_out = [_hidden_keys(wish, prompt) for wish in wishes.knockouts]
    _refuse_empty_rows(wishes.knockouts, knocked_out)
    transplants = [_transplant(wish, prompt, config) for wish in wishes.swaps]
    _refuse_doubles(wishes.swaps, transplants)
    return Plan(
        wishes.ablations,
        tuple(knocked_out),
        tuple(_vector(wish, prompt, config) for wish in wishes.steers),
        tuple(transplants),
        wishes.steer_prompt,
        prompt.n_prefix,
        prompt.reference or (tuple(prompt.ids),),
    )


def positions(place: Place, entry: Entry, prompt: Prompt) -> tuple[int, ...]:
    """Where `place` is in the prompt; everywhere for `*`."""
    n = len(prompt.ids)
    if place.where is None:
        return tuple(range(n))
    if isinstance(place.where, int):
        if not -n <= place.where < n:
            raise entry.wrong(
                place.at, f"there is no position {place.where}.",
                f"the prompt has {n} tokens: positions go from 0 to {n - 1}",
            )  # fmt: skip
        return (place.where % n,)
    found = _standing(place.where, prompt)
    if not found:
        raise entry.wrong(
            place.at, "the prompt does not hold this text.", "capitals count; whole words only"
        )
    return found


def _standing(text: str, prompt: Prompt) -> tuple[int, ...]:
    """The positions whose tokens share a byte with `text`, wherever it is a word of its own."""
    pieces = [prompt.token_bytes(id) for id in prompt.ids[prompt.n_prefix :]]
    data, owner = b"".join(pieces), []
    for position, piece in enumerate(pieces, prompt.n_prefix):
        owner += [position] * len(piece)
    whole = data.decode("utf-8", "surrogateescape")
    found: set[int] = set()
    for hit in re.finditer(f"(?={re.escape(text)})", whole):
        ends = hit.start(), hit.start() + len(text)
        if any(_in_word(whole[at - 1 : at]) and _in_word(whole[at : at + 1]) for at in ends):
            continue  # it goes on there
        start, end = (len(whole[:at].encode("utf-8", "surrogateescape")) for at in ends)
        found.update(owner[start:end])
    return tuple(sorted(found))


def _in_word(c: str) -> bool:
    """Whether a character, if there is one, is part of a word: also a mark on a letter."""
    return c.isalnum() or c == "_" or category(c or " ").startswith("M")


def _hidden_keys(wish: Knockout, prompt: Prompt) -> HiddenKeys:
    entry, query, key = wish.entry, wish.query, wish.key
    queries = [None] if query.where is None else positions(query, entry, prompt)
    keys = [None] if key.where is None else positions(key, entry, prompt)
    pairs = [(q, k) for q in queries for k in keys if q is None or k is None or k <= q]
    if not pairs:
        raise entry.wrong(key.at, "no position sees what comes after it.", "name an earlier place")
    return HiddenKeys(wish.layers, wish.heads, tuple(pairs))


def _refuse_empty_rows(wishes: Sequence[Knockout], knocked_out: Sequence[HiddenKeys]) -> None:
    """Only a position that may not see itself can be left with nothing to see."""
    for wish, own in zip(wishes, knocked_out, strict=True):
        blind = [q for q, k in own.pairs if q is not None and q == k]
        if not blind:
            continue
        for layer, head in product(own.layers, own.heads):
            pairs = {
                pair
                for hidden_keys in knocked_out
                if layer in hidden_keys.layers and head in hidden_keys.heads
                for pair in hidden_keys.pairs
            }
            for q in blind:
                if all(_blocked(pairs, q, k) for k in range(q)):
                    raise wish.entry.wrong(
                        wish.query.at,
                        f"L{layer}.H{head} at position {q} would have nothing left to see.",
                        "leave it one place, itself at least",
                    )


def _blocked(pairs: Set[QueryKey], query: int, key: int) -> bool:
    return not pairs.isdisjoint(product((None, query), (None, key)))


def _ids(text: str, entry: Entry, at: int, prompt: Prompt, config: ModelConfig) -> tuple[int, ...]:
    ids = tuple(prompt.encode(text))
    if len(ids) > config.n_ctx:
        raise entry.wrong(
            at, f"this text has {len(ids)} tokens.", f"the context holds {config.n_ctx}"
        )
    return ids


def _vector(wish: Steer, prompt: Prompt, config: ModelConfig) -> Vector:
    ids = partial(_ids, entry=wish.entry, at=0, prompt=prompt, config=config)
    if wish.path is not None:
        return Vector(wish.layer, wish.strength, wish.path)
    minus = None if wish.minus is None else ids(wish.minus)
    return Vector(wish.layer, wish.strength, None, ids(wish.plus), minus)


def _transplant(wish: Swap, prompt: Prompt, config: ModelConfig) -> Transplant:
    entry = wish.entry
    where = positions(wish.place, entry, prompt)
    ids = _ids(wish.other, entry, wish.other_at, prompt, config)
    if where[-1] >= len(ids):
        raise entry.wrong(
            wish.other_at,
            f"this prompt has {len(ids)} tokens, so no position {where[-1]}.",
            f"it must have at least {where[-1] + 1}",
        )
    return Transplant(wish.point, wish.head, where, ids)


def _refuse_doubles(wishes: Sequence[Swap], made: Sequence[Transplant]) -> None:
    """Two patches of one place: the later would undo the earlier."""
    for i, later in enumerate(made):
        for wish, earlier in zip(wishes, made[:i], strict=False):
            heads = {later.head, earlier.head}
            if (
                later.point == earlier.point
                and (None in heads or len(heads) == 1)
                and set(later.positions) & set(earlier.positions)
            ):
                raise wishes[i].entry.wrong(
                    0, f"{shown(wish.entry.text)} patches this place too.", "leave one out"
                )
