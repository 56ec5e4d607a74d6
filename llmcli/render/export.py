"""Pictures kept as files: SVG and HTML that need nothing from the network."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from rich.console import Console, RenderableType


def _recorded(pictures: Sequence[RenderableType], width: int) -> Console:
    console = Console(
        record=True, file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor",
        highlight=False, markup=False, emoji=False, soft_wrap=True, legacy_windows=False,
    )  # fmt: skip
    for i, picture in enumerate(pictures):
        if i:
            console.print()
        console.print(picture, end="")
    return console


def svg(pictures: Sequence[RenderableType], width: int) -> str:
    """One SVG of all pictures. Rich's template names a font on a public server; ours does not."""
    made = _recorded(pictures, width).export_svg(title="llmcli inspect")
    return re.sub(r"@font-face\s*\{[^}]*\}", "", made)


def html(pictures: Sequence[RenderableType], width: int) -> str:
    """One page of all pictures, dark on light."""
    return _recorded(pictures, width).export_html(inline_styles=True)
