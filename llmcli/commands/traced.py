"""`generate --trace`: a run whose every step is on its way to a file before anyone sees it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcli import __version__
from llmcli.checkpoint import file_hashes
from llmcli.commands.apart import Work, apart
from llmcli.commands.files import check_writable, writing
from llmcli.commands.job import Job, Runner
from llmcli.commands.loading import Opened, model_json
from llmcli.commands.say import say
from llmcli.errors import LLMCLIError, UnsupportedModelError, UsageError, shown_path
from llmcli.streaming import Piece, TextStream
from llmcli.strict_json import strict
from llmcli.tokenizer_file import tokenizer_sha256
from llmcli.trace import SCHEMA, SUFFIXES, Reader, Writer
from llmcli.trace_lines import Begun, LensLayer, json_text, lens_text, step_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcli.commands.changes import Changes
    from llmcli.gpt.facts import Rows
    from llmcli.gpt.model import GPT
    from llmcli.gpt.sampling import Left, Row
    from llmcli.gpt.tap import Tap

    Numbers = bytes | NDArray[Any]  # an array, or its bytes

Lens = Callable[[int, int], tuple[LensLayer, ...]]
TOP = 5  # of the likeliest tokens each step records at least


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where a run is to be kept, and whether with the lens of each layer."""

    path: Path
    lens: bool = False
    quiet: bool = True

    @property
    def points(self) -> Sequence[str]:
        """What the run's tap must record."""
        if not self.lens:
            return ()
        from llmcli.inspection.step_lens import POINTS

        return POINTS


def tracing_to(path: Path | None, lens: bool, quiet: bool) -> Tracing | None:
    """What --trace and --trace-lens ask for, the file's place looked at before any work."""
    if path is None:
        if lens:
            raise UsageError("--trace-lens needs --trace.", "For example: --trace run.jsonl")
        return None
    check_writable("--trace", path, SUFFIXES)
    if path.is_file() and path.stat().st_size and not _is_trace(path):
        raise UsageError(
            f"--trace {shown_path(path)} is there already, and no trace.", "Name another file."
        )
    return Tracing(path, lens, quiet)


def _is_trace(path: Path) -> bool:
    try:
        Reader(path).close()
    except UnsupportedModelError:  # a later llmcli's
        return True
    except LLMCLIError:
        return False
    return True


@contextmanager
def traced(
    job: Job,
    tracing: Tracing | None,
    model: GPT,
    changes: Changes,
    tap: Tap,
    names: Mapping[int, str | int] | None = None,
) -> Iterator[Runner]:
    """`job.run` as it is, or such that all it runs is written to the trace; closed at the end.

    `names` says what the prompts of `--prompts` are called, by their place in the file.
    """
    if tracing is None:
        yield job.run
        return
    if tracing.path.is_file() and not tracing.quiet:
        say(f"The trace in {shown_path(tracing.path)} is replaced.")
    with writing(tracing.path):
        writer = Writer(tracing.path)
        writer.write(strict(header(job, model, changes, tracing.lens)))  # a bias of -inf is null
    from llmcli.gpt.place import spares_a_core

    with writer.file:  # another process may have its own, and close that
        lines: Work = Lines(writer, job.opened, max(TOP, job.top_probs or 0))
        if spares_a_core(model.device):  # else it would only hold up the threads that compute
            lines = apart(lines)
        try:
            yield Recorder(job, lines, tracing.path, names or {}, _lens(tracing, model, tap)).run
        finally:
            with writing(tracing.path):
                lines.close()


class Raw(NamedTuple):
    """What a step's line is made of; `apart` takes it as a bare tuple."""

    run: int
    step: int
    id: int
    forced: bool
    time_s: float
    finish_reason: str | None
    lens: str  # as JSON
    logits: Numbers  # float32 (V,)
    kept_ids: Numbers  # int64: those that the filters left
    kept_logprobs: Numbers  # float32


