"""The stream's length as parts are added to it, and the numbers before and after each norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, bar, columns, fit, footnotes, heading, name
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.residual import Residual

PART = 13
NUMBER = 8
COSINE = 7


def draw(view: Residual, canvas: Canvas) -> Text:
    out = heading("residual", f"at {name(view.token.text)}, position {view.position} of "
                  f"{plural(view.n_tokens, 'token')}", width=canvas.width)  # fmt: skip
    out.append("\n").append_text(_additions(view, canvas.width))
    out.append("\n").append_text(_norms(view))
    return out.append_text(footnotes(view.notes, canvas.width))


def _additions(view: Residual, width: int) -> Text:
    """What each part adds on the left, the stream after it on the right, on one scale."""
    cells = max(8, min(30, (width - PART - 2 * (NUMBER + COSINE) - 8) // 2))
    longest = max([1e-9, *(max(row.added_norm, row.norm) for row in view.additions)])
    side = NUMBER + cells + COSINE + 2
    out = Text().append(f"  {'':{PART}}{fit('what is added', side)}  the stream\n", style="bold")
    out.append_text(columns(("  part", PART + 1), *2 * (("norm", -NUMBER), ("", cells),
                                                        ("cosine", -COSINE))))  # fmt: skip
    for row in view.additions:
        out.append(f"  {fit(row.part, PART)}", style="cyan")
        for norm, cosine, style in ((row.added_norm, row.added_cosine, "magenta"),
                                    (row.norm, row.cosine, "blue")):  # fmt: skip
            out.append(f"{_length(norm):>{NUMBER}} ")
            out.append(bar(norm / longest, cells), style=style)
            out.append(f" {cosine:{COSINE}.3f}")
        out.append("\n")
    return out


def _length(norm: float) -> str:
    """Of what is short, the first two digits."""
    return f"{norm:.2g}" if 0 < norm < 0.1 else f"{norm:.2f}"


def _norms(view: Residual) -> Text:
    cell = 11
    side = 2 * (cell + 1) - 1
    out = Text().append(f"  {'':{PART}}{'before':>{side}} {'after':>{side}}\n", style="bold")
    out.append_text(columns(("  layer norm", PART + 1), *2 * (("mean", -cell),
                                                              ("variance", -cell))))  # fmt: skip
    for row in view.norms:
        out.append(f"  {fit(row.norm, PART)}", style="cyan")
        out.append(f"{row.mean_before:z{cell}.4f} {row.variance_before:{cell}.4f} ", style="dim")
        out.append(f"{row.mean_after:z{cell}.4f} {row.variance_after:{cell}.4f}\n")
    return out
