"""What --trace costs: time per decode step and bytes per step, with and without it.

Both ways take turns in one process, so that whatever else the machine does hits both alike; the
median of the ratios of neighbours is told.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from llmcli.commands.changes import read_changes, tap_for
from llmcli.commands.job import Job
from llmcli.commands.loading import Compute, load, open_model
from llmcli.commands.options import Interventions
from llmcli.commands.traced import Tracing, traced
from llmcli.config import SENSIBLE


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="fable")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=8)


def run(arguments: argparse.Namespace) -> None:
    opened = open_model(arguments.model)
    ids = [*opened.tokenizer.prefix_ids, *opened.tokenizer.encode("Once upon a time")]
    job = Job(opened, SENSIBLE, 1, arguments.steps)
    model = load(opened, Compute(), 1, len(ids) + arguments.steps)

    def seconds(tracing: Tracing | None) -> float:
        tap = tap_for({}, model, tracing.points if tracing else ())
        with traced(job, tracing, model, read_changes(opened, Interventions()), tap) as run:
            times = [time.perf_counter() for _ in run(model, [ids], [(0, 0)], job.streams(1), tap)]
        return times[-1] - times[0]

    with tempfile.TemporaryDirectory() as folder:
        plain, gz = (Path(folder) / name for name in ("run.jsonl", "run.jsonl.gz"))
        ways = {
            "--trace run.jsonl": Tracing(plain),
            "--trace run.jsonl.gz": Tracing(gz),
            "--trace-lens": Tracing(plain, lens=True),
        }
        seconds(None)
        ratios: dict[str, list[float]] = {way: [] for way in ways}
        base = []
        for _ in range(arguments.rounds):
            for way, tracing in ways.items():
                base.append(seconds(None))
                ratios[way].append(seconds(tracing) / base[-1])
        step_us = statistics.median(base) / arguments.steps * 1e6
        print(f"without: {step_us:.0f} us a step")
        for way, tracing in ways.items():
            seconds(tracing)
            more = statistics.median(ratios[way]) - 1
            nbytes = tracing.path.stat().st_size / arguments.steps
            print(f"{way}: {100 * more:+.1f} %, {nbytes:.0f} bytes a step")
