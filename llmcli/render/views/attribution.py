"""A logit taken apart: a bar for each part, to the right for it and to the left against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import (
    Canvas,
    called,
    columns,
    fit,
    footnotes,
    heading,
    name,
    percent,
    place,
    sides,
    signed_bar,
)
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.attribution import Attribution

PART = 16
VALUE = 10
LINES = 20  # parts, where nobody says how many


def draw(view: Attribution, canvas: Canvas) -> Text:
    target = called(view.token, view.versus)
    out = heading("attribution", f"the logit of {target} after position {view.position}",
                  width=canvas.width)  # fmt: skip
    out.append(
        f"  {name(view.token.text)} is {place(view.rank)}: {percent(view.prob).strip()}\n\n",
        style="dim",
    )
    cells = max(20, min(80, canvas.width - PART - VALUE - 6))
    shown, hidden = view.parts[: canvas.rows or LINES], view.parts[canvas.rows or LINES :]
    left, right, per_cell = sides([part.value for part in shown], cells, least=8)
    out.append_text(columns(("  part", PART + 2), ("adds", -VALUE),
                            ("against".rjust(left), left), ("  for", 8)))  # fmt: skip
    for part in shown:
        style = "green" if part.value >= 0 else "red"
        out.append(f"  {fit(part.part, PART)} {part.value:+{VALUE}.4f} ")
        minus, plus = signed_bar(part.value / per_cell, left, right)
        out.append(minus, style=style).append("│", style="dim").append(f"{plus}\n", style=style)
    if n_rest := view.n_rest + len(hidden):
        rest = view.rest + sum(part.value for part in hidden)
        out.append(f"  {fit(plural(n_rest, 'other part'), PART)} {rest:+{VALUE}.4f}\n", style="dim")
    out.append_text(_total(view))
    return out.append_text(footnotes(view.notes, canvas.width))


def _total(view: Attribution) -> Text:
    out = Text().append(f"  {'─' * (PART + VALUE + 1)}\n", style="dim")
    out.append(f"  {fit('sum of the parts', PART)} {view.sum_of_parts:+{VALUE}.4f}\n")
    own = fit("the model's own", PART)
    out.append(f"  {own} {view.logit:+{VALUE}.4f}\n", style="bold")
    out.append(
        f"  {fit('residual error', PART)} {view.residual:{VALUE}.1e}   "
        f"(at most {view.tolerance:.1e} may be)\n",
        style="dim",
    )
    return out
