"""`generate --baseline`: the untouched text beside the changed one, and how far apart they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmcli.commands.changes import tap_for
from llmcli.commands.job import Job
from llmcli.commands.writers import JsonlWriter, JsonWriter
from llmcli.streaming import Piece

if TYPE_CHECKING:
    from llmcli.gpt.model import GPT
    from llmcli.gpt.tap import Patch
    from llmcli.inspection.compare import Comparison


@dataclass
class Sample:
    """One continuation: its pieces, and the text that no piece holds yet."""

    pieces: list[Piece] = field(default_factory=list)
    rest: str = ""

    @property
    def ids(self) -> list[int]:
        return [piece.step.id for piece in self.pieces]

    @property
    def ended(self) -> bool:
        """Whether it came to its end, and was not interrupted."""
        return bool(self.pieces) and self.pieces[-1].finish_reason is not None

    @property
    def texts(self) -> list[str]:
        return [piece.text for piece in self.pieces]


@dataclass(frozen=True)
class WithBaseline:
    """The same prompt and seed, changed and untouched."""

    job: Job
    model: GPT
    ids: Sequence[int]
    patch: Mapping[str, Patch]
    changed: list[Sample]
    plain: list[Sample]

    @classmethod
    def of(
        cls, job: Job, model: GPT, ids: Sequence[int], patch: Mapping[str, Patch], n: int
    ) -> WithBaseline:
        """Room for `n` samples of both."""
        return cls(job, model, ids, patch, *([Sample() for _ in range(n)] for _ in range(2)))

    @property
    def pieces(self) -> list[Piece]:
        """Those of the changed run."""
        return [piece for sample in self.changed for piece in sample.pieces]

    def generate(self, writers: Sequence[JsonlWriter] = ()) -> None:
        """Fill both, each watched by its writer, if any; on Ctrl-C what there is by then stays."""
        for run, (samples, patch) in enumerate(((self.changed, self.patch), (self.plain, {}))):
            n = len(samples)
            streams = self.job.streams(n)
            draws, tap = self.job.draws(n), tap_for(patch, self.model)
            try:
                for piece in self.job.run(self.model, [self.ids] * n, draws, streams, tap):
                    samples[piece.step.row].pieces.append(piece)
                    if writers:
                        writers[run].take(piece)
            finally:
                for sample, stream in zip(samples, streams, strict=True):
                    sample.rest = stream.flush()

    def compared(self) -> list[Comparison]:
        """Each changed sample held against its untouched one."""
        from llmcli.inspection.compare import compare
        from llmcli.inspection.run import Run

        run = Run(self.model, self.ids, self.job.opened.token_bytes, self.patch)
        return [
            compare(run, changed.ids, plain.ids, whole=changed.ended and plain.ended)
            for changed, plain in zip(self.changed, self.plain, strict=True)
        ]


def print_json(pair: WithBaseline, head: dict[str, Any]) -> None:
    """One object: the changed run as any run is told, the untouched one, and the comparisons."""
    from llmcli.render.forms import plain

    opened, n = pair.job.opened, len(pair.changed)
    writers = [JsonWriter(opened, n, head) for _ in range(2)]
    for writer, samples in zip(writers, (pair.changed, pair.plain), strict=True):
        for sample in samples:
            for piece in sample.pieces:
                writer.take(piece)
    held = [sample.rest for sample in pair.changed]
    baseline = {"samples": writers[1].samples([sample.rest for sample in pair.plain])}
    comparisons = [plain(comparison) for comparison in pair.compared()]
    writers[0].end(held, baseline=baseline, comparisons=comparisons)


def line_writers(pair: WithBaseline, head: dict[str, Any]) -> list[JsonlWriter]:
    """What tells of both runs as they happen, the changed one first."""
    opened, n = pair.job.opened, len(pair.changed)
    return [JsonlWriter(opened, n, head, baseline) for baseline in (False, True)]


def end_lines(pair: WithBaseline, writers: Sequence[JsonlWriter]) -> None:
    """The last lines: what was interrupted, the comparisons, and that all is done."""
    from llmcli.render.forms import plain

    for writer, samples in zip(writers, (pair.changed, pair.plain), strict=True):
        writer.end_samples([sample.rest for sample in samples])
    for row, comparison in enumerate(pair.compared()):
        writers[0].event("comparison", {"sample": row, **plain(comparison)})
    writers[0].done()


def show(pair: WithBaseline, title: str, color: str, as_picture: bool, echo: str) -> None:
    """Two columns for a person; in a pipe one text after the other, each under a `#` line."""
    from llmcli.render.beside import Column, picture, text

    for row, comparison in enumerate(pair.compared()):
        columns = [
            Column(name, sample.texts, sample.rest, perplexity)
            for name, sample, perplexity in (
                ("untouched", pair.plain[row], comparison.baseline_perplexity),
                (title, pair.changed[row], comparison.perplexity),
            )
        ]
        first, kl = comparison.first_difference, comparison.kl_bits
        if not as_picture:
            sys.stdout.buffer.write(text(columns, first, kl, echo).encode())
            sys.stdout.flush()
            continue
        from llmcli.render.console import console

        out = console(color)
        if row:
            out.print()
        width = min(out.width, 120)
        out.print(picture(columns, first, kl, echo, width), end="", soft_wrap=False, width=width)
