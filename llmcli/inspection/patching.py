"""Where the difference between two prompts is carried: activation patching, place by place.

The corrupt prompt runs again and again, each time with one value of the clean prompt's run put in;
what that recovers of the clean prompt's logit difference is what the value carries ("Locating and
Editing Factual Associations in GPT", arXiv:2202.05262; "How to use and interpret activation
patching", arXiv:2404.15255).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmcli.errors import UsageError
from llmcli.inspection.ask import Ask
from llmcli.inspection.intervention import composed
from llmcli.inspection.model import text_flops
from llmcli.inspection.run import Run, assigned, batched
from llmcli.inspection.values import LONG_FLOPS, Row, Token, View, gflop

NOTES = (
    "measured: recovered is 1, or 100 %, where a value alone restores the clean prompt's "
    "difference of logits, 0 where it does nothing; below 0 and above 1 can be.",
    "A place is the residual stream entering a layer at one position; a head is its z at all "
    "positions. What several places carry together, none of them may recover alone.",
)
LITTLE = 0.1  # of a difference of logits
SAME = (
    "The two prompts hardly differ in this difference of logits: shares of so little are large, "
    "and say little."
)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A position of both prompts."""

    position: int
    clean: Token
    corrupt: Token


@dataclass(frozen=True, slots=True)
class StreamPatch(Row):
    """The stream entering a layer at a position, taken from the clean run."""

    key: ClassVar = ("layer", "position")

    layer: int
    position: int
    difference: float  # of the logits, with the value put in
    recovered: float


@dataclass(frozen=True, slots=True)
class HeadPatch(Row):
    """A head's z at all positions, taken from the clean run."""

    key: ClassVar = ("layer", "head")

    layer: int
    head: int
    difference: float
    recovered: float


@dataclass(frozen=True, slots=True)
class Patching(View):
    """Layers x positions, and heads: how much of the clean difference each recovers."""

    name: ClassVar[str] = "patching"
    compared: ClassVar = ("clean_difference", "corrupt_difference")

    n_tokens: int
    position: int
    token: Token
    versus: Token
    clean_difference: float  # logit of token minus logit of versus, at the position
    corrupt_difference: float
    prompts: tuple[TokenPair, ...]
    places: tuple[StreamPatch, ...]
    heads: tuple[HeadPatch, ...]
    notes: tuple[str, ...]


def cost(run: Run, ask: Ask) -> str | None:
    """What the view is about to compute, in words, where that takes a while."""
    L, T, H = run.config.n_layer, len(run.ids), run.config.n_head
    flops = L * (T + H) * text_flops(run.config, T)
    said = f"{L} layers × ({T} places + {H} heads) × {T} tokens: {gflop(flops)}"
    return said if flops > LONG_FLOPS else None


def view(run: Run, ask: Ask) -> Patching:
    """`run` is of the clean prompt. Raises UsageError where there is nothing to recover."""
    if ask.token is None or ask.versus is None or ask.corrupt is None:
        raise UsageError(
            "--view patching needs a prompt to compare with and two tokens.",
            "For example: --clean 'Tom' --corrupt 'Sue' --token ' he' --versus ' she'",
        )
    if len(ask.corrupt) != len(run.ids):
        raise UsageError(
            f"The clean prompt has {len(run.ids)} tokens, the corrupt one {len(ask.corrupt)}.",
            "Patching puts position i of the one into position i of the other: make them equal.",
        )
    corrupt = run.on(ask.corrupt)
    clean_difference, corrupt_difference = (_of(one, ask) for one in (run, corrupt))
    span = clean_difference - corrupt_difference
    if abs(span) < 1e-6:
        differ = [a != b for a, b in zip(run.ids, ask.corrupt, strict=True)]
        raise UsageError(
            "The two prompts have the same difference of logits; there is nothing to recover.",
            f"Up to position {ask.position} they are the same: choose a later --position."
            if any(differ) and not any(differ[: ask.position + 1])
            else "Choose prompts that differ in what decides between --token and --versus.",
        )
    little = abs(span) < LITTLE * max(abs(clean_difference), abs(corrupt_difference))

    def share(difference: float) -> float:
        return (difference - corrupt_difference) / span

    streams, z = (_patched(corrupt, ask, run.record(f"*.{name}")) for name in ("resid_pre", "z"))
    places = [StreamPatch(layer, p, d, share(d)) for (layer, p), d in streams]
    heads = [HeadPatch(layer, head, d, share(d)) for (layer, head), d in z]
    return Patching(
        n_tokens=len(run.ids),
        position=ask.position,
        token=run.token(ask.token),
        versus=run.token(ask.versus),
        clean_difference=clean_difference,
        corrupt_difference=corrupt_difference,
        prompts=tuple(TokenPair(p, run.tokens[p], corrupt.tokens[p]) for p in range(len(run.ids))),
        places=tuple(places),
        heads=tuple(heads),
        notes=(*NOTES, SAME) if little else NOTES,
    )


def _of(run: Run, ask: Ask) -> float:
    return _difference(run.logits(range(ask.position, ask.position + 1)), ask).item()


def _difference(logits: Tensor, ask: Ask) -> Tensor:
    """Logit of token minus logit of versus: (N, V) -> (N,)."""
    return logits[:, ask.token] - logits[:, ask.versus]


def _patched(
    corrupt: Run, ask: Ask, clean: Mapping[str, Tensor]
) -> Iterator[tuple[tuple[int, int], float]]:
    """The difference of logits with each place or head of each layer put in, by (layer, it).

    `clean` has a point's values of each layer, the stream's (T, C) or the heads' z (H, T, D).
    """
    for layer, (name, value) in enumerate(clean.items()):
        for things in batched(range(len(value)), len(corrupt.ids)):
            patch = assigned(range(len(things)), things, value[list(things)])
            if name in corrupt.patch:
                patch = composed([patch, corrupt.patch[name]])
            ids = corrupt.ids_tensor[None].expand(len(things), -1)
            logits = corrupt.logits_of_rows(ids, ask.position, {**corrupt.patch, name: patch})
            differences = _difference(logits, ask).tolist()
            yield from (((layer, i), d) for i, d in zip(things, differences, strict=True))
