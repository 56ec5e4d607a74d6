"""Two views of the same kind, number by number: what a change did to each. Imported without torch.

Rows line up by what they are about (a layer, a head, a position, a part, a token), wherever they
stand in their table. What only one of the two has is left out, and so is a number that is about
different things in them, as the probability of a best guess that is another token now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, ClassVar

from llmcli.inspection.values import Token, View

KEYS = ("stage", "after", "layer", "head", "part", "position", "source", "token")
OF_THE_SUM = ("residual", "tolerance", "sum_of_absolutes", "rest")  # how well a view adds up
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
    others = [one for one in changed.about if getattr(changed, one) != getattr(untouched, one)]
    apart = {name for other in others for name in changed.about[other]}
    found = [fact for fact in _facts(changed, untouched) if fact.quantity not in apart]
    for field in fields(changed):
        if field.name in apart:
            continue
        tables = [getattr(view, field.name) for view in (changed, untouched)]
        if all(isinstance(t, tuple) and t and is_dataclass(t[0]) for t in tables):
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


def _facts(changed: View, untouched: View) -> Iterator[Delta]:
    for name, now, before in _numbers(changed, untouched):
        whole = isinstance(now, int) and name != "rank"  # a size
        if not whole and name not in OF_THE_SUM:
            yield Delta("", "", None, name, before, now, now - before)


def _table(table: str, changed: tuple[Any, ...], untouched: tuple[Any, ...]) -> Iterator[Delta]:
    rows, others = _by_key(changed), _by_key(untouched)
    by_size = "part" in _key_names(fields(changed[0]))  # then a rank is only a place in the list
    if len(rows) < len(changed) or len(others) < len(untouched):
        return  # more than one row of one thing: nothing says which is which
    for key, row in rows.items():
        if key not in others:
            continue
        named = dict(key)
        token = named.pop("token", None)
        place = " ".join(f"{name} {value}" for name, value in named.items())
        for name, now, before in _numbers(row, others[key]):
            if by_size and name == "rank":
                continue
            yield Delta(table, place, token, name, before, now, now - before)
        for name, i, now, before in _weights(row, others[key]):
            of_what = "source" if name == "weights" else "number"
            yield Delta(table, f"{place} {of_what} {i}", None, name, before, now, now - before)


def _by_key(rows: tuple[Any, ...]) -> dict[tuple[tuple[str, Any], ...], Any]:
    names = _key_names(fields(rows[0]))
    return {tuple((name, getattr(row, name)) for name in names): row for row in rows}


def _key_names(row_fields: tuple[Field[Any], ...]) -> list[str]:
    """The fields that say what a row is about: those of KEYS that stand before its numbers."""
    floats = [i for i, field in enumerate(row_fields) if "float" in str(field.type)]
    ahead = row_fields[: floats[0]] if floats else row_fields
    return [field.name for field in ahead if field.name in KEYS]


def _numbers(row: Any, other: Any) -> Iterator[tuple[str, float, float]]:
    """The numbers that both have, but those of what differs: `top_prob` where `top` does."""
    names = [field.name for field in fields(row)]
    others = [
        name
        for name in names
        if getattr(row, name) != getattr(other, name)
        and (name in KEYS or not isinstance(getattr(row, name), int | float | tuple))
    ]
    others += ["head"] if "layer" in others else []  # head 2 of another layer is another head
    other_things = tuple(f"{name}_" for name in others)
    for name in names:
        now, before = getattr(row, name), getattr(other, name)
        if name in KEYS or name.startswith(other_things):
            continue
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in (now, before)):
            yield name, now, before


def _weights(row: Any, other: Any) -> Iterator[tuple[str, int, float, float]]:
    """The numbers of a row's lists, by their place in them."""
    for field in fields(row):
        pair = [getattr(one, field.name) for one in (row, other)]
        if all(isinstance(x, tuple) and x and isinstance(x[0], float) for x in pair):
            for i, (now, before) in enumerate(zip(*pair, strict=True)):
                yield field.name, i, now, before
