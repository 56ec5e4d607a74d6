"""The options of `inspect` alone: where to look, what one view takes, which recorded run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmcli.commands.options import seed


def _view_names(incomplete: str) -> list[tuple[str, str]]:
    from llmcli.inspection.catalogue import VIEWS

    return [(name, e.about) for name, e in VIEWS.items() if name.startswith(incomplete)]


Views = Annotated[
    list[str] | None,
    typer.Option(
        "--view", metavar="NAME", help="What to show; may be repeated.", autocompletion=_view_names
    ),
]
TensorsFile = Annotated[
    Path | None,
    typer.Option(
        "--tensors", metavar="FILE", rich_help_panel="Output",
        help="Write all values to a .safetensors file.",
    ),
]  # fmt: skip
Seed = Annotated[int | None, seed("0, or the trace's")]
SaveFile = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE", help="Keep the picture, as .svg or .html."),
]


@dataclass(frozen=True, slots=True)
class Where:
    """What many views look at; how much of it they show."""

    layer: Annotated[
        int | None,
        typer.Option(
            "--layer", metavar="L", rich_help_panel="Where to look",
            help="Which layer, from 0; -1 is the last.",
        ),
    ] = None  # fmt: skip
    head: Annotated[
        int | None,
        typer.Option("--head", metavar="H", help="Which head, from 0; -1 is the last."),
    ] = None
    position: Annotated[
        int | None,
        typer.Option(
            "--position", metavar="P", help="Which token of the prompt, from 0. [default: the last]"
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            "--token", metavar="T",
            help="One token: a word is taken after a space, '\"quoted\"' as it is; or id:N.",
        ),
    ] = None  # fmt: skip
    versus: Annotated[
        str | None,
        typer.Option("--versus", metavar="U", help="The token to compare --token with."),
    ] = None
    analogy: Annotated[
        str | None,
        typer.Option(
            "--analogy", metavar="SUM",
            help='Tokens to add up, as in "king - man + woman": each after a space, or in quotes.',
        ),
    ] = None  # fmt: skip
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", min=1, help="How much of a list to show.")
    ] = None


@dataclass(frozen=True, slots=True)
class OneView:
    """What only one view takes."""

    clean: Annotated[
        str | None,
        typer.Option(
            "--clean", metavar="TEXT", rich_help_panel="For one view",
            help="The prompt, for --view patching.",
        ),
    ] = None  # fmt: skip
    corrupt: Annotated[
        str | None,
        typer.Option("--corrupt", metavar="TEXT", help="The prompt to patch, as many tokens long."),
    ] = None
    positive: Annotated[
        Path | None,
        typer.Option(
            "--positive", metavar="FILE", help="Examples, one a line, of what to steer to."
        ),
    ] = None
    negative: Annotated[
        Path | None,
        typer.Option(
            "--negative", metavar="FILE", help="Examples, one a line, of what to steer from."
        ),
    ] = None
    method: Annotated[
        Literal["mean", "pca"] | None,
        typer.Option(
            "--method", help="Mean difference, or first component of the pairs. [default: mean]"
        ),
    ] = None
    save_vector: Annotated[
        Path | None,
        typer.Option("--save-vector", metavar="FILE", help="Keep the vector, as .safetensors."),
    ] = None
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            metavar="N,N",
            help="Strengths to try, as multiples of --steer's. [default: 0.25,0.5,1,2]",
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", metavar="N", min=1, help="Tokens of a sweep's texts. [default: 40]"
        ),
    ] = None
    page: Annotated[
        int | None,
        typer.Option("--page", metavar="N", help="Which page of --view explain, from 1."),
    ] = None
    all: Annotated[bool, typer.Option("--all", help="All pages of --view explain.")] = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded run to look into, or a step of it."""

    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", metavar="FILE", rich_help_panel="Traces", help="Look into a recorded run."
        ),
    ] = None
    step: Annotated[
        int | None,
        typer.Option("--step", min=0, metavar="N", help="Which step of the run, computed again."),
    ] = None
    run: Annotated[
        int | None,
        typer.Option("--run", min=0, metavar="R", help="Which run of the trace. [default: 0]"),
    ] = None
    diff: Annotated[
        Path | None,
        typer.Option("--diff", metavar="FILE", help="Another trace to set beside --trace."),
    ] = None
