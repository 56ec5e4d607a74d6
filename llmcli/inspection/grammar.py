"""The words that say what to change in a forward: ablate, knock out, steer, patch. No torch.

    ablate    L3.H5  L3.H*  L3.attn  L3.mlp  L3.N127  L3  pos_embed     each with :zero or :mean
    knockout  L2.H3: 7 -> 2    L2: "he" -> "Lily"    * -> "Lily"
    steer     " water" - " fire" @ L5 * 1    "text" @ L4 * 2    v.safetensors @ L4 * 2
    patch     L2.resid_mid@5 from "other prompt"    L2.H3@* from "other prompt"

and what to add up, of the tokens' vectors:

    analogy   king - man + woman    "king" - id:464

Texts are quoted, bare numbers are positions, `*` is all; what is negative counts from the end. What
cannot be is a UsageError that shows the entry with a caret under the place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from unicodedata import east_asian_width

from llmcli.config import ModelConfig
from llmcli.errors import UsageError, shown

MAX_STRENGTH = 1e6  # beyond it the stream's square is no number in float32
STREAM_POINTS = ("resid_pre", "norm_1", "attn_out", "resid_mid", "norm_2", "mlp_pre", "mlp_post",
                 "mlp_out", "resid_post")  # fmt: skip
HEAD_POINTS = ("q", "k", "v", "z")
STEM_POINTS = ("embed", "pos_embed")
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
ESCAPES = {"n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it was typed, and the option that it was given to."""

    option: str
    text: str

    def wrong(self, at: int, fact: str, remedy: str) -> UsageError:
        """`fact`, then the entry with a caret under character `at` and what would be right."""
        cells = sum(2 if east_asian_width(c) in "WF" else 1 for c in shown(self.text[:at], 4096))
        caret = f"{' ' * cells}^ {remedy}"
        return UsageError(f"{self.option}: {fact}", f"  {shown(self.text, 4096)}\n  {caret}")


@dataclass(frozen=True, slots=True)
class Ablation:
    """Parts of some layers (or `pos_embed`) replaced by zero or by their mean."""

    entry: Entry
    part: str  # "head", "neuron", "attn", "mlp", "layer", "pos_embed"
    layers: tuple[int, ...]
    indices: tuple[int, ...]  # heads or neurons
    fill: str  # "zero" or "mean"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a prompt: a position, wherever a text stands, or (None) everywhere."""

    where: int | str | None
    at: int  # its column in the entry


@dataclass(frozen=True, slots=True)
class Knockout:
    """`query` may not attend to `key`, in these heads of these layers."""

    entry: Entry
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    query: Place
    key: Place


@dataclass(frozen=True, slots=True)
class Steer:
    """`strength` times a vector added to a layer's resid_post."""

    entry: Entry
    layer: int
    strength: float
    path: str | None  # of a vector; else `plus` and, if it is a difference, `minus`
    plus: str
    minus: str | None


@dataclass(frozen=True, slots=True)
class Swap:
    """A point's value at some positions replaced by what it is in the run of another prompt."""

    entry: Entry
    point: str  # "2.resid_mid"
    head: int | None
    place: Place
    other: str
    other_at: int


@dataclass(frozen=True, slots=True)
class Term:
    """A token to add (sign 1) or to take off (-1); one in quotes is exactly that text."""

    sign: int
    text: str
    quoted: bool


def analogy(text: str, config: ModelConfig) -> tuple[Term, ...]:
    """What `--analogy TEXT` asks for."""
    scan = Scanner(Entry("--analogy", text), config)
    terms, sign = [], scan.take(r"[-+]")
    while True:
        quoted = scan.sees('"')
        what = "a token, as in king - man + woman"
        word = scan.text(what) if quoted else scan.need(r'[^\s"+-]+', what)[0]
        terms.append(Term(-1 if sign and sign[0] == "-" else 1, word, quoted))
        if not (sign := scan.take(r"[-+]")):
            break
    scan.need(r"\Z", "+ or - between two tokens")
    return tuple(terms)


def ablation(text: str, config: ModelConfig) -> Ablation:
    """What `--ablate TEXT` asks for."""
    scan = Scanner(Entry("--ablate", text), config)
    part = "pos_embed"
    layers: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()
    if not scan.take(r"pos_embed"):
        layers = scan.layers("a layer, as in L3.H5, L3.mlp or L3, or pos_embed")
        part, indices = scan.part()
    fill = "zero"
    if scan.take(r":"):
        fill = scan.need(r"zero|mean", "zero or mean")[0]
    scan.end()
    return Ablation(scan.entry, part, layers, indices, fill)


