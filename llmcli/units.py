"""Figures that many places give in the same way: in messages, tables, pictures and JSON."""

from __future__ import annotations

import math


def sized(nbytes: float) -> str:
    """Bytes in three digits or four: 665 -> "665 B", 15006272 -> "14.3 MiB"."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB"):
        if nbytes < 1024:
            break
        nbytes, unit = nbytes / 1024, larger
    places = 0 if unit == "B" else max(0, 3 - len(str(int(nbytes))))
    return f"{nbytes:,.{places}f} {unit}"


def perplexity(nats: float) -> float:
    """e to the mean of -log p over a text's tokens; infinite beyond what a float holds."""
    return math.exp(nats) if nats < 709 else math.inf
