"""`generate --baseline`: the untouched text beside the changed one, and how far apart they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcli.commands.changes import tap_for
from llmcli.commands.job import Job
from llmcli.commands.writers import JsonlWriter, run_json, sample_heading, samples_json
from llmcli.streaming import Piece, Sample
from llmcli.strict_json import strict

if TYPE_CHECKING:
    from llmcli.gpt.model import GPT
    from llmcli.gpt.tap import Patch
    from llmcli.inspection.compare import Comparison


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
            compare(
                run, changed.ids, plain.ids, bool(changed.finish_reason and plain.finish_reason)
            )
            for changed, plain in zip(self.changed, self.plain, strict=True)
        ]


def print_json(pair: WithBaseline, head: dict[str, Any]) -> None:
    """One object: the changed run as any run is told, the untouched one, and the comparisons."""
    from llmcli.render.forms import plain

    opened = pair.job.opened
    told = {
        **run_json(head, pair.changed, opened),
        "baseline": {"samples": samples_json(pair.plain, opened)},
        "comparisons": [plain(comparison) for comparison in pair.compared()],
    }
    sys.stdout.write(strict(told) + "\n")


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

    n = len(pair.changed)
    for row, comparison in enumerate(pair.compared()):
        columns = [
            Column(name, [piece.text for piece in sample.pieces], sample.rest, perplexity)
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
        if n > 1:
            out.print(sample_heading(row, n), style="bold")
        width = min(out.width, 120)
        out.print(picture(columns, first, kl, echo, width), end="", soft_wrap=False, width=width)
