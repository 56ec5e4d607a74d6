"""A head's weights as two lists of token pairs, side by side, and its strongest compositions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, bar, called, columns, fit, footnotes, heading, name
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.circuits import Circuits, Composition

NUMBER = 9


def draw(view: Circuits, canvas: Canvas) -> Text:
    whose = [f"of {called(view.token)}"] if view.token is not None else []
    out = heading("circuits", f"L{view.layer}.H{view.head}", *whose,
                  f"{1 if view.token else view.vocab_size} × {view.vocab_size} pairs of tokens",
                  width=canvas.width)  # fmt: skip
    out.append("\n").append_text(_pairs(view, canvas)).append("\n")
    out.append_text(_compositions(view, canvas))
    return out.append_text(footnotes(view.notes, canvas.width))


def _pairs(view: Circuits, canvas: Canvas) -> Text:
    half = canvas.width // 2
    token = (half - NUMBER - 4) // 2
    out = Text("  ").append(
        fit("QK: which token reads which", 2 * token + NUMBER + 4), style="bold"
    )
    out.append("OV: what reading a token says\n", style="bold")
    sides = [("at", "  reads", "score"), ("reading", "  says", "adds")]
    reads, writes = (
        [(first, token), (second, token), (third, -NUMBER)] for first, second, third in sides
    )
    out.append_text(columns(("", 1), *reads, ("", 0), *writes))
    for read, write in zip(view.reads, view.writes, strict=True):
        for left, right, value in ((read.query, read.key, read.score),
                                   (write.source, write.output, write.adds)):  # fmt: skip
            out.append(f"  {fit(name(left.text), token)}")
            out.append(" → ", style="dim").append(fit(name(right.text), token - 1))
            out.append(f"{value:+{NUMBER}.3f}", style="green" if value >= 0 else "red")
        out.append("\n")
    return out


def _compositions(view: Circuits, canvas: Canvas) -> Text:
    about = f"{plural(view.n_composed, 'earlier head')}, in 3 ways; chance is {view.chance:.4f}"
    out = Text().append("  Composition", style="bold").append(f"  {about}\n", style="dim")
    if not view.compositions:
        return out
    out.append_text(columns(("  into", 8), ("head", 8), ("score", -7), ("× chance", -9)))
    most = view.compositions[0].score or 1.0
    for row in view.compositions:
        out.append_text(_composition(row, most, max(10, min(40, canvas.width - 40))))
    if hidden := 3 * view.n_composed - len(view.compositions):
        out.append(f"  {hidden} more with --rows\n", style="dim")
    return out


def _composition(row: Composition, most: float, cells: int) -> Text:
    out = Text().append(f"  {fit(row.kind, 6)} ").append(fit(f"L{row.layer}.H{row.head}", 8))
    out.append(f" {row.score:7.4f} {row.times_chance:8.2f}   ")
    return out.append(f"{bar(row.score / most, cells).rstrip()}\n", style="blue")
