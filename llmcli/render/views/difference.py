"""What a change did to a view's numbers: of each quantity those that moved most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from llmcli.render.drawing import Canvas, columns, fit, footnotes, heading, name, signed_bar
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.difference import Delta, Difference

LINES = 5  # of a quantity, where nobody says
NUMBERS = 38  # cells of a row's numbers
BAR = 5  # cells at least to each side of its bar


def draw(view: Difference, canvas: Canvas) -> Text:
    out = heading("difference", f"of view {view.of}",
                  f"{view.n_moved} of {plural(view.n_numbers, 'number')} moved"
                  if view.n_numbers else "nothing to compare",
                  width=canvas.width)  # fmt: skip
    groups: dict[str, list[Delta]] = {}
    for delta in view.numbers:
        if delta.difference:
            groups.setdefault(delta.quantity if delta.table or delta.place else "", []).append(
                delta
            )
    most = {
        quantity: sorted(deltas, key=lambda delta: -abs(delta.difference))[: canvas.rows or LINES]
        for quantity, deltas in groups.items()
    }
    labels = [_label(delta) for deltas in most.values() for delta in deltas]
    wanted = max(map(cell_len, labels), default=0)
    place = min(44, canvas.width - NUMBERS - 2 * BAR, max(26, wanted))
    half = min(20, (canvas.width - NUMBERS - place) // 2)
    for quantity, deltas in groups.items():
        title = (f"  {quantity or 'the whole'}", place)
        sides = [("less".rjust(half), half), (" more", half)] if quantity else []
        out.append("\n").append_text(
            columns(title, ("untouched", -10), ("changed", -10), ("difference", -11), *sides)
        )
        if not quantity:
            _facts(out, deltas, place)
            continue
        _lines(out, most[quantity], place, half)
        if rest := len(deltas) - len(most[quantity]):
            out.append(f"  {rest} more with --rows\n", style="dim")
    return out.append_text(footnotes(view.notes, canvas.width))


def _facts(out: Text, deltas: Sequence[Delta], place: int) -> None:
    for delta in deltas:
        out.append(fit(f"  {delta.quantity}", place), style="cyan")
        out.append(f" {delta.untouched:10.4g} {delta.changed:10.4g} {delta.difference:+11.4g}\n")


def _label(delta: Delta) -> str:
    token = "" if delta.token is None else f" {name(delta.token.text)}"
    return f"  {delta.place}{token}"


def _lines(out: Text, deltas: Sequence[Delta], place: int, half: int) -> None:
    per_cell = max(abs(delta.difference) for delta in deltas) / half
    for delta in deltas:
        minus, plus = signed_bar(delta.difference / per_cell, half, half)
        style = "green" if delta.difference > 0 else "red"
        out.append(fit(_label(delta), place), style="cyan")
        out.append(f" {delta.untouched:10.4g} {delta.changed:10.4g} {delta.difference:+11.4g} ")
        out.append(minus, style=style).append("│", style="dim").append(f"{plus}\n", style=style)
