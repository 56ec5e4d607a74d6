"""Text that a model or a stranger wrote, made harmless and its spaces visible."""

from __future__ import annotations

import re

# Everything a terminal obeys rather than shows: C0 but tab and newline, DEL, C1, and the marks
# that reverse the direction of what follows. Joiners stay, emoji need them.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_C1 = re.compile("[\x80-\x9f]")


def harmless(text: str) -> str:
    r"""`text` with control characters escaped for a terminal: ESC becomes the four letters \x1b."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def on_one_line(text: str) -> str:
    """`harmless` text with marks for what would end its line or jump in it."""
    return harmless(text.replace("\n", "⏎").replace("\t", "→"))


def decoded(token: bytes) -> str | None:
    """A token's text; None for a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def quoted(token: bytes) -> str:
    r"""A token on one line, in quotes: `" there"`, `"\n"`, `"\xe2\x80"` for part of a character."""
    text = decoded(token)
    if text is None:
        return f'"{"".join(map(_byte, token))}"'
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    for raw, escaped in (("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        text = text.replace(raw, escaped)
    # U+0080 is two bytes: as \x80 it would look like the one byte of the branch above.
    text = _C1.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return f'"{harmless(text)}"'


def _byte(b: int) -> str:
    r"""One byte of part of a character: `a`, `\"`, `\\`, `\xe2`."""
    if b in b'\\"':
        return "\\" + chr(b)
    return chr(b) if 32 <= b < 127 else f"\\x{b:02x}"
