"""The consoles that everything coloured goes through."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType

MIN_WIDTH = 80


class Unhandled(Console):
    """Leaves it to the command line that a reader has gone, as a plain write does."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


Picture = tuple[str, RenderableType]  # a title, if there is one, and what stands under it


def console(color: str = "auto", stderr: bool = False) -> Console:
    """A console for stdout or stderr, at least 80 columns wide; `color` is auto, always or never.

    NO_COLOR wins over `color`, which wins over what the stream is.
    """
    off = bool(os.environ.get("NO_COLOR")) or color == "never"
    made = Unhandled(
        file=sys.stderr if stderr else sys.stdout,
        force_terminal=True if color == "always" and not off else None,
        color_system=None if off else "auto",  # None: no styles at all
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )
    if made.width < MIN_WIDTH:
        made.width = MIN_WIDTH
    return made


def print_all(out: Console, pictures: Iterable[Picture]) -> None:
    """One below the other, an empty line between them, each under its title."""
    for i, (title, picture) in enumerate(pictures):
        if i:
            out.print()
        if title:
            out.print(f"── {title} ──", style="bold")
        out.print(picture, end="")
