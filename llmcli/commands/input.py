"""What the user typed or piped in, as text."""

from __future__ import annotations

import sys

from llmcli.errors import UsageError


def read_text(argument: str | None, example: str) -> str:
    """The text given as `argument`, or stdin where it is "-" or absent while stdin is a pipe.

    An argument leaves stdin alone. Raises UsageError, with an `example`, where there is no text,
    or where it is not UTF-8.
    """
    if argument is not None and argument != "-":
        return _decoded(argument.encode("utf-8", "surrogateescape"))  # the bytes that were typed
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise UsageError("There is no text to work on.", f"For example: {example}")
    return _decoded(sys.stdin.buffer.read())


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The text is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}.",
            "Convert it first, for example with iconv -t UTF-8.",
        ) from error
