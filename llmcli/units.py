"""Figures that many places give in the same way: in messages, tables, pictures and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


def sized(nbytes: float) -> str:
    """Bytes in three digits or four: 665 -> "665 B", 15006272 -> "14.3 MiB"."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1023.5:
            break
        nbytes, unit = nbytes / 1024, larger
    places = 0 if unit == "B" or nbytes >= 99.95 else 1 if nbytes >= 9.995 else 2
    return f"{nbytes:,.{places}f} {unit}"


def plural(n: int, word: str) -> str:
    """ "1 token", "7 tokens", "12,345 tokens"."""
    return f"{n} {word}" if n == 1 else f"{n if n < 10_000 else f'{n:,}'} {word}s"


def perplexity(nats: float) -> float:
    """e to the mean of -log p over a text's tokens; infinite beyond what a float holds."""
    return math.inf if nats > 709 else math.exp(nats)


def window(length: int, centre: int, size: int) -> range:
    """`size` of `length` places, `centre` among them and in their middle where there is room."""
    start = max(0, min(centre - size // 2, length - size))
    return range(start, min(length, start + size))


@dataclass
class Pace:
    """When the tokens of a batch came, in seconds, ascending; its rows share their steps."""

    first_s: float | None = None  # the first step
    second_s: float | None = None
    last_s: float | None = None
    n_later: int = 0  # tokens after the second step

    @classmethod
    def of(cls, times: Iterable[float]) -> Pace:
        """Of tokens that came at these times, in whatever order they are given."""
        pace = cls()
        for time_s in sorted(times):
            pace.add(time_s)
        return pace

    def add(self, time_s: float) -> None:
        if self.first_s is None:
            self.first_s = time_s
        elif self.second_s is None:
            self.second_s = time_s if time_s > self.first_s else None
        else:
            self.n_later += time_s > self.second_s
        self.last_s = time_s


def rate(*batches: Pace) -> float | None:
    """Tokens a second after each batch's second step, before which weights may have been packed."""
    n, later_s = 0, 0.0
    for pace in batches:
        if pace.second_s is not None and pace.last_s is not None:
            n += pace.n_later
            later_s += pace.last_s - pace.second_s
    return n / later_s if later_s > 0 else None
