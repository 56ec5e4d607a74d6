"""Where the pieces of a run go: text, pictures or rows of probabilities, JSON.

A writer takes the pieces as they come and is told of the end, on Ctrl-C too, with what was still
held back of each row, so that all that was generated is out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llmcli.commands.loading import Opened
from llmcli.commands.results import timings
from llmcli.render.text import harmless, quoted
from llmcli.streaming import Piece, Sample, TextStream
from llmcli.strict_json import strict

if TYPE_CHECKING:
    from llmcli.commands.single import Echo
    from llmcli.gpt.facts import Choice
    from llmcli.gpt.generation import Step
    from llmcli.render.probs import Candidate


class Writer(Protocol):
    """What takes the pieces of all rows, in the order in which they are made."""

    def take(self, piece: Piece) -> None: ...

    def end(self, held: Sequence[str]) -> None: ...


class RowWriter(Protocol):
    """What takes the pieces of one row after the other."""

    def begin(self, row: int) -> None: ...

    def take(self, piece: Piece) -> None: ...

    def close(self, held: str) -> None: ...


class InOrder:
    """Shows row 0 as it grows and each later row once those before it are complete."""

    def __init__(self, writer: RowWriter, n_rows: int) -> None:
        self.writer, self.row = writer, 0
        self.waiting: list[list[Piece]] = [[] for _ in range(n_rows)]
        writer.begin(0)

    def take(self, piece: Piece) -> None:
        self.waiting[piece.step.row].append(piece)
        while self.row < len(self.waiting) and self._show():
            self.writer.close("")
            self.row += 1
            if self.row < len(self.waiting):
                self.writer.begin(self.row)

    def end(self, held: Sequence[str]) -> None:
        for row in range(self.row, len(self.waiting)):
            if row > self.row:
                self.writer.begin(row)
            for piece in self.waiting[row]:
                self.writer.take(piece)
            self.writer.close(held[row])

    def _show(self) -> bool:
        """Hand on what waits for the current row; whether that row is now complete."""
        waiting = self.waiting[self.row]
        shown, waiting[:] = list(waiting), []
        for piece in shown:
            self.writer.take(piece)
        return bool(shown) and shown[-1].finish_reason is not None


def sample_heading(row: int, n_rows: int) -> str:
    """What stands above one of several samples on a terminal."""
    return f"── sample {row} of {n_rows} ──"


class TextWriter:
    """The text alone: to the byte in a pipe, harmless on a terminal.

    Several samples end with a line's end each and are parted by a line with `separator`, on a
    terminal by a heading.
    """

    def __init__(self, n_rows: int, separator: str, echo: str = "") -> None:
        self.terminal = sys.stdout.isatty()
        self.n_rows, self.separator, self.echo = n_rows, separator, echo

    def begin(self, row: int) -> None:
        if self.terminal and self.n_rows > 1:
            self._write(f"{sample_heading(row, self.n_rows)}\n")
        elif row:
            self._write(f"{self.separator}\n")
        self._write(self.echo)

    def take(self, piece: Piece) -> None:
        self._write(piece.text)

    def close(self, held: str) -> None:
        self._write(held)
        if self.terminal or self.n_rows > 1:
            self._write("\n")

    def _write(self, text: str) -> None:
        if self.terminal:
            sys.stdout.write(harmless(text))
        else:
            sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()


class TintWriter:
    """The text with each token tinted by its probability, for a terminal."""

    def __init__(self, n_rows: int, color: str, echo: Echo | None) -> None:
        from llmcli.render.console import console
        from llmcli.render.tint import legend

        self.n_rows, self.echo = n_rows, echo
        self.console = console(color)
        self.console.print(legend(self.console.color_system is not None))

    def begin(self, row: int) -> None:
        self.prob = 1.0
        if self.n_rows > 1:
            self.console.print(sample_heading(row, self.n_rows), style="dim")
        if self.echo:
            self._show(self.echo.before(0), None)  # what no token came before has no probability
            for text, step in zip(self.echo.texts, self.echo.steps, strict=True):
                self._tint(text, step)

    def take(self, piece: Piece) -> None:
        self._tint(piece.text, piece.step)

    def close(self, held: str) -> None:
        self._show(held, self.prob)
        self.console.print()

    def _tint(self, text: str, step: Step) -> None:
        """Several tokens may make one character: the least probable of them gives the tint."""
        self.prob = min(self.prob, math.exp(step.facts.chosen.logprob))
        if text:
            self._show(text, self.prob)
            self.prob = 1.0

    def _show(self, text: str, prob: float | None) -> None:
        from llmcli.render.tint import tinted

        self.console.print(tinted(text, prob), end="")


class TsvWriter:
    """The probabilities of each step as rows, for a pipe; echoed steps of the prompt first."""

    def __init__(self, opened: Opened, echoed: Sequence[Step]) -> None:
        from llmcli.render.probs import TSV_HEADER

        self.opened = opened
        print(TSV_HEADER, flush=True)
        for step in echoed:
            self._rows("prompt", step)

    def begin(self, row: int) -> None:
        self.row = row

    def take(self, piece: Piece) -> None:
        self._rows(str(self.row), piece.step)

    def close(self, held: str) -> None:
        pass

    def _rows(self, sample: str, step: Step) -> None:
        from llmcli.render.probs import tsv

        drawn = sample != "prompt"  # whose tokens stand in the text, and were forced on nobody
        rows, facts = candidates(step, self.opened, drawn), step.facts
        kept = facts.kept if drawn else None
        told = tsv(sample, step.index, rows, facts.entropy_bits, kept, step.forced and drawn)
        print(told, end="", flush=True)


class PictureWriter:
    """The probabilities of each step as bars beside the text so far, for a terminal."""

    def __init__(
        self,
        opened: Opened,
        n_rows: int,
        prompt: str,
        color: str,
        echoed: Sequence[tuple[str, Step]],
    ) -> None:
        from llmcli.render.console import console
        from llmcli.render.probs import legend

        self.opened, self.n_rows, self.prompt = opened, n_rows, prompt
        self.console = console(color)
        self.width = min(self.console.width, 120)
        self.console.print(legend(self.width))
        self.titled = n_rows > 1 or bool(echoed)
        self.echo = prompt if echoed else ""
        if echoed:
            self.console.print("── the prompt, by position ──", style="bold")
        for before, step in echoed:
            self._picture(before, step, drawn=False)

    def begin(self, row: int) -> None:
        self.text = ""
        self.before = self.prompt  # the text that a step follows, a stop that is held back included
        self.stream = TextStream(self.opened.tokenizer)
        if self.titled:
            alone = "── what follows, by step ──"
            heading = sample_heading(row, self.n_rows) if self.n_rows > 1 else alone
            self.console.print(heading, style="bold")

    def take(self, piece: Piece) -> None:
        self._picture(self.before, piece.step, drawn=True)
        self.before += self.stream.feed(piece.step.id)
        self.text += piece.text

    def close(self, held: str) -> None:
        self.console.print()
        self.console.file.write(harmless(self.echo + self.text + held) + "\n")

    def _picture(self, before: str, step: Step, drawn: bool) -> None:
        from llmcli.render.probs import picture

        rows, facts = candidates(step, self.opened, drawn), step.facts
        lines = picture(
            step.index, before, rows, facts.entropy_bits, facts.kept if drawn else None,
            self.width, step.forced and drawn,
        )  # fmt: skip
        self.console.print(lines, end="")


class JsonWriter:
    """Keeps all steps, and prints one object at the end."""

    def __init__(self, opened: Opened, n_rows: int, header: dict[str, Any]) -> None:
        self.opened, self.header = opened, header
        self.samples = [Sample() for _ in range(n_rows)]

    def take(self, piece: Piece) -> None:
        self.samples[piece.step.row].pieces.append(piece)

    def end(self, held: Sequence[str]) -> None:
        for sample, rest in zip(self.samples, held, strict=True):
            sample.rest = rest
        sys.stdout.write(strict(run_json(self.header, self.samples, self.opened)) + "\n")


class JsonlWriter:
    """One line per event, as it happens: start, step, end of a sample, done.

    Beside another run (`baseline` is not None) each step and end says which of the two it is of,
    and the changed run's writer alone tells of the start and of what comes last.
    """

    def __init__(
        self, opened: Opened, n_rows: int, header: dict[str, Any], baseline: bool | None = None
    ) -> None:
        self.opened, self.header = opened, header
        self.of_run = {} if baseline is None else {"baseline": baseline}
        self.samples = [Sample() for _ in range(n_rows)]
        if not baseline:
            self.event("start", header)

    def take(self, piece: Piece) -> None:
        row = piece.step.row
        self.samples[row].pieces.append(piece)
        token = drawn_json(piece.step, self.opened)
        self.event("step", {"sample": row, **self.of_run, "new_text": piece.text, **token})
        if piece.finish_reason:
            self._end(row)

    def end(self, held: Sequence[str]) -> None:
        self.end_samples(held)
        self.done()

    def end_samples(self, held: Sequence[str]) -> None:
        """The ends of samples that were interrupted."""
        for row, (sample, rest) in enumerate(zip(self.samples, held, strict=True)):
            if sample.finish_reason is None:
                sample.rest = rest
                self._end(row)

    def done(self) -> None:
        self.event("done", timings(self.header, times_of(self.samples)))

    def _end(self, row: int) -> None:
        sample = self.samples[row]
        ended = {"text": sample.text, "finish_reason": sample.finish_reason}
        self.event("end", {"sample": row, **self.of_run, **ended})

    def event(self, event: str, values: dict[str, Any]) -> None:
        values = {key: value for key, value in values.items() if key != "schema"}
        line = strict({"schema": self.header["schema"], "event": event, **values})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def run_json(header: dict[str, Any], samples: Sequence[Sample], opened: Opened) -> dict[str, Any]:
    """All that JSON tells of a run."""
    return {
        **header,
        "samples": samples_json(samples, opened),
        **timings(header, times_of(samples)),
    }


def samples_json(samples: Sequence[Sample], opened: Opened) -> list[dict[str, Any]]:
    """What JSON tells of each row."""
    return [
        {
            "text": sample.text,
            "finish_reason": sample.finish_reason,
            "tokens": [drawn_json(piece.step, opened) for piece in sample.pieces],
        }
        for sample in samples
    ]


def times_of(samples: Sequence[Sample]) -> list[float]:
    """When each step was done, in order."""
    return sorted(piece.step.time_s for sample in samples for piece in sample.pieces)


def as_json(step: Step, opened: Opened) -> dict[str, Any]:
    """A step as JSON has it, but for its place; `bytes` where the token alone is not UTF-8."""

    def choice(c: Choice) -> dict[str, Any]:
        data = opened.token_bytes(c.id)
        text = data.decode("utf-8", "replace")
        whole = {} if text.encode() == data else {"bytes": list(data)}
        return {
            "id": c.id, "text": text, **whole, "logprob": c.logprob,
            "drawn_logprob": c.drawn_logprob,
        }  # fmt: skip

    facts = step.facts
    return {
        **choice(facts.chosen),
        "rank": facts.rank,
        "entropy_bits": facts.entropy_bits,
        "kept": facts.kept,
        "top": [choice(c) for c in facts.top],
        "drawn_top": [choice(c) for c in facts.drawn_top],
    }


def drawn_json(step: Step, opened: Opened) -> dict[str, Any]:
    """A step of a run as JSON has it."""
    told = {"step": step.index, "forced": step.forced, "time_s": step.time_s}
    return told | as_json(step, opened)


def candidates(step: Step, opened: Opened, drawn: bool) -> list[Candidate]:
    """The step's most probable tokens in order, and the chosen one, wherever it ranks."""
    from llmcli.render.probs import Candidate

    def shown(choice: Choice, rank: int) -> Candidate:
        return Candidate(
            id=choice.id,
            token=quoted(opened.token_bytes(choice.id)),
            prob=math.exp(choice.logprob),
            drawn_prob=math.exp(choice.drawn_logprob) if drawn else None,
            rank=rank,
            chosen=choice.id == step.id,
        )

    facts = step.facts
    rows = [shown(choice, rank) for rank, choice in enumerate(facts.top)]
    if not any(row.chosen for row in rows):
        rows.append(shown(facts.chosen, facts.rank))
    return rows
