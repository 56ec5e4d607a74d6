"""A scale from 0 to 1 in colour: dark blue, green, yellow, its brightness always rising.

Every cell that holds a value is painted, so it reads on dark and on light ground alike, and to eyes
that do not tell red from green. The anchors are close to matplotlib's viridis.
"""

from __future__ import annotations

from rich.color import Color
from rich.style import Style
from rich.text import Text

ANCHORS = ((50, 24, 94), (52, 78, 138), (33, 133, 141), (60, 182, 112), (162, 212, 54),
           (253, 231, 55))  # fmt: skip


def heat(value: float) -> tuple[int, int, int]:
    """The colour (red, green, blue) of a value from 0 to 1; what is outside is cut off."""
    place = max(0.0, min(1.0, value)) * (len(ANCHORS) - 1)
    low = min(int(place), len(ANCHORS) - 2)
    part = place - low
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(ANCHORS[low], ANCHORS[low + 1], strict=True)
    )
    return red, green, blue


def on_heat(value: float) -> Style:
    """Text that is readable on the colour of `value`."""
    dark = Color.from_rgb(16, 16, 16)
    light = Color.from_rgb(245, 245, 245)
    return Style(color=dark if value > 0.38 else light, bgcolor=Color.from_rgb(*heat(value)))


def scale(low: str, high: str, middle: str = "") -> Text:
    """What the colours mean: a bar of them with `low`, `middle` and `high` at their places."""
    out = Text().append(f"  {low} ", style="dim")
    for step in range(20):
        if middle and step == 10:
            out.append(f" {middle} ", style="dim")
        out.append("█", style=Style(color=Color.from_rgb(*heat(step / 19))))
    return out.append(f" {high}\n", style="dim")


def half_blocks(top: float | None, bottom: float | None) -> tuple[str, Style]:
    """Two pixels, one above the other, in one cell; None is left as the ground is."""
    if top is None and bottom is None:
        return " ", Style()
    if bottom is None:
        return "▀", Style(color=Color.from_rgb(*heat(top or 0.0)))
    if top is None:
        return "▄", Style(color=Color.from_rgb(*heat(bottom)))
    return "▀", Style(color=Color.from_rgb(*heat(top)), bgcolor=Color.from_rgb(*heat(bottom)))