class Lines:
    """The lines of a trace, written: ready ones, and those of steps, which are made here."""

    def __init__(self, writer: Writer, opened: Opened, top_probs: int) -> None:
        self.writer, self.top_probs = writer, top_probs
        self.texts = cache(lambda id: json_text(opened.token_bytes(id)))

    def take(self, thing: str | tuple[Any, ...]) -> None:
        self.writer.write(thing if isinstance(thing, str) else self._line(Raw(*thing)))

    def close(self) -> None:
        self.writer.close()

    def _line(self, raw: Raw) -> str:
        import numpy as np

        from llmcli.gpt.facts import row_facts
        from llmcli.gpt.sampling import Left

        ids = np.frombuffer(raw.kept_ids, np.int64)
        kept = Left(ids, np.frombuffer(raw.kept_logprobs, np.float32))
        known = row_facts(np.frombuffer(raw.logits, np.float32), kept, raw.id, self.top_probs)
        return step_line(
            raw.run, raw.step, known, raw.time_s, raw.forced, raw.finish_reason, raw.lens,
            self.texts,
        )  # fmt: skip


class Recorder:
    """Runs a job, hands on each step to be written down, and then to who wants its text."""

    def __init__(
        self,
        job: Job,
        lines: Work,
        path: Path,
        names: Mapping[int, str | int],
        lens: Callable[[], Lens] | None,  # a new one for each batch
    ) -> None:
        self.job, self.lines, self.path, self.names, self.lens = job, lines, path, names, lens
        self.started = time.perf_counter()
        self.n_texts = 0  # begun so far

    def run(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        draws: Sequence[tuple[int, int]],
        streams: Sequence[TextStream],
        tap: Tap | None = None,
    ) -> Iterator[Piece]:
        """As `Job.run`."""
        first, start_s = self.n_texts, time.perf_counter() - self.started
        for ids, draw in zip(prompts, draws, strict=True):
            self._begin(ids, draw, start_s)
        lens = self.lens() if self.lens else None
        rows: Iterator[tuple[Row, Left]] = iter(())  # those of the pieces that come next

        def look(logits: Rows, kept: Sequence[Left]) -> None:
            nonlocal rows
            rows = zip(logits, kept, strict=True)

        for piece in self.job.run(model, prompts, draws, streams, tap, look):
            step, (logits, kept) = piece.step, next(rows)
            layers = lens_text(lens(step.index, step.id)) if lens else ""
            self._write(
                (first + step.row, step.index, step.id, step.forced, start_s + step.time_s,
                 piece.finish_reason, layers, logits, kept.ids, kept.logprobs)
            )  # fmt: skip
            yield piece

    def _begin(self, ids: Sequence[int], draw: tuple[int, int], time_s: float) -> None:
        tokenizer = self.job.opened.tokenizer
        text = tokenizer.decode(list(ids[len(tokenizer.prefix_ids) :]))
        begun = Begun(self.n_texts, tuple(ids), text, self.names.get(draw[0]), draw, time_s)
        self.n_texts += 1
        self._write(begun.line())

    def _write(self, thing: str | tuple[Any, ...]) -> None:
        with writing(self.path):
            self.lines.take(thing)


def header(job: Job, model: GPT, changes: Changes, lens: bool) -> dict[str, Any]:
    """The first line: all that is needed to compute the run again, and to see what has changed."""
    opened = job.opened
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model_json(opened, model) | hashes(opened),
        "seed": job.seed,
        "options": {
            **job.options,
            "hidden_ids": sorted(job.hidden_ids),
            **changes.words,
        },
        "read": changes.hashes(),
        "lens": lens,
        "versions": versions(),
    }


def hashes(opened: Opened) -> dict[str, Any]:
    """What tells one model from another: the weights, by samples of them, the tokenizer."""
    return {
        "files": file_hashes(opened.folder),
        "tokenizer_sha256": tokenizer_sha256(opened.folder),
    }


def versions() -> dict[str, str]:
    """What computes here."""
    from llmcli.gpt.place import torch_version

    return {
        "llmcli": __version__,
        "torch": torch_version(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _lens(tracing: Tracing, model: GPT, tap: Tap) -> Callable[[], Lens] | None:
    if not tracing.lens:
        return None
    from llmcli.gpt.tap import Probe
    from llmcli.inspection.step_lens import StepLens

    assert isinstance(tap, Probe)  # it records tracing.points
    return lambda: StepLens(model, tap).of
