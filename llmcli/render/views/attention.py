"""Attention as pictures: all heads as small maps, or one head with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

from rich.text import Text

from llmcli.render.drawing import (
    Canvas,
    columns,
    fit,
    footnotes,
    heading,
    name,
    percent,
    share,
    skipped,
)
from llmcli.render.heat import half_blocks, on_heat, scale
from llmcli.units import plural, window

if TYPE_CHECKING:
    from llmcli.inspection.attention import Grid, HeadRow, OneHead, QueryRow

PITCH = 19  # cells from one map to the next: 16 pixels and a gap, or a label
LABEL = 18  # position and token, left of a large map
CELL = 3  # of a large map: two digits of percent
ENTROPY = 6


def draw(view: Grid | OneHead, canvas: Canvas) -> Text:
    if hasattr(view, "queries"):
        return _one_head(cast("OneHead", view), canvas)
    return _grid(view, canvas)


def _grid(view: Grid, canvas: Canvas) -> Text:
    out = heading("attention", plural(len(view.heads), "head"), plural(view.n_tokens, "token"),
                  "a row of a map reads from its columns",
                  width=canvas.width)  # fmt: skip
    out.append_text(_scale(canvas))
    per_line = max(1, (canvas.width - 2) // PITCH)
    for _, layer in groupby(view.heads, key=lambda head: head.layer):
        heads = list(layer)
        for start in range(0, len(heads), per_line):
            out.append("\n").append_text(_maps(heads[start : start + per_line], canvas))
    return out.append_text(footnotes(view.notes, canvas.width))


def _scale(canvas: Canvas) -> Text:
    """What the colours mean; without colour, what the digits mean."""
    if not canvas.color:
        return Text(
            "  digits are tenths: 3 is 30 to 39 %, 9 is 90 to 100 %, · below 10 %\n", style="dim"
        )
    return scale("0 %", "100 %", middle="25 %")


def _maps(heads: Sequence[HeadRow], canvas: Canvas) -> Text:
    """Maps side by side, labels above them."""
    out = Text("  ")
    for head in heads:
        label = f"L{head.layer}.H{head.head}"
        out.append(label, style="bold")
        out.append(fit(f" {head.entropy_bits:.2f} bits", PITCH - len(label)), style="dim")
    out.append("\n  ")
    for head in heads if any(head.role for head in heads) else ():
        role = f"{head.role} {share(head.role_score)} %" if head.role else "–"
        out.append(fit(role, PITCH), style="green" if head.role else "dim")
    if any(head.role for head in heads):
        out.append("\n  ")
    out.rstrip()
    out.append("\n")
    size = len(heads[0].map)
    step = 2 if canvas.color else 1
    for top in range(0, size, step):
        out.append("  ")
        for head in heads:
            out.append_text(_map_line(head, top, canvas.color))
            out.append(" " * (PITCH - size))
        out.append("\n")
    return out


def _map_line(head: HeadRow, top: int, color: bool) -> Text:
    """One line of a map: two rows of pixels as half blocks, or one row of digits."""
    size = len(head.map)
    out = Text()
    for column in range(size):
        upper = head.map[top][column] if column <= top else None
        if not color:
            out.append(" " if upper is None else _digit(upper))
            continue
        below = top + 1
        lower = head.map[below][column] if below < size and column <= below else None
        character, style = half_blocks(_shade(upper), _shade(lower))
        out.append(character, style=style)
    return out


def _shade(weight: float | None) -> float | None:
    """The place of a weight on the scale: its root, or all but the largest would be dark."""
    return None if weight is None else weight**0.5


def _digit(weight: float) -> str:
    return "·" if weight < 0.1 else str(min(9, int(weight * 10)))


def _one_head(view: OneHead, canvas: Canvas) -> Text:
    fits = max(1, (canvas.width - LABEL - ENTROPY) // CELL)
    shown = window(view.n_tokens, view.position, fits)
    role = [f"{view.role} {share(view.role_score)} %"] if view.role else []
    out = heading("attention", f"layer {view.layer}, head {view.head}", *role,
                  f"{view.entropy_bits:.2f} bits", plural(view.n_tokens, "token"),
                  width=canvas.width)  # fmt: skip
    out.append("\n  each row reads from its columns, in %\n", style="dim")
    numbers = "".join(f"{position % 100:>{CELL}}" for position in shown)
    out.append(f"{'':{LABEL}}{numbers}  bits\n", style="dim")
    for query in view.queries[shown.start : shown.stop]:
        out.append_text(_query(query, shown, canvas.color))
    if left_out := skipped(shown, view.n_tokens):
        out.append(f"  {left_out}\n", style="dim")
    out.append("\n").append_text(_sources(view, canvas, shown))
    return out.append_text(footnotes(view.notes, canvas.width))


def _query(query: QueryRow, shown: range, color: bool) -> Text:
    out = Text().append(f"{query.position:>4} ", style="cyan")
    out.append(fit(name(query.token.text), LABEL - 6) + " ")
    for place in shown:
        if place > query.position:
            out.append(" " * CELL)
            continue
        weight = query.weights[place]
        text = "·" if weight < 0.005 else f"{100 * weight:.0f}"
        style = on_heat(weight**0.5) if color else ""
        out.append(f"{text:>{CELL}}", style=style)
    return out.append(f"{query.entropy_bits:{ENTROPY}.2f}\n", style="dim")


def _sources(view: OneHead, canvas: Canvas, shown: range) -> Text:
    """The strongest sources of each position shown."""
    cell = 25
    fits = max(1, (canvas.width - LABEL) // cell)
    out = columns((" pos", 5), ("token", LABEL - 7), ("reads most from", 30))
    for query in view.queries[shown.start : shown.stop]:
        out.append(f"{query.position:>4} ", style="cyan")
        out.append(fit(name(query.token.text), LABEL - 6))
        sources = [row for row in view.sources if row.position == query.position][:fits]
        for source in sources:
            out.append(f" {source.source:>4} ", style="dim")
            out.append(f"{fit(name(source.token.text), cell - 14)} {percent(source.weight)}")
        out.append("\n")
    return out