def knockout(text: str, config: ModelConfig) -> Knockout:
    """What `--knockout TEXT` asks for."""
    scan = Scanner(Entry("--knockout", text), config)
    layers, heads = tuple(range(config.n_layer)), tuple(range(config.n_head))
    if scan.sees(r"L"):
        layers = scan.layers("a layer")
        if scan.take(r"\."):
            scan.need(r"H", "a head, as in L2.H3")
            heads = scan.index("head", config.n_head)
        scan.need(r":", "a colon, as in L2.H3: 7 -> 2")
    query = scan.place("who looks: a position, a text in quotes, or *")
    scan.need(r"->", '-> and what must not be seen, as in 7 -> 2 or * -> "Lily"')
    key = scan.place("what must not be seen: a position, a text in quotes, or *")
    scan.end()
    return Knockout(scan.entry, layers, heads, query, key)


def steer(text: str, config: ModelConfig) -> Steer:
    """What `--steer TEXT` asks for."""
    scan = Scanner(Entry("--steer", text), config)
    path, plus, minus = None, "", None
    if file := scan.take(r"[^\"@]+?\.safetensors(?![\w.])"):
        path = os.fsdecode(file[0].encode("utf-8", "surrogateescape"))  # as the system has names
    else:
        plus = scan.text('a text in quotes, "one" - "other", or a .safetensors file')
        if scan.take(r"-"):
            minus = scan.text('the text to take off, as in " water" - " fire"')
    scan.need(r"@", "@ and a layer, as in @ L5 * 1")
    at = scan.at
    layers = scan.layers("a layer, as in L4")
    if len(layers) != 1 or "*" in text[at : scan.at]:
        raise scan.entry.wrong(at, "a vector belongs to one layer.", "name one, as in L4")
    strength = 1.0
    if scan.sees(r"\S"):
        scan.need(r"\*", "* and how strong, as in * 2; without it 1")
        at = scan.at
        number = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
        strength = float(scan.need(number, "a number, as in * 6 or * -2.5")[0])
    if not abs(strength) <= MAX_STRENGTH:
        raise scan.entry.wrong(at, "this is too strong.", f"at most {MAX_STRENGTH:.0f}")
    scan.end()
    return Steer(scan.entry, layers[0], strength, path, plus, minus)


def swap(text: str, config: ModelConfig) -> Swap:
    """What `--patch TEXT` asks for."""
    scan = Scanner(Entry("--patch", text), config)
    head = None
    if stem := scan.take("|".join(STEM_POINTS)):
        point = stem[0]
    else:
        at = scan.at
        layers = scan.layers(f"a point, as in L2.resid_mid, or {' or '.join(STEM_POINTS)}")
        if len(layers) != 1:
            raise scan.entry.wrong(at, "a patch belongs to one layer.", "name one, as in L2")
        scan.need(r"\.", "a point, as in L2.resid_mid, or a head, as in L2.H3")
        if scan.sees(r"H"):
            scan.need(r"H", "a head")
            at = scan.at
            heads = scan.index("head", config.n_head)
            if len(heads) != 1:
                raise scan.entry.wrong(at, "a patch is of one head.", "for all of them: L2.z")
            name, head = "z", heads[0]
        else:
            points = (*STREAM_POINTS, *HEAD_POINTS)
            name = scan.need(rf"({'|'.join(points)})(?!\w)", f"one of {', '.join(points)}, H3")[0]
        point = f"{layers[0]}.{name}"
    scan.need(r"@", "@ and where, as in @5")
    place = scan.place("a position, a text in quotes, or *")
    scan.need(r"from(?!\w)", 'from and another prompt, as in from "Tom had a"')
    other_at = scan.at
    other = scan.text("the other prompt, in quotes")
    scan.end()
    return Swap(scan.entry, point, head, place, other, other_at)


