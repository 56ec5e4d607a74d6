"""The map of the position vectors' cosines, and what distance does to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, columns, footnotes, heading, signed_bar
from llmcli.render.heat import half_blocks, scale

if TYPE_CHECKING:
    from llmcli.inspection.positions import Positions

LABEL = 7
BAR = 20  # cells of a cosine of 1, and of -1


def draw(view: Positions, canvas: Canvas) -> Text:
    out = heading("positions", f"{view.n_ctx} learned vectors of {view.n_embd} numbers",
                  "cosines with those before", width=canvas.width)  # fmt: skip
    if canvas.color:
        out.append_text(scale("-1", "1", middle="0"))
    else:
        out.append("  every other row; digits are tenths: 9 is 0.9 or more, · is around 0,\n"
                   "  - below -0.1\n", style="dim")  # fmt: skip
    out.append("\n")
    for part in (_map(view, canvas.color), _distances(view, canvas.width), _nearest(view)):
        out.append_text(part)
    return out.append_text(footnotes(view.notes, canvas.width))


def _map(view: Positions, color: bool) -> Text:
    """Two rows of pixels to a line, or the upper one as digits; its first position before it."""
    out = Text()
    for top in range(0, len(view.stretches), 2):
        row = view.stretches[top]
        out.append(f"{row.start:>{LABEL - 1}} ", style="cyan")
        if color:
            for column in range(top + 2):
                character, style = half_blocks(_pixel(view, top, column),
                                               _pixel(view, top + 1, column))  # fmt: skip
                out.append(character, style=style)
        else:
            out.append("".join(map(_digit, row.cosines)))
        out.append("\n")
    return out.append("\n")


def _pixel(view: Positions, row: int, column: int) -> float | None:
    """A pixel's place on the scale from -1 to 1; None where the map has none."""
    if row >= len(view.stretches) or column > row:
        return None
    return (view.stretches[row].cosines[column] + 1) / 2


def _digit(cosine: float) -> str:
    if cosine < -0.1:
        return "-"
    return "·" if cosine < 0.1 else str(min(9, int(cosine * 10)))


def _distances(view: Positions, width: int) -> Text:
    cells = min(BAR, (width - 45) // 2)
    out = columns(("apart", LABEL - 1), ("mean cosine", -12), ("-1".ljust(cells), cells),
                  ("1".rjust(cells), cells), ("lowest", -8), ("highest", -8))  # fmt: skip
    for row in view.distances:
        minus, plus = signed_bar(row.cosine * cells, cells, cells)
        out.append(f"{row.distance:>{LABEL - 1}} ", style="cyan")
        out.append(f"{row.cosine:12.3f} ")
        out.append(minus, style="red").append("│", style="dim")
        out.append(plus.ljust(cells), style="green")
        out.append(f" {row.lowest:8.3f} {row.highest:8.3f}\n", style="dim")
    return out.append("\n")


def _nearest(view: Positions) -> Text:
    """The positions most like the one asked about, as a table."""
    out = Text().append(f"  most like position {view.position}", style="bold")
    out.append(f"  norm {view.norm:.2f}\n", style="dim")
    out.append_text(columns(("place", LABEL - 1), ("cosine", -12), ("dot", -9)))
    for row in view.nearest:
        out.append(f"{row.position:>{LABEL - 1}} ", style="cyan")
        out.append(f"{row.cosine:12.3f} {row.dot:9.3f}\n")
    return out
