"""Ids in, Steps out: one prefill, then one decode step per token, none wasted.

Knows ids only; text, stop strings and prompts as words are someone else's. `generate` is a pure
function of its arguments, so that bulk work can be cut into batches and given to anyone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmcli.config import Sampling
from llmcli.errors import IntegrityError, UsageError
from llmcli.gpt.cache import KVCache
from llmcli.gpt.model import GPT, NO_TAP
from llmcli.gpt.sampling import Left, Row, draw, left, seen, uniforms
from llmcli.gpt.step import decode_step
from llmcli.gpt.tap import Tap

FinishReason = Literal["stop", "length"]


class Choice(NamedTuple):
    """One vocabulary entry with its natural-log probability, before and after the filters."""

    id: int
    logprob: float
    drawn_logprob: float  # -inf where the filters cut it


class Facts(NamedTuple):
    """What the model thought when a token was chosen."""

    chosen: Choice
    rank: int  # of the chosen token by `logprob`, from 0
    entropy_bits: float  # of the model's own distribution
    kept: float  # the share of that distribution which the filters leave
    top: tuple[Choice, ...]  # by `logprob`, the most probable first
    drawn_top: tuple[Choice, ...]  # by `drawn_logprob`; what the filters cut is not listed

    def listing(self, k: int) -> Facts:
        """The same with no more than `k` in each list."""
        return self._replace(top=self.top[:k], drawn_top=self.drawn_top[:k])


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one row."""

    row: int
    index: int  # from 0, of the tokens generated
    id: int
    forced: bool
    time_s: float  # since `generate` was called
    finish_reason: FinishReason | None
    known: Facts | None  # None: nobody asked

    def listing(self, k: int) -> Step:
        """The same as it is made where `k` is the `top_probs` of `generate`, if that is less."""
        return replace(self, known=self.facts.listing(k))

    @property
    def facts(self) -> Facts:
        """Raises ValueError where `top_probs` of `generate` was None."""
        if self.known is None:
            raise ValueError("this step was made without its facts")
        return self.known


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    forced: Mapping[int, int] = MappingProxyType({}),
    n_tokens: int | None = None,
    top_probs: int | None = 0,
    use_cache: bool = True,
    tap: Tap = NO_TAP,
    ended: Collection[int] = (),
) -> Iterator[Step]:
    """Continue `prompts` as one batch, each row drawing from its own generator: Steps, by index.

    A row ends at one of `stop_ids`, at `max_new_tokens`, when its context is full, or once the
    caller has put it into `ended`. `forced` gives the id at some indices whatever the draw says;
    ids from `n_tokens` on, the padding of some vocabularies, are never drawn. The facts of a step
    list the `top_probs` most probable tokens; None leaves them out: they take as long as a layer.
    `ended` is read again after each step, so that who listens can end a row while iterating.
    Without `use_cache` every step computes all tokens anew: it takes longer, for the same text, but
    for what bfloat16 and 8 and 4 bits round away.

    Raises UsageError for an empty prompt, one longer than the context, and where a bias forbids
    every id; IntegrityError for logits that are no numbers.
    """
    started = time.perf_counter()
    longest = _check(prompts, model.config.n_ctx)
    # The last token of a full context needs no place in it.
    room = [min(max_new_tokens, model.config.n_ctx + 1 - len(prompt)) for prompt in prompts]
    device = model.device
    running = list(range(len(prompts)))  # which row of the caller's each row of the batch is
    history = [list(prompt) for prompt in prompts]
    finished: set[int] = set()
    next_logits: Callable[[Tensor, KVCache], Tensor] = partial(model, tap=tap, last_only=True)
    for index in range(max(room)):
        if index == 0 or not use_cache:
            now = [history[row] for row in running]
            cache = _new_cache(model, now, capacity=longest + max(room) - 1)
            fed = _left_padded(now)
        if index == 1:
            model.pack()
            if use_cache and tap is NO_TAP:
                next_logits = decode_step(model, max(room))
        logits = next_logits(fed.to(device), cache).select(1, -1).float().cpu()  # (B, V)
        rows = zip(logits.numpy()[:, :n_tokens], running, strict=True)
        kept = [_left(of, history[row], sampling) for of, row in rows]
        _check_logits(logits, kept, n_tokens)
        ids = _draw(kept, sampling, [generators[row] for row in running])
        if index in forced:  # after the draw, so that later steps draw what they would have drawn
            ids = [forced[index]] * len(ids)
        time_s = time.perf_counter() - started
        facts = _facts(logits, kept, ids, top_probs)
        for row, id, known in zip(running, ids, facts, strict=True):
            history[row].append(id)
            last = index + 1 == room[row]
            reason: FinishReason | None = "stop" if id in stop_ids else "length" if last else None
            if reason:
                finished.add(row)
            yield Step(row, index, id, index in forced, time_s, reason, known)
        for place in reversed(range(len(running))):
            if running[place] in finished or running[place] in ended:
                cache.drop(place)  # the last row takes its place
                running[place] = running[-1]
                running.pop()
        if not running:
            return
        fed = torch.from_numpy(np.array([history[row][-1:] for row in running], np.int64))


