"""Options that several commands share: one name and one meaning each, declared once."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from llmcli.config import RANGES
from llmcli.errors import UsageError
from llmcli.trace import CHANGES


def model_names(incomplete: str) -> list[str]:
    """Those that begin so: what a shell completes."""
    from llmcli.hub import known_names

    return [name for name in known_names() if name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", envvar="LLMCLI_MODEL", help="A model's name or folder.", metavar="MODEL",
        autocompletion=model_names,
    ),
]  # fmt: skip


class ColorMode(StrEnum):
    """When to use colour."""

    auto = "auto"
    always = "always"
    never = "never"


class DType(StrEnum):
    """What a model computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantize(StrEnum):
    """In how many bits weights are kept."""

    int8 = "int8"
    int4 = "int4"


def stored_as(storage: str) -> tuple[DType, Quantize | None]:
    """--dtype and --quantize that store weights as a run says it did: "float16", "int8", ..."""
    if storage in set(Quantize):
        return DType.auto, Quantize(storage)
    return DType(storage), None


class Device(StrEnum):
    """Where a model computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


def spelled(name: str) -> str:
    """A parameter as it is typed; the prompt has no option."""
    return "a prompt" if name == "prompt" else f"--{name.replace('_', '-')}"


def typed_names(ctx: typer.Context) -> list[str]:
    """The parameters that were typed: not left to a default or to the environment."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def pictured(color: str) -> bool:
    """Whether stdout is to be looked at: on a terminal, or where colour is insisted on."""
    return sys.stdout.isatty() or color == ColorMode.always


def words_of(typed: Collection[str], **values: object) -> tuple[str, ...]:
    """Those of some options that were typed, as they are typed."""
    return tuple(
        word for name in values if name in typed for word in (spelled(name), str(values[name]))
    )


Color = Annotated[
    ColorMode,
    typer.Option("--color", help="When to use colour; always: as on a terminal, even in a pipe."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Baseline = Annotated[
    bool, typer.Option("--baseline", help="Set the untouched run beside the changed one.")
]


# --- several options as one parameter ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compute:
    """Where a model shall compute, in what and with how much help."""

    dtype: Annotated[
        DType,
        typer.Option(
            "--dtype", rich_help_panel="Computing",
            help="What to compute in; on a CPU float16 is for weights alone.",
        ),
    ] = DType.auto  # fmt: skip
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            "--quantize", help="Keep weights in 8 or 4 bits: smaller, faster, less exact."
        ),
    ] = None
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.auto
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, metavar="N", help="How many threads to use."),
    ] = None


def _number(name: str, metavar: str, help: str) -> Any:
    """The option of a number that has a range in the config."""
    low, high = (int(bound) if float(bound).is_integer() else bound for bound in RANGES[name])
    most = None if high == math.inf else high
    return typer.Option(spelled(name), metavar=metavar, min=low, max=most, help=help)


def seed(default: str) -> Any:
    """The option of what is drawn with; where it is not typed, `default` says with what."""
    told = f"The same seed gives the same draws. [default: {default}]"
    return typer.Option("--seed", min=0, metavar="N", help=told)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How the next token is chosen, where it is said; the fields are those of config.Sampling.

    None is what the model's generation_config.json says.
    """

    bias: Annotated[
        list[str] | None,
        typer.Option(
            "--bias", metavar="TOKEN=N", rich_help_panel="Sampling",
            help='Add to a logit: " king=+2", 464=-inf.',
        ),
    ] = None  # fmt: skip
    repetition_penalty: Annotated[
        float | None,
        _number(
            "repetition_penalty", "N",
            "Divide the logits of tokens seen before. [default: the model's, else 1]",
        ),
    ] = None  # fmt: skip
    presence_penalty: Annotated[
        float | None,
        _number("presence_penalty", "N", "Subtract this from the logit of each token seen before."),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        _number("frequency_penalty", "N", "Subtract this for each time a token was seen."),
    ] = None
    penalty_window: Annotated[
        int | None,
        _number(
            "penalty_window", "N",
            "Penalties see the last N tokens, the prompt's too; 0: all. [default: 0]",
        ),
    ] = None  # fmt: skip
    temperature: Annotated[
        float | None,
        _number(
            "temperature", "N",
            "Below 1 safer, above 1 wilder; 0 is greedy. [default: the model's, else 0.8]",
        ),
    ] = None  # fmt: skip
    top_k: Annotated[
        int | None,
        _number(
            "top_k", "K",
            "Draw from the K most probable tokens; 0: all. [default: the model's, else 0]",
        ),
    ] = None  # fmt: skip
    top_p: Annotated[
        float | None,
        _number(
            "top_p", "P",
            "Draw from the fewest tokens whose probabilities add up to P. "
            "[default: the model's, else 0.95]",
        ),
    ] = None  # fmt: skip
    min_p: Annotated[
        float | None,
        _number(
            "min_p", "P",
            "Draw from tokens at least P times as probable as the likeliest. [default: 0]",
        ),
    ] = None  # fmt: skip
    typical_p: Annotated[
        float | None,
        _number(
            "typical_p", "P",
            "Draw from the tokens of most typical surprisal that add up to P. [default: 1]",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interventions:
    """What to change in the forward pass; `inspection.grammar` is the language of most."""

    ablate: Annotated[
        list[str] | None,
        typer.Option(
            "--ablate", metavar="PART", rich_help_panel="Changing the run",
            help="Silence L3.H5, L3.attn, L3.mlp, L3.N127, L3 or pos_embed; :mean for its mean.",
        ),
    ] = None  # fmt: skip
    knockout: Annotated[
        list[str] | None,
        typer.Option(
            "--knockout", metavar="EDGE", help="Forbid to look: 'L2.H3: 7 -> 2' or '* -> \"Lily\"'."
        ),
    ] = None
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer", metavar="VECTOR", help='Push the stream: \'" water" - " fire" @ L5 * 1\'.'
        ),
    ] = None
    steer_prompt: Annotated[
        bool,
        typer.Option("--steer-prompt", help="Steer the prompt too, not only what is generated."),
    ] = False
    patch: Annotated[
        list[str] | None,
        typer.Option(
            "--patch", metavar="SWAP", help="Transplant: 'L2.resid_mid@5 from \"other prompt\"'."
        ),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", metavar="FILE",
            help="Take means over this file's text instead of the prompt.",
        ),
    ] = None  # fmt: skip

    def __bool__(self) -> bool:
        return bool(self.ablate or self.knockout or self.steer or self.patch)

    @property
    def words(self) -> tuple[str, ...]:
        """As they are typed."""
        words = ["--steer-prompt"] * self.steer_prompt
        for name in CHANGES:
            for entry in getattr(self, name) or ():
                words += [f"--{name}", entry]
        words += ["--reference", str(self.reference)] if self.reference else []
        return tuple(words)

    def check_baseline(self, baseline: bool) -> None:
        """Raises UsageError where there is nothing that --baseline could be set beside."""
        if baseline and not self:
            raise UsageError(
                "--baseline sets a changed run beside the untouched one, and nothing is changed.",
                "Change something, for example with --ablate L3.H2.",
            )


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as Typer takes it: a parameter that is a dataclass is an option for each field.

    The fields' defaults are those of the parameter's own default.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter)
            continue
        groups[parameter.name] = parameter.annotation
        for name, hint in get_type_hints(parameter.annotation, include_extras=True).items():
            default = getattr(parameter.default, name)
            parameters.append(parameter.replace(name=name, annotation=hint, default=default))

    @wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
