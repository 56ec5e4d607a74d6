"""A sum of two vectors for each token, three lines of numbers; below, how alike the tokens are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, fit, footnotes, heading, name, skipped
from llmcli.render.heat import on_heat, scale
from llmcli.units import plural, window

if TYPE_CHECKING:
    from llmcli.inspection.embed import Embed, EmbedRow

LABEL = 18  # position and token
PART = 10  # "+ position"
NUMBER = 7
CELL = 4  # a cosine in hundredths: " -12"
LINES = 8  # tokens written out where nobody says how many


def room(width: int) -> int:
    """How many tokens the matrix of cosines shows in `width` columns."""
    return max(1, (width - LABEL) // CELL)


def draw(view: Embed, canvas: Canvas) -> Text:
    index = next(i for i, row in enumerate(view.rows) if row.position == view.position)
    out = heading(
        "embed", plural(view.n_tokens, "token"), f"{view.n_embd} numbers each", width=canvas.width
    )
    out.append("\n").append_text(_sums(view, index, canvas))
    out.append("\n").append_text(_matrix(view, index, canvas))
    return out.append_text(footnotes(view.notes, canvas.width))


def _sums(view: Embed, index: int, canvas: Canvas) -> Text:
    shown = window(len(view.rows), index, canvas.rows or LINES)
    fits = (canvas.width - LABEL - PART - NUMBER) // NUMBER
    title = f"{' pos token':{LABEL + PART}}{'norm':>{NUMBER}}   the first numbers\n"
    out = Text().append(title, style="dim")
    for i in shown:
        out.append_text(_sum(view.rows[i], fits))
    return out.append_text(_left_out(view, shown, ", --rows its size"))


def _sum(row: EmbedRow, fits: int) -> Text:
    """Token, position and sum as vectors, one below the other."""
    out = Text().append(f"{row.position:>4} ", style="cyan")
    out.append(fit(name(row.token.text), LABEL - 6) + " ")
    parts = (("  token", row.norm, row.first), ("+ position", row.position_norm,
             row.position_first), ("= sum", row.sum_norm, row.sum_first))  # fmt: skip
    for i, (part, norm, first) in enumerate(parts):
        out.append(f"{' ' * LABEL if i else ''}{part:{PART}}", style="dim")
        numbers = "".join(f" {number:{NUMBER - 1}.3f}" for number in (norm, *first[:fits]))
        out.append(f"{numbers}\n", style="bold" if part == "= sum" else "")
    return out


def _matrix(view: Embed, index: int, canvas: Canvas) -> Text:
    """The cosines between tokens, in hundredths: as many tokens as there is room for."""
    shown = window(len(view.rows), index, room(canvas.width))
    out = Text().append("  cosine of each token with those before it", style="bold")
    out.append(", in hundredths\n", style="dim")
    numbers = "".join(f"{view.rows[i].position:>{CELL}}" for i in shown)
    out.append(f"{'':{LABEL}}{numbers}\n", style="dim")
    for i in shown:
        row = view.rows[i]
        out.append(f"{row.position:>4} ", style="cyan")
        out.append(fit(name(row.token.text), LABEL - 6) + " ")
        for cosine in row.cosines[shown.start :]:
            style = on_heat((cosine + 1) / 2) if canvas.color else ""
            out.append(f"{round(100 * cosine):{CELL}}", style=style)
        out.append("\n")
    out.append_text(_left_out(view, shown))
    return out.append_text(scale("-100", "100", middle="0")) if canvas.color else out


def _left_out(view: Embed, shown: range, more: str = "") -> Text:
    places = range(view.rows[shown.start].position, view.rows[shown.stop - 1].position + 1)
    left_out = skipped(places, view.n_tokens)
    return Text(f"  {left_out}{more}\n" if left_out else "", style="dim")
