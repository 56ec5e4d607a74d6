"""A replay's verdict, then each text and the steps that differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, columns, fit, footnotes, heading, name, tail
from llmcli.render.text import harmless
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.replay import Replay

LINES = 12
TOKEN = 16


def draw(view: Replay, canvas: Canvas) -> Text:
    out = heading(
        "replay", tail(view.file, 40), view.how, plural(view.n_compared, "step"), width=canvas.width
    )
    out.append("\n  ").append(view.verdict, style="bold green" if view.passed else "bold red")
    out.append(f"\n  {view.n_identical} of {plural(view.n_compared, 'step')} to the last digit")
    if view.n_identical < view.n_compared:
        out.append(f", off by {view.max_difference:.2g} at most ({view.tolerance:g} allowed)")
    out.append("\n")
    cells = (canvas.width - 16) // 2
    for row in view.facts:
        out.append(f"  {fit(row.what, 10)}", style="dim")
        out.append(f"{fit(harmless(row.recorded), cells)} then\n")
        out.append(f"  {'':10}{fit(harmless(row.here), cells)} here\n")
    if view.n_runs > 1 or not view.passed:
        out.append("\n").append_text(_runs(view))
    if view.worst:
        out.append("\n").append_text(_worst(view))
    return out.append_text(footnotes(view.notes, canvas.width))


def _runs(view: Replay) -> Text:
    out = columns(("  run", 6), ("tokens", -7), ("identical", -10), ("differs by", -11),
                  ("parts at step", -14))  # fmt: skip
    for row in view.runs[:LINES]:
        out.append(f"{row.run:>5}  ", style="cyan")
        parts = "–" if row.first_difference is None else str(row.first_difference)
        style = "" if row.first_difference is None else "bold red"
        out.append(f"{row.n_tokens:>7} {row.n_identical:>10} {row.max_difference:11.1e} ")
        out.append(f"{parts:>14}\n", style=style)
    if (more := len(view.runs) - LINES) > 0:
        out.append(f"  {more} more; a pipe has them\n", style="dim")
    return out


def _worst(view: Replay) -> Text:
    drawn = "drawn here" if any(row.drawn for row in view.worst) else ""
    out = Text().append("  most different\n", style="bold")
    out.append_text(columns(("  step", 6), ("run", -4), ("token", TOKEN), ("logprob", -9),
                            ("differs by", -11), (drawn, TOKEN)))  # fmt: skip
    for row in view.worst:
        out.append(f"{row.step:>6} ", style="cyan")
        out.append(f"{row.run:>4} {fit(name(row.token.text), TOKEN)} {row.logprob:9.4f} ")
        out.append(f"{row.max_difference:11.1e}")
        out.append(f" {name(row.drawn.text)}" if row.drawn else "", style="bold red")
        out.append("\n")
    return out
