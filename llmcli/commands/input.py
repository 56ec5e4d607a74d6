r"""What the user typed, piped in or has in a file, as text.

Of stdin and of files a byte order mark and one line end, "\n" or "\r\n", at the end are dropped.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from llmcli.commands.options import spelled
from llmcli.errors import NotFoundError, UsageError, shown_path

MAX_STDIN_NBYTES = 256 << 20  # of a prompt; far more than any context holds


def read_text(argument: str | None, example: str) -> str:
    """The text given as `argument`, or stdin where it is "-" or absent while stdin is a pipe.

    An argument leaves stdin alone. Raises UsageError, with an `example`, where there is no text, or
    where it is not UTF-8.
    """
    if argument is not None and argument != "-":
        return argument
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise UsageError("There is no text to work on.", f"For example: {example}")
    data = sys.stdin.buffer.read(MAX_STDIN_NBYTES + 1)
    if len(data) > MAX_STDIN_NBYTES:
        raise UsageError(f"The text is longer than {MAX_STDIN_NBYTES >> 20} MiB.", "Shorten it.")
    return _bare(_decoded(data, "The text"))


def read_file(path: Path, max_nbytes: int, example: str, dash: bool = False) -> str:
    """The text of a file; with `dash`, of stdin for "-".

    Raises NotFoundError, with an `example`, for one that cannot be read, UsageError for one that is
    larger than `max_nbytes` or no UTF-8, or a stdin that is closed.
    """
    is_stdin = dash and str(path) == "-"
    name = name_of(path) if dash else shown_path(path)
    if is_stdin and sys.stdin is None:
        raise UsageError("There is no text to work on: stdin is closed.", example)
    try:
        opened = nullcontext(sys.stdin.buffer) if is_stdin else path.open("rb")
        with opened as file:  # which may be a pipe, or a device that never ends
            data = file.read(max_nbytes + 1)
    except OSError as error:
        raise NotFoundError(f"{name} cannot be read: {error.strerror}.", example) from error
    if len(data) > max_nbytes:
        raise UsageError(f"{name} is larger than {max_nbytes >> 20} MiB.", "Shorten or split it.")
    return _bare(_decoded(data, name))


def name_of(path: Path) -> str:
    """What to call a file that is stdin for "-"."""
    return "stdin" if str(path) == "-" else shown_path(path)


def is_piped() -> bool:
    """Whether stdin is a pipe or a file, and so perhaps meant to be read."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def received(name: str, value: Any) -> Any:
    """The value of the parameter `name` as it was typed: its texts decoded.

    Raises UsageError for a text that is not UTF-8, and for a path that can name no file, such as
    that of a variable which is not set, or no file to write.
    """
    option = "The prompt" if name == "prompt" else spelled(name)
    if isinstance(value, Path) and value.name in ("", ".."):
        raise UsageError(
            f"{option} is to name a file, and {shown_path(value)} is a folder.", "Name a file."
        )
    if name == "out" and value == Path("-"):
        raise UsageError("--out names a file, and - is none.", "stdout has it without --out.")
    if type(value) is str:
        return _decoded(value.encode("utf-8", "surrogateescape"), option)
    return [received(name, one) for one in value] if isinstance(value, list) else value


def _bare(text: str) -> str:
    end = "\r\n" if text.endswith("\r\n") else "\n"
    return text.removeprefix("\ufeff").removesuffix(end)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}.",
            "Convert it first, for example with iconv -t UTF-8.",
        ) from error