class Scanner:
    """Reads an entry from left to right, white space between its words left out."""

    def __init__(self, entry: Entry, config: ModelConfig) -> None:
        self.entry, self.config, self.at = entry, config, 0
        self._skip()

    def _skip(self) -> None:
        while self.at < len(self.entry.text) and self.entry.text[self.at].isspace():
            self.at += 1

    def sees(self, pattern: str) -> bool:
        return re.compile(pattern).match(self.entry.text, self.at) is not None

    def take(self, pattern: str | re.Pattern[str]) -> re.Match[str] | None:
        """What stands here, if it is this, and go on behind it."""
        found = re.compile(pattern).match(self.entry.text, self.at)
        if found:
            self.at = found.end()
            self._skip()
        return found

    def need(self, pattern: str | re.Pattern[str], what: str) -> re.Match[str]:
        """What stands here; raises UsageError that says `what` should."""
        if found := self.take(pattern):
            return found
        rest = self.entry.text[self.at :]
        fact = f"{shown(rest, 30)!r} is not expected here." if rest else "something is missing."
        raise self.entry.wrong(self.at, fact, what)

    def end(self) -> None:
        self.need(r"\Z", "nothing more")

    def layers(self, what: str) -> tuple[int, ...]:
        """The layers that L3, L-1 or L* names."""
        self.need(r"L(?=[-\d*])", what)
        return self.index("layer", self.config.n_layer)

    def index(self, thing: str, count: int) -> tuple[int, ...]:
        """The one of `count` things that a number names, or all of them."""
        at = self.at
        number = self.need(r"\*|-?\d+", f"a {thing}'s number, or *")[0]
        if number == "*":
            return tuple(range(count))
        value = int(number[:12])
        if not -count <= value < count:
            raise self.entry.wrong(
                at, f"there is no {thing} {number[:12]}.", f"{thing}s go from 0 to {count - 1}"
            )
        return (value % count,)

    def part(self) -> tuple[str, tuple[int, ...]]:
        """The part of a layer, and which heads or neurons of it."""
        if not self.take(r"\."):
            if self.sees("H") or self.sees("N"):
                self.need(r"\.", "a dot before it, as in L3.H5")
            return "layer", ()
        found = self.need(r"(attn|mlp)(?!\w)|H|N", "a part: attn, mlp, H5 (head) or N127 (neuron)")
        if found[0] == "H":
            return "head", self.index("head", self.config.n_head)
        if found[0] == "N":
            return "neuron", self.index("neuron", self.config.mlp_dim)
        return found[0], ()

    def text(self, what: str) -> str:
        """A text in quotes; a backslash takes the next character as it is."""
        at = self.at
        found = self.need(TEXT, what)
        text = re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), found[1], flags=re.DOTALL)
        if not text:
            raise self.entry.wrong(at, "the text is empty.", "write something into the quotes")
        return text

    def place(self, what: str) -> Place:
        at = self.at
        if self.sees('"'):
            return Place(self.text(what), at)
        number = self.need(r"\*|-?\d+", what)[0]
        return Place(None if number == "*" else int(number[:12]), at)


Unit = tuple[int, str, int]  # (layer, "H" or "N", head or neuron); (0, "pos_embed", 0)


def check(
    ablations: Iterable[Ablation],
    knockouts: Iterable[Knockout],
    swaps: Iterable[Swap],
    config: ModelConfig,
) -> None:
    """Refuse what contradicts: of two changes to one thing, the one would undo the other."""
    by: dict[Unit, Entry] = {}
    for change in ablations:
        units = _ablated(change, config)
        if double := next((by[unit] for unit in units if unit in by), None):
            raise change.entry.wrong(
                0,
                f"{double.option} {shown(double.text)} changes the same.",
                "leave one of them out",
            )
        by |= dict.fromkeys(units, change.entry)
    for blocked in knockouts:
        units = [(layer, "H", head) for layer in blocked.layers for head in blocked.heads]
        if all(unit in by for unit in units):
            raise _undone(blocked.entry, by[units[0]])
    for swapped in swaps:
        units = _read_from(swapped, config)
        if units and all(unit in by for unit in units):
            raise _undone(swapped.entry, by[units[0]])


def _undone(entry: Entry, by: Entry) -> UsageError:
    return entry.wrong(0, f"{by.option} {shown(by.text)} would undo this.", "leave one of them out")


def _ablated(change: Ablation, config: ModelConfig) -> list[Unit]:
    """The heads and neurons whose work an ablation replaces."""
    if change.part == "pos_embed":
        return [(0, "pos_embed", 0)]
    units: list[Unit] = []
    for layer in change.layers:
        if change.part in ("head", "attn", "layer"):
            heads = change.indices or range(config.n_head)
            units += [(layer, "H", head) for head in heads]
        if change.part in ("neuron", "mlp", "layer"):
            neurons = change.indices or range(config.mlp_dim)
            units += [(layer, "N", neuron) for neuron in neurons]
    return units


def _read_from(change: Swap, config: ModelConfig) -> list[Unit]:
    """The only heads or neurons through which a point acts; none where it acts by itself."""
    layer, _, point = change.point.rpartition(".")
    if point == "pos_embed":
        return [(0, "pos_embed", 0)]
    if point in (*HEAD_POINTS, "norm_1", "attn_out"):
        heads = range(config.n_head) if change.head is None else [change.head]
        return [(int(layer), "H", head) for head in heads]
    if point in ("norm_2", "mlp_pre", "mlp_post", "mlp_out"):
        return [(int(layer), "N", neuron) for neuron in range(config.mlp_dim)]
    return []