@torch.inference_mode()
def score(model: GPT, ids: Sequence[int], top_probs: int = 0, tap: Tap = NO_TAP) -> list[Step]:
    """What the model thought of each of `ids` but the first, which nothing predicts: as Steps.

    A step's `index` is the token's position. Raises UsageError as `generate` does.
    """
    _check([ids], model.config.n_ctx)
    if len(ids) == 1:
        return []
    tensor = torch.tensor([ids], device=model.device)
    x = model.stream(tensor[:, :-1], None, tap)  # (1, T - 1, C)
    facts: list[Facts | None] = []
    for start in range(0, len(ids) - 1, 64):  # all logits at once would take V / C times the room
        logits = model.unembed(x[:, start : start + 64], start, tap)[0].float().cpu()
        kept = [left(row, Sampling()) for row in logits.numpy()]
        _check_logits(logits, kept)
        facts += _facts(logits, kept, ids[1 + start :][:64], top_probs)
    return [
        Step(0, position, id, True, 0.0, None, known)
        for position, (id, known) in enumerate(zip(ids[1:], facts, strict=True), start=1)
    ]


def _check(prompts: Sequence[Sequence[int]], n_ctx: int) -> int:
    """The length of the longest prompt."""
    longest = max(len(prompt) for prompt in prompts)
    if longest > n_ctx:
        raise UsageError(
            f"The prompt has {longest} tokens; the model's context holds {n_ctx}.",
            "Shorten it, or let --truncate-prompt left|right do so.",
        )
    if not all(prompts):
        raise UsageError("The prompt is empty, and this model has no token to begin with.")
    return longest


def _left_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """`rows` as one tensor (B, T), the shorter ones filled up at the left with id 0."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])


def _new_cache(model: GPT, rows: Sequence[Sequence[int]], capacity: int) -> KVCache:
    longest = max(len(row) for row in rows)
    pad = torch.tensor([longest - len(row) for row in rows], device=model.device)
    ragged = pad if bool(pad.any()) else None
    return model.new_cache(len(rows), capacity, ragged)


def _left(logits: Row, ids: Sequence[int], sampling: Sampling) -> Left:
    """What the filters leave of `logits` (V,), which follow `ids`."""
    counts = seen(ids, sampling.penalty_window, len(logits)) if sampling.penalises else None
    return left(logits, sampling, counts)


def _check_logits(logits: Tensor, kept: Sequence[Left], n_tokens: int | None = None) -> None:
    """Raises where logits are no numbers, or a bias leaves nothing of a row.

    Those of the first `n_tokens` ids show in what the filters `kept`.
    """
    padding = logits.numpy()[:, n_tokens:] if n_tokens is not None else np.empty(0)
    bad = any(len(row.ids) == 0 or math.isnan(row.logprobs[0]) for row in kept)
    if not bad and padding.max(initial=-math.inf) < math.inf:
        return
    if math.isfinite(logits.max().item()):
        raise UsageError("No token is left to choose from.", "Let --bias forbid fewer of them.")
    raise IntegrityError(
        "The model's logits are not numbers (NaN or infinite).",
        "Its weights are damaged, or too large for this dtype; try --dtype float32.",
    )


def _draw(
    kept: Sequence[Left], sampling: Sampling, generators: Sequence[torch.Generator]
) -> list[int]:
    """An id of what the filters `kept` of each row, from its own generator."""
    if not sampling.temperature:
        return [int(row.ids[0]) for row in kept]  # the only one left
    return [
        int(row.ids[draw(np.exp(row.logprobs), *uniforms(generator, 1))])
        for row, generator in zip(kept, generators, strict=True)
    ]


def _facts(
    logits: Tensor, kept: Sequence[Left], ids: Sequence[int], top_probs: int | None
) -> list[Facts | None]:
    """What there is to know of an id of each row, of what the filters `kept` of `logits` (B, V)."""
    if top_probs is None:
        return [None] * len(ids)
    k = min(top_probs, logits.shape[-1])
    return [_row_facts(*of, k) for of in zip(logits.numpy(), kept, ids, strict=True)]


def _row_facts(logits: Row, kept: Left, id: int, k: int) -> Facts:
    """That of one row (V,)."""
    below = logits - logits.max()
    exponentials = np.exp(below)
    total = exponentials.sum()
    log_total = math.log(total)
    top = _largest(logits, k)
    ids = [id, *top, *kept.ids[_largest(kept.logprobs, k)].tolist()]
    chosen, *tops = map(Choice, ids, (below[ids] - log_total).tolist(), kept.logprobs_of(ids))
    all_kept = len(kept.ids) == len(logits)
    return Facts(
        chosen,
        rank=top.index(id) if id in top else _rank(logits, id),
        entropy_bits=(log_total - float(exponentials.dot(below) / total)) / math.log(2),
        kept=1.0 if all_kept else min(1.0, float(exponentials[kept.ids].sum() / total)),
        top=tuple(tops[: len(top)]),
        drawn_top=tuple(tops[len(top) :]),
    )


def _largest(values: Row, k: int) -> list[int]:
    """Where the `k` largest of `values` are, of equal ones the first; -inf is none of them.

    To look `k` times for the largest is faster than any sorting, up to a `k` of some 20.
    """
    rest, places = values.copy(), list[int]()
    for _ in range(k):
        place = int(rest.argmax())
        if not rest[place] > -math.inf:
            break
        places.append(place)
        rest[place] = -math.inf
    return places


def _rank(logits: Row, id: int) -> int:
    """How many of `logits` (V,) come before that of `id`, equal ones by id."""
    before = np.count_nonzero(logits > logits[id])
    return int(before + np.count_nonzero(logits[:id] == logits[id]))
