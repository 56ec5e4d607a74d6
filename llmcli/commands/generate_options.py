"""The options of `generate` alone: where a text ends, many prompts, traces, what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmcli.commands.options import Color, ColorMode, Json, Quiet, seed

MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="Stop after so many tokens."),
]
Seed = Annotated[int | None, seed("random")]
Force = Annotated[
    list[str] | None,
    typer.Option(
        "--force", metavar="STEP=TOKEN",
        help='Take this token at this step: "3= cat", 3=464 by id.',
    ),
]  # fmt: skip
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Compute all tokens anew at each step: slower.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only tell the memory needed and the speed expected.")
]


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends a text, beside its length."""

    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", metavar="TEXT", rich_help_panel="Where to stop",
            help="End before this text. Repeatable.",
        ),
    ] = None  # fmt: skip
    stop_id: Annotated[
        list[int] | None,
        typer.Option("--stop-id", metavar="ID", help="End at this token. Repeatable."),
    ] = None
    keep_stop: Annotated[
        bool, typer.Option("--keep-stop", help="Print the stop text or token, too.")
    ] = False
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token, and print it.")
    ] = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is continued, beside a prompt as it is and once."""

    truncate_prompt: Annotated[
        Literal["left", "right"] | None,
        typer.Option(
            "--truncate-prompt", rich_help_panel="Prompts",
            help="Which end to drop of a prompt that the context does not hold.",
        ),
    ] = None  # fmt: skip
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples", min=1, max=4096, metavar="N",
            help="Continue the prompt this many times.",
        ),
    ] = 1  # fmt: skip
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE",
            help="Many prompts: one a line, or JSON lines with `prompt`; - is stdin.",
        ),
    ] = None  # fmt: skip
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, max=4096, metavar="N", help="How many at once. [default: 16]"
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE",
            help="Where the results of --prompts go; finished ones are skipped.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True, slots=True)
class Traces:
    """A run to record, or one that was recorded."""

    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", metavar="FILE", rich_help_panel="Traces",
            help="Keep every step, as .jsonl or .jsonl.gz.",
        ),
    ] = None  # fmt: skip
    trace_lens: Annotated[
        bool, typer.Option("--trace-lens", help="Keep what each layer would have said, too.")
    ] = False
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay", metavar="FILE", help="Compute a recorded run again: is it the same here?"
        ),
    ] = None
    resample: Annotated[
        bool, typer.Option("--resample", help="Draw its tokens again: is the text the same?")
    ] = False
    from_step: Annotated[
        int | None,
        typer.Option(
            "--from-step", min=0, metavar="N",
            help="Go on from this step of --replay, with changes.",
        ),
    ] = None  # fmt: skip
    run: Annotated[
        int | None, typer.Option("--run", min=0, metavar="R", help="Which run of --replay.")
    ] = None


@dataclass(frozen=True, slots=True)
class Show:
    """What of a run is shown, and how."""

    top_probs: Annotated[
        int,
        typer.Option(
            "--top-probs", min=0, max=100, metavar="K", rich_help_panel="Output",
            help="Show the K likeliest tokens at each step.",
        ),
    ] = 0  # fmt: skip
    color_probs: Annotated[
        bool, typer.Option("--color-probs", help="Tint each token by its probability.")
    ] = False
    echo: Annotated[
        bool, typer.Option("--echo", help="Print the prompt too, with its own probabilities.")
    ] = False
    separator: Annotated[
        str,
        typer.Option("--separator", metavar="TEXT", help="The line between samples in a pipe."),
    ] = "---"
    json: Json = False
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one JSON line per event.")] = False
    stats: Annotated[
        bool, typer.Option("--stats", help="Print timings on stderr, even with -q.")
    ] = False
    color: Color = ColorMode.auto
    quiet: Quiet = False

    @property
    def probs(self) -> bool:
        """Whether a step's probabilities are asked for, be it with no others than its own."""
        return bool(self.top_probs or self.json or self.jsonl or self.color_probs)
