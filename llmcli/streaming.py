"""Steps -> pieces of text: whole characters only, and nothing at or after a stop string.

Knows the tokenizer and text, not where the text goes.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmcli.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llmcli.gpt.generation import Step


class StopMatcher:
    """Text in, text that is certainly before any of `stops` out; the rest is held back.

    The text ends before the stop that is complete first; of those complete at the same character
    the longest counts. So the borders between the pieces fed never matter.
    """

    def __init__(self, stops: Sequence[str] = (), keep_stop: bool = False) -> None:
        self.stops = [stop for stop in stops if stop]
        self.keep_stop = keep_stop
        self.held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be shown by now; once `stopped`, nothing."""
        if self.stopped:
            return ""
        self.held += text
        found = [(self.held.find(stop), stop) for stop in self.stops if stop in self.held]
        if found:
            self.stopped = True
            end = min(start + len(stop) for start, stop in found)
            start = min(start for start, stop in found if start + len(stop) == end)
            shown, self.held = self.held[: end if self.keep_stop else start], ""
            return shown
        keep = self._undecided()
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back and has come to nothing."""
        shown, self.held = self.held, ""
        return shown

    def _undecided(self) -> int:
        """How many of the last characters may be the beginning of a stop."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(self.held)), 0, -1):
            if any(stop.startswith(self.held[-size:]) for stop in self.stops):
                return size
        return 0


class TextStream:
    """Ids in, text out, for one row."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), keep_stop: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.utf8 = getincrementaldecoder("utf-8")("replace")  # whole characters, else U+FFFD
        self.matcher = StopMatcher(stops, keep_stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met: nothing more will come."""
        return self.matcher.stopped

    def feed(self, id: int) -> str:
        return self.matcher.feed(self.utf8.decode(self.tokenizer.token_bytes(id)))

    def flush(self) -> str:
        """The end of the text: an unfinished character becomes U+FFFD."""
        return self.matcher.feed(self.utf8.decode(b"", True)) + self.matcher.flush()


@dataclass(frozen=True, slots=True)
class Piece:
    """A step, and the text of its row that has become certain with it."""

    step: Step
    text: str
    finish_reason: str | None  # "stop" also where a stop string was met


@dataclass(slots=True)
class Sample:
    """A row's pieces so far, and the text that none of them holds yet."""

    pieces: list[Piece] = field(default_factory=list)
    rest: str = ""

    @property
    def ids(self) -> list[int]:
        return [piece.step.id for piece in self.pieces]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces) + self.rest

    @property
    def finish_reason(self) -> str | None:
        """None: it has not come to its end."""
        return self.pieces[-1].finish_reason if self.pieces else None


def pieces(
    steps: Iterable[Step],
    streams: Sequence[TextStream],
    ended: set[int],
    hidden_ids: Collection[int] = (),
) -> Iterator[Piece]:
    """Each step with its text; a row that meets a stop string is put into `ended`.

    `hidden_ids` (end-of-text) end a text and are no part of it.
    """
    for step in steps:
        stream, reason = streams[step.row], step.finish_reason
        text = "" if step.id in hidden_ids else stream.feed(step.id)
        if reason:
            text += stream.flush()
        if stream.stopped:
            reason = "stop"
            ended.add(step.row)
        yield Piece(step, text, reason)
