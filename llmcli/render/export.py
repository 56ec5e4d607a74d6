"""Pictures kept as files: SVG and HTML that need nothing from the network."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from rich.console import Console

from llmcli.render.console import Picture, print_all

NO_XML = re.compile("[\ufffe\uffff\ud800-\udfff]")  # no characters to XML 1.0


def _recorded(pictures: Iterable[Picture], width: int) -> Console:
    """What a terminal would show; a line that is too long goes on below, as it does there."""
    console = Console(
        record=True, file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor",
        highlight=False, markup=False, emoji=False, legacy_windows=False,
    )  # fmt: skip
    print_all(console, pictures)
    return console


def svg(pictures: Iterable[Picture], width: int) -> str:
    """One SVG of all pictures. Rich's template names a font on a public server; ours does not."""
    made = _recorded(pictures, width).export_svg(title="llmcli inspect")
    made = re.sub(r"@font-face\s*\{[^}]*\}", "", made)
    return NO_XML.sub("\ufffd", made)


def html(pictures: Iterable[Picture], width: int) -> str:
    """One page of all pictures, dark on light."""
    return _recorded(pictures, width).export_html(inline_styles=True)
