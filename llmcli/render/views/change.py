"""What a change did: how far the stream moved, the next tokens before and after, every position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import (
    Canvas,
    bar,
    columns,
    fit,
    footnotes,
    heading,
    name,
    number,
    percent,
    skipped,
)
from llmcli.render.text import harmless
from llmcli.units import window

if TYPE_CHECKING:
    from llmcli.inspection.change import Change

TOKEN = 14
LINES = 16  # of a long prompt


def draw(view: Change, canvas: Canvas) -> Text:
    token = view.places[view.position].token
    out = heading("change", f"after {name(token.text)}, position {view.position}",
                  f"KL {view.kl_bits:.3f} bits", width=canvas.width)  # fmt: skip
    for given in view.changes:
        out.append(f"  {harmless(fit(given.change, canvas.width - 3).rstrip())}\n", style="dim")
    for part in (_layers(view, canvas.width), _candidates(view, canvas.width),
                 _places(view, canvas)):  # fmt: skip
        out.append("\n").append_text(part)
    return out.append_text(footnotes(view.notes, canvas.width))


def _layers(view: Change, width: int) -> Text:
    cells = max(10, min(40, width - 40))
    most = max([1e-3, *(row.share for row in view.layers)])  # less is rounding, and prints as 0
    out = columns(("  after", 9), ("norm", -9), ("moved", -9), ("", cells), ("share", -7))
    for row in view.layers:
        out.append(f"  {fit(row.after, 7)}", style="cyan")
        out.append(f" {row.norm:9.2f} {row.moved:9.2f} ")
        out.append(bar(row.share / most, cells), style="magenta")
        out.append(f" {percent(row.share)}\n")
    return out


def _candidates(view: Change, width: int) -> Text:
    cells = max(4, min(20, (width - TOKEN - 46) // 2))
    out = columns(("  next token", TOKEN + 2), ("untouched", -9), ("", cells), ("changed", -9),
                  ("", cells), ("rank", -11), ("logit", -8))  # fmt: skip
    for row in view.candidates:
        out.append(f"  {fit(name(row.token.text), TOKEN)} ")
        for prob, style in ((row.prob, "blue"), (row.changed_prob, "green")):
            out.append(f"{fit(percent(prob), 9, right=True)} ")
            out.append(bar(prob, cells), style=style)
            out.append(" ")
        ranks = f"{row.rank}→{row.changed_rank}"
        out.append(f"{fit(ranks, 11, right=True)} {row.difference:+8.2f}\n")
    return out


def _places(view: Change, canvas: Canvas) -> Text:
    shown = window(len(view.places), view.position, canvas.rows or LINES)
    rows = view.places[shown.start : shown.stop]
    cells = max(4, min(30, canvas.width - 3 * TOKEN - 35))
    most = max(row.kl_bits for row in rows) or 1.0
    out = columns(("pos", -5), ("token", TOKEN), ("KL bits", -8), ("", cells),
                  ("untouched says", TOKEN + 8), ("changed says", TOKEN + 8))  # fmt: skip
    for row in rows:
        seen = row.kl_bits if row.kl_bits >= 5e-4 else 0.0  # less is rounding, and prints as 0
        out.append(f"{row.position:>5} ", style="cyan")
        out.append(f"{fit(name(row.token.text), TOKEN)} {number(row.kl_bits, 3):>8} ")
        out.append(bar(seen / most, cells), style="yellow")
        same = row.top.id == row.changed_top.id
        out.append(f" {fit(name(row.top.text), TOKEN)}{percent(row.top_prob)} ")
        out.append(
            f" {fit(name(row.changed_top.text), TOKEN)}{percent(row.changed_top_prob)}\n",
            style="dim" if same else "bold",
        )
    if left_out := skipped(shown, len(view.places)):
        out.append(f"  {left_out}, --rows its size\n", style="dim")
    return out
