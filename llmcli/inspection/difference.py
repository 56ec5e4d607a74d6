"""Two views of the same kind, number by number: what a change did to each. Imported without torch.

Rows line up by what they are about (their `key`: a layer, a head, a position, a part, a token),
wherever they stand in their table. What only one of the two has is left out, and so is a number
that is about different things in them, as the probability of a best guess that is another token.
Of lists by size, what either run has among its largest is to be in both: `Ask.also`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from llmcli.inspection.values import Row, Token, View

PLACES = {  # of rows that are listed by size: where they stand
    ("part",): ("rank", "neuron"),
    ("neuron", "side", "token"): ("rank",),
}
NOTE = "measured: changed minus untouched, for each number that is of the same thing in both runs."


@dataclass(frozen=True, slots=True)
class Delta:
    """One number of a view, untouched and changed."""

    table: str  # "" for a fact of the view itself
    place: str  # what the row is about: "layer 3 head 2"; "" for a fact
    token: Token | None  # the token that the row is about, if any
    quantity: str
    untouched: float
    changed: float
    difference: float


@dataclass(frozen=True, slots=True)
class Difference(View):
    """What a change did to the numbers of one view."""

    name: ClassVar[str] = "difference"

    of: str  # the view
    n_numbers: int
    n_moved: int
    numbers: tuple[Delta, ...]
    notes: tuple[str, ...]


def difference(changed: View, untouched: View) -> Difference:
    """`changed` minus `untouched`, two views of one kind."""
    others, apart = _other_things(changed, untouched)
    found = []
    for name, i, now, before in _numbers(changed, untouched, changed.compared):
        if name not in apart:
            found.append(Delta("", _place({}, name, i), None, name, before, now, now - before))
    for field in fields(changed):
        tables = [getattr(view, field.name) for view in (changed, untouched)]
        if field.name not in apart and all(t and isinstance(t, tuple) for t in tables):
            found += _table(field.name, *tables)
    notes = [NOTE]
    notes += [
        f"Each run has a {other} of its own: what is about it is left out." for other in others
    ]
    if getattr(changed, "token", None) != getattr(untouched, "token", None):
        found = []
        notes.append("The two runs are about different tokens; --token makes them one.")
    moved = sum(delta.difference != 0 for delta in found)
    return Difference(changed.name, len(found), moved, tuple(found), tuple(notes))


def listed(view: View) -> list[frozenset[tuple[Any, ...]]]:
    """What the rows are about of each table that lists the largest only."""
    return [frozenset(row.its for row in getattr(view, table)) for table in view.cut]


def _table(table: str, changed: tuple[Any, ...], untouched: tuple[Any, ...]) -> Iterator[Delta]:
    if not isinstance(changed[0], Row):  # notes, and vectors
        return
    others = {row.its: row for row in untouched}
    for row in changed:
        if (other := others.get(row.its)) is None:
            continue
        named = {name: getattr(row, name) for name in row.key}
        token = named.pop("token", None)
        things, apart = _other_things(row, other)
        left_out = {*row.key, *row.about, *things, *apart, *PLACES.get(row.key, ())}
        quantities = [f.name for f in fields(row) if f.name not in left_out]
        for name, i, now, before in _numbers(row, other, quantities):
            of = token if i is None else None
            yield Delta(table, _place(named, name, i), of, name, before, now, now - before)


def _place(named: dict[str, Any], quantity: str, i: int | None) -> str:
    """What a number is about, in words: "layer 3 head 2", and which of several it is."""
    words = [f"{name} {value}" for name, value in named.items()]
    if i is not None:
        words.append(f"{'source' if quantity == 'weights' else 'number'} {i}")
    return " ".join(words)


def _other_things(one: Row | View, other: Row | View) -> tuple[list[str], set[str]]:
    """What the two have each of its own, and what is about that."""
    others = [name for name in one.about if getattr(one, name) != getattr(other, name)]
    return others, {name for thing in others for name in one.about[thing]}


def _numbers(
    one: Row | View, other: Row | View, names: Iterable[str]
) -> Iterator[tuple[str, int | None, float, float]]:
    """Those of these fields that both have: name, place in a list, here and in the other."""
    for name in names:
        pair = [getattr(each, name) for each in (one, other)]
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in pair):
            yield name, None, *pair
        elif all(isinstance(x, tuple) and x and isinstance(x[0], float) for x in pair):
            for i, (now, before) in enumerate(zip(*pair, strict=True)):
                yield name, i, now, before
