"""The proof, a line for each comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, columns, fit, footnotes, heading, wrapped
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.check import Check

NAME = 20


def draw(view: Check, canvas: Canvas) -> Text:
    verdict = "all pass" if view.passed else "FAILED"
    out = heading("check", verdict, plural(view.n_tokens, "token"), view.dtype,
                  f"largest logit {view.largest_logit:.2f}", width=canvas.width)  # fmt: skip
    out.append("\n").append_text(
        columns(("", 4), ("comparison", NAME), ("differs by", -10), ("allowed", -8),
                ("what it shows", 40))
    )  # fmt: skip
    room = canvas.width - NAME - 27
    for row in view.comparisons:
        out.append("pass " if row.passed else "FAIL ", style="green" if row.passed else "bold red")
        out.append(f"{fit(row.check, NAME)} {row.difference:10.1e} {row.tolerance:8.1e} ")
        means = ("\n" + " " * (NAME + 26)).join(wrapped(row.means, max(20, room)))
        out.append(f"{means}\n", style="dim")
    return out.append_text(footnotes(view.notes, canvas.width))
