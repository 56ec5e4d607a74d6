"""Options that several commands share: one name and one meaning each, declared once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", envvar="LLMCLI_MODEL", help="A model's name or folder.", metavar="MODEL"
    ),
]


class ColorMode(StrEnum):
    """When to use colour."""

    auto = "auto"
    always = "always"
    never = "never"


Color = Annotated[
    ColorMode,
    typer.Option("--color", help="When to use colour; always: as on a terminal, even in a pipe."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
