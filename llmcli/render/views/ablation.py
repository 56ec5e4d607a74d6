"""Every part ablated in turn: a bar for what the token's logit loses or gains without it."""

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
    sides,
    signed_bar,
)
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.ablation import AblationView

TOKEN = 12
LINES = 20  # parts, where nobody says how many


def draw(view: AblationView, canvas: Canvas) -> Text:
    target = called(view.token, view.versus)
    out = heading("ablation", f"the logit of {target} after position {view.position}",
                  width=canvas.width)  # fmt: skip
    out.append(
        f"  {view.logit:.3f} with all parts, probability{percent(view.prob).rstrip()}; "
        f"{plural(view.n_parts, 'part')} in {plural(view.n_forwards, 'forward')}\n\n",
        style="dim",
    )
    cells = max(16, min(60, canvas.width - TOKEN - 46))
    shown = view.parts[: canvas.rows or LINES]
    left, right, per_cell = sides([part.effect for part in shown], cells, least=6)
    out.append_text(columns(("  without", 9), ("effect", -9), ("loses".rjust(left), left),
                            ("  gains", right + 1), ("prob", -7), ("KL", -6),
                            (" says", TOKEN)))  # fmt: skip
    for part in shown:
        style = "green" if part.effect >= 0 else "red"
        minus, plus = signed_bar(part.effect / per_cell, left, right)
        out.append(f"  {fit(part.part, 7)} {part.effect:+9.4f} ")
        out.append(minus, style=style).append("│", style="dim")
        out.append(plus.ljust(right), style=style)
        out.append(f" {percent(part.prob)} {part.kl_bits:6.2f} ")
        same = part.top.id == view.token.id
        out.append(f" {fit(name(part.top.text), TOKEN)}", style="dim" if same else "bold")
        out.append(f"{percent(part.top_prob)}\n", style="dim" if same else "")
    if view.n_parts > len(shown):
        out.append(f"  {view.n_parts - len(shown)} more with --rows\n", style="dim")
    return out.append_text(footnotes(view.notes, canvas.width))
