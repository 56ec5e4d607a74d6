"""What is said beside the output: on stderr, on a terminal broken between words."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcli.errors import LLMCLIError


def say(text: str) -> None:
    """Each line of `text`; one that fits a terminal stays as it is."""
    width = _columns() or sys.maxsize
    for line in text.split("\n"):
        print(line if len(line) <= width else _broken(line, width), file=sys.stderr)


def say_error(error: LLMCLIError) -> None:
    """The fact and the remedy; LLMCLI_DEBUG=1 shows the traceback before."""
    if os.environ.get("LLMCLI_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    say(f"llmcli: {error.fact}\n{error.remedy}".rstrip())


def say_narrow() -> None:
    """Say so where stdout's terminal is narrower than a picture."""
    from llmcli.render.console import MIN_WIDTH

    columns = shutil.get_terminal_size().columns
    if sys.stdout.isatty() and columns < MIN_WIDTH:
        say(
            f"This terminal has {columns} columns: pictures are {MIN_WIDTH} wide and will wrap. "
            "In a pipe or with --json nothing does."
        )


def _broken(line: str, width: int) -> str:
    return textwrap.fill(
        line, width, replace_whitespace=False, break_long_words=False, break_on_hyphens=False
    )


def _columns() -> int | None:
    """How wide stderr's terminal is, if it is one."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except (AttributeError, OSError, ValueError):  # no terminal, or no file at all
        return None
