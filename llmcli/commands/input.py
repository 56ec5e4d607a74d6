"""What the user typed or piped in, as text."""

from __future__ import annotations

import os
import stat
import sys

from llmcli.errors import UsageError

MAX_STDIN_NBYTES = 256 << 20  # of a prompt; far more than any context holds


def read_text(argument: str | None, example: str) -> str:
    """The text given as `argument`, or stdin where it is "-" or absent while stdin is a pipe.

    An argument leaves stdin alone; of stdin a byte order mark and one trailing newline are dropped.
    Raises UsageError, with an `example`, where there is no text, or where it is not UTF-8.
    """
    if argument is not None and argument != "-":
        return typed(argument)
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise UsageError("There is no text to work on.", f"For example: {example}")
    data = sys.stdin.buffer.read(MAX_STDIN_NBYTES + 1)
    if len(data) > MAX_STDIN_NBYTES:
        raise UsageError(f"The text is longer than {MAX_STDIN_NBYTES >> 20} MiB.", "Shorten it.")
    return _decoded(data).removeprefix("\ufeff").removesuffix("\n")


def is_piped() -> bool:
    """Whether stdin is a pipe or a file, and so perhaps meant to be read."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def typed(argument: str) -> str:
    """What was typed as an argument, if it is UTF-8: Python hides bytes that are not in it."""
    return _decoded(argument.encode("utf-8", "surrogateescape"))


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The text is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}.",
            "Convert it first, for example with iconv -t UTF-8.",
        ) from error
