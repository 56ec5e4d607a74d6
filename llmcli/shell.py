"""How a text is given to a shell, wherever a command is shown."""

from __future__ import annotations

import shlex


def quoted(text: str) -> str:
    """`text` as one word of a command; what cannot be seen as bash and zsh escape it."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(c: str) -> str:
    if short := {"\n": "n", "\t": "t", "\\": "\\", "'": "'"}.get(c):
        return f"\\{short}"
    return c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 1 << 16 else f"\\U{ord(c):08x}"
