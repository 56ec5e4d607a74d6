"""Tokens and their surprisal: the text shaded, then a line for each position."""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import TYPE_CHECKING

from rich.cells import cell_len
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
from llmcli.render.heat import on_heat, scale
from llmcli.render.text import on_one_line
from llmcli.units import plural, window

if TYPE_CHECKING:
    from llmcli.inspection.tokens import TokenRow, Tokens

LINES = 40  # of a long prompt, unless --rows says otherwise
LEAST_BITS = 4.0  # the far end of the scale is here, or at the largest surprisal shown
FIXED = 75  # cells of a line without its bar


def draw(view: Tokens, canvas: Canvas) -> Text:
    total = len(view.rows)
    shown = window(total, view.position, canvas.rows or LINES)
    out = heading("tokens", *_facts(view), width=canvas.width)
    bars = max(5, min(30, canvas.width - FIXED))
    bits = [row.surprisal_bits or 0.0 for row in view.rows[shown.start : shown.stop]]
    most = max([LEAST_BITS, *bits])
    if canvas.color:
        out.append("\n").append_text(_shaded(view, shown, canvas.width, most))
    out.append("\n").append_text(
        columns(("pos", -4), ("id", -6), ("token", 13), ("hex", 10), ("bits", -5),
                ("", bars), ("rank", -5), ("entropy", -7), ("likeliest other", 17))
    )  # fmt: skip
    for row in view.rows[shown.start : shown.stop]:
        out.append_text(_line(row, bars, most))
    if left_out := skipped(shown, total):
        out.append(f"  {left_out}, --rows its size\n", style="dim")
    return out.append_text(footnotes(view.notes, canvas.width))


def _facts(view: Tokens) -> list[str]:
    facts = [plural(view.n_tokens, "token")]
    if view.perplexity is not None:
        facts += [
            f"perplexity {view.perplexity:.4g}",
            f"{view.bits_per_token:.2f} bits a token",
            f"{number(view.bits_per_byte)} a byte",
        ]
    if view.n_windows > 1:
        facts.append(plural(view.n_windows, "window"))
    return facts


def _shaded(view: Tokens, shown: range, width: int, most: float) -> Text:
    """The text itself, each token on the colour of its surprisal."""
    out = Text(" …" if shown.start else " ")
    used = len(out)
    decoder = getincrementaldecoder("utf-8")("replace")  # a character may take several tokens
    for row in view.rows[shown.start : shown.stop]:
        text = on_one_line(decoder.decode(row.token.text))
        if used + cell_len(text) > width:
            out.append("\n ")
            used = 1
        style = on_heat((row.surprisal_bits or 0.0) / most)
        out.append(text, style="dim" if row.surprisal_bits is None else style)
        used += cell_len(text)
    out.append("…" if shown.stop < len(view.rows) else "")
    return out.append("\n").append_text(scale("surprisal: 0", f"{most:.2f} bits"))


def _line(row: TokenRow, bars: int, most: float) -> Text:
    out = Text().append(f"{row.position:>4} ", style="cyan")
    out.append(f"{row.token.id:>6} ", style="dim")
    out.append(f"{fit(name(row.token.text), 13)} ")
    out.append(f"{fit(row.bytes, 10)} ", style="dim")
    if row.surprisal_bits is None or row.alternative is None or row.alternative_prob is None:
        return out.append(f"{'–':>5}\n")
    out.append(f"{row.surprisal_bits:5.2f} ")
    out.append(bar(row.surprisal_bits / most, bars), style="yellow")
    out.append(f" {row.rank:>5} {row.entropy_bits:7.2f} ")
    return out.append(f"{fit(name(row.alternative.text), 10)}{percent(row.alternative_prob)}\n")
