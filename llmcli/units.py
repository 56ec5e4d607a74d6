"""Sizes as people read them: in messages, tables and pictures alike."""

from __future__ import annotations


def sized(nbytes: float) -> str:
    """Bytes in three digits or four: 665 -> "665 B", 15006272 -> "14.3 MiB"."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB"):
        if nbytes < 1024:
            break
        nbytes, unit = nbytes / 1024, larger
    places = 0 if unit == "B" else max(0, 3 - len(str(int(nbytes))))
    return f"{nbytes:,.{places}f} {unit}"
