"""What each place of the clean run recovers: layers x positions, then layers x heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, columns, fit, footnotes, heading, name, skipped
from llmcli.render.heat import on_heat, scale
from llmcli.units import window

if TYPE_CHECKING:
    from llmcli.inspection.patching import Patching

CELL = 5
LINES = 24  # positions of a long prompt
TOKEN = 13


def draw(view: Patching, canvas: Canvas) -> Text:
    out = heading("patching", f"{name(view.token.text)} minus {name(view.versus.text)} after "
                  f"position {view.position}", width=canvas.width)  # fmt: skip
    out.append(
        f"  difference of logits: clean {view.clean_difference:+.3f}, corrupt "
        f"{view.corrupt_difference:+.3f}\n  each cell: how much of the way from corrupt back to "
        "clean, in percent\n\n",
        style="dim",
    )
    layers = sorted({place.layer for place in view.places})
    fits = max(1, (canvas.width - 2 * TOKEN - 8) // CELL)
    shown = window(len(view.prompts), view.position, canvas.rows or LINES)
    values = {(place.layer, place.position): place.recovered for place in view.places}
    for start in range(0, len(layers), fits):
        some = layers[start : start + fits]
        out.append_text(columns(("pos", -5), ("clean", TOKEN), ("corrupt", TOKEN),
                                *((f"L{layer}", 1 - CELL) for layer in some)))  # fmt: skip
        for pair in view.prompts[shown.start : shown.stop]:
            differ = pair.clean.id != pair.corrupt.id
            out.append(f"{pair.position:>5} ", style="cyan")
            for token in (pair.clean, pair.corrupt):
                out.append(fit(name(token.text), TOKEN), style="bold" if differ else "dim")
                out.append(" ")
            _row(out, values, [(layer, pair.position) for layer in some], canvas)
        out.append("\n")
    if left_out := skipped(shown, len(view.prompts)):
        out.append(f"  {left_out}, --rows its size\n", style="dim")
    _heads(out, view, canvas)
    if canvas.color:
        out.append("\n").append_text(scale("recovered: 0", "100"))
    return out.append_text(footnotes(view.notes, canvas.width))


def _heads(out: Text, view: Patching, canvas: Canvas) -> None:
    heads = sorted({row.head for row in view.heads})
    layers = sorted({row.layer for row in view.heads})
    values = {(row.layer, row.head): row.recovered for row in view.heads}
    fits = max(1, (canvas.width - 8) // CELL)
    for start in range(0, len(heads), fits):
        some = heads[start : start + fits]
        out.append_text(columns(("head", -7), *((f"H{head}", 1 - CELL) for head in some)))
        for layer in layers:
            out.append(f"{f'L{layer}':>7} ", style="cyan")
            _row(out, values, [(layer, head) for head in some], canvas)


def _percent(share: float) -> str:
    """In at most four cells, thousands as 12k."""
    number = round(100 * share)
    return f"{number}" if -999 <= number <= 9999 else f"{round(number / 1000)}k"


def _row(
    out: Text,
    values: Mapping[tuple[int, int], float],
    keys: Sequence[tuple[int, int]],
    canvas: Canvas,
) -> None:
    for key in keys:
        share = values[key]
        style = on_heat(share) if canvas.color else ""
        out.append(f"{_percent(share):>{CELL - 1}}", style=style)
        out.append(" ")
    out.rstrip()
    out.append("\n")
