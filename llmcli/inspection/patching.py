"""Where the difference between two prompts is carried: activation patching, place by place.

The corrupt prompt runs again and again, each time with one value of the clean prompt's run put in;
what that recovers of the clean prompt's logit difference is what the value carries ("Locating and
Editing Factual Associations in GPT", arXiv:2202.05262; "How to use activation patching",
arXiv:2404.15255).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.errors import UsageError
from llmcli.gpt.tap import Patch, Probe
from llmcli.inspection.intervention import composed
from llmcli.inspection.run import Ask, Run, require_numbers
from llmcli.inspection.values import Token, View

BATCH_TOKENS = 2048  # at once
NOTES = (
    "measured: recovered is 1, or 100 %, where a value alone restores the clean prompt's "
    "difference of logits, 0 where it does nothing; below 0 and above 1 can be.",
    "A place is the residual stream entering a layer at one position; a head is its z at all "
    "positions. What several places carry together, none of them may recover alone.",
)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A position of both prompts."""

    position: int
    clean: Token
    corrupt: Token


@dataclass(frozen=True, slots=True)
class StreamPatch:
    """The stream entering a layer at a position, taken from the clean run."""

    layer: int
    position: int
    difference: float  # of the logits, with the value put in
    recovered: float


@dataclass(frozen=True, slots=True)
class HeadPatch:
    """A head's z at all positions, taken from the clean run."""

    layer: int
    head: int
    difference: float
    recovered: float


@dataclass(frozen=True, slots=True)
class Patching(View):
    """Layers x positions, and heads: how much of the clean difference each recovers."""

    name: ClassVar[str] = "patching"

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
        raise UsageError(
            "The two prompts have the same difference of logits; there is nothing to recover.",
            "Choose prompts that differ in what decides between --token and --versus.",
        )

    def share(difference: float) -> float:
        return (difference - corrupt_difference) / span

    places = [StreamPatch(layer, p, d, share(d)) for (layer, p), d in _places(run, corrupt, ask)]
    heads = [HeadPatch(layer, h, d, share(d)) for (layer, h), d in _heads(run, corrupt, ask)]
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
        notes=NOTES,
    )


def _of(run: Run, ask: Ask) -> float:
    return _difference(run.logits(range(ask.position, ask.position + 1)), ask).item()


def _difference(logits: Tensor, ask: Ask) -> Tensor:
    """Logit of token minus logit of versus: (N, V) -> (N,)."""
    return logits[:, ask.token] - logits[:, ask.versus]


Cell = tuple[int, int]  # (layer, position), or (layer, head)


def _places(run: Run, corrupt: Run, ask: Ask) -> Iterator[tuple[Cell, float]]:
    clean = run.record("*.resid_pre")
    yield from _patched(corrupt, ask, clean, "resid_pre", len(run.ids), _one_position)


def _heads(run: Run, corrupt: Run, ask: Ask) -> Iterator[tuple[Cell, float]]:
    clean = run.record("*.z")
    yield from _patched(corrupt, ask, clean, "z", run.config.n_head, _one_head)


def _patched(
    corrupt: Run,
    ask: Ask,
    clean: dict[str, Tensor],
    point: str,
    count: int,
    make: Callable[[Tensor, Sequence[int]], Patch],
) -> Iterator[tuple[Cell, float]]:
    """The difference of logits with each of `count` things of each layer put in, in batches."""
    size = max(1, BATCH_TOKENS // len(corrupt.ids))
    for layer in range(corrupt.config.n_layer):
        name = f"{layer}.{point}"
        for low in range(0, count, size):
            things = range(count)[low : low + size]
            patch = make(clean[name], things)
            if name in corrupt.patch:
                patch = composed([patch, corrupt.patch[name]])
            logits = _logits(corrupt, {**corrupt.patch, name: patch}, len(things), ask.position)
            differences = _difference(logits, ask).tolist()
            yield from (((layer, i), d) for i, d in zip(things, differences, strict=True))


def _one_position(clean: Tensor, positions: Sequence[int]) -> Patch:
    """Row i of a stream (B, T, C) has position `positions[i]` of `clean` (T, C)."""

    def patch(value: Tensor, start: int) -> Tensor:
        value = value.clone()
        value[range(len(positions)), list(positions)] = clean[list(positions)]
        return value

    return patch


def _one_head(clean: Tensor, heads: Sequence[int]) -> Patch:
    """Row i of z (B, H, T, D) has head `heads[i]` of `clean` (H, T, D)."""

    def patch(value: Tensor, start: int) -> Tensor:
        value = value.clone()
        value[range(len(heads)), list(heads)] = clean[list(heads)]
        return value

    return patch


@torch.inference_mode()
def _logits(run: Run, patch: dict[str, Patch], n: int, position: int) -> Tensor:
    """The logits (n, V) at `position` of `n` copies of the prompt under `patch`."""
    probe = Probe(run.config.n_layer, patch=patch)
    x = run.model.stream(run.ids_tensor[None].expand(n, -1), None, probe)
    logits = run.model.unembed(x[:, position : position + 1], position, probe)[:, 0].float()
    require_numbers(logits)
    return logits
