"""Every head and every MLP ablated in turn, and what that does to one logit.

What a part does through later layers is in it, other than in the attribution; what other parts
would make up for is not seen ("Are Sixteen Heads Really Better than One?", arXiv:1905.10650).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.gpt.tap import Patch, Probe
from llmcli.inspection.intervention import composed
from llmcli.inspection.lens import Final, kl_bits
from llmcli.inspection.model import text_flops
from llmcli.inspection.run import Ask, Run, require_numbers
from llmcli.inspection.values import LONG_FLOPS, Token, View, gflop

BATCH_TOKENS = 2048  # at once: larger batches are no faster on a processor, and take more memory

Component = tuple[int, int | None]  # (layer, head), or (layer, None): the MLP


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of the next token without one part."""

    rank: int
    part: str  # "L3.H2" or "L3.mlp", as --ablate takes it
    effect: float  # the logit without the part, minus the logit with it
    prob: float  # of the token, without the part
    kl_bits: float  # KL(untouched || without it)
    top: Token  # the likeliest next token without it
    top_prob: float


@dataclass(frozen=True, slots=True)
class AblationView(View):
    """The parts, the one that matters most first."""

    name: ClassVar[str] = "ablation"

    position: int
    token: Token
    versus: Token | None
    logit: float  # of the token, minus that of `versus` where one is given, nothing ablated
    prob: float
    n_parts: int
    n_forwards: int
    parts: tuple[Effect, ...]
    notes: tuple[str, ...]


NOTES = (
    "measured: each part set to zero by itself (a head before its projection, whose bias stays). "
    "Zero is not what the later layers are used to; --ablate PART:mean is gentler.",
    "A negative effect: the part speaks for the token, which loses without it. KL is KL(untouched "
    "|| without it) in bits.",
)


def view(run: Run, ask: Ask) -> AblationView:
    """The effect of each part on the logit of `token` (by default the likeliest) at `position`."""
    plain = run.logits(range(ask.position, ask.position + 1))[0]  # (V,)
    token = int(plain.argmax()) if ask.token is None else ask.token
    made = effects(run, ask, token, plain)
    made.sort(key=lambda effect: -abs(effect[1]))
    return AblationView(
        position=ask.position,
        token=run.token(token),
        versus=None if ask.versus is None else run.token(ask.versus),
        logit=_logit(plain, token, ask.versus),
        prob=float(plain.softmax(dim=-1)[token]),
        n_parts=len(made),
        n_forwards=1 + len(list(batches(run))),
        parts=tuple(
            Effect(rank, part, effect, prob, kl, run.token(top), top_prob)
            for rank, (part, effect, prob, kl, top, top_prob) in enumerate(made[: ask.rows])
        ),
        notes=NOTES,
    )


def cost(run: Run, ask: Ask) -> str | None:
    """What the view is about to compute, in words, where that takes a while."""
    n, T = run.config.n_layer * (run.config.n_head + 1), len(run.ids)
    flops = n * text_flops(run.config, T)
    return f"{n} parts × {T} tokens: {gflop(flops)}" if flops > LONG_FLOPS else None


@torch.inference_mode()
def effects(
    run: Run, ask: Ask, token: int, plain: Tensor
) -> list[tuple[str, float, float, float, int, float]]:
    """Part, effect, probability, KL, likeliest id and its probability, in the model's order."""
    base, rows = _logit(plain, token, ask.versus), []
    final = Final.of(plain[None])
    for parts in batches(run):
        for (layer, head), logits in zip(parts, without(run, parts, ask.position), strict=True):
            probs = logits.softmax(dim=-1)
            shifted = (logits - logits.max())[None]
            kl = float(kl_bits(final, shifted, shifted.logsumexp(dim=-1))[0])
            top = int(logits.argmax())
            name = f"L{layer}.mlp" if head is None else f"L{layer}.H{head}"
            effect = _logit(logits, token, ask.versus) - base
            rows.append((name, effect, float(probs[token]), kl, top, float(probs[top])))
    return rows


def batches(run: Run) -> Iterator[list[Component]]:
    """All heads and MLPs, as many at once as BATCH_TOKENS allows."""
    heads: list[int | None] = [*range(run.config.n_head), None]
    parts = [(layer, head) for layer in range(run.config.n_layer) for head in heads]
    size = max(1, BATCH_TOKENS // len(run.ids))
    for start in range(0, len(parts), size):
        yield parts[start : start + size]


@torch.inference_mode()
def without(run: Run, parts: Sequence[Component], position: int) -> Tensor:
    """The logits at `position` without each of `parts`, all in one forward: (len(parts), V)."""
    patch = dict(run.patch)
    for layer in sorted({layer for layer, _ in parts}):
        heads = {
            row: head for row, (at, head) in enumerate(parts) if at == layer and head is not None
        }
        mlps = [row for row, part in enumerate(parts) if part == (layer, None)]
        for point, mine in ((f"{layer}.z", _no_heads(heads)), (f"{layer}.mlp_out", _no_rows(mlps))):
            patch[point] = composed([patch[point], mine]) if point in patch else mine
    probe = Probe(run.config.n_layer, patch=patch)
    ids = run.ids_tensor[None].expand(len(parts), -1)
    x = run.model.stream(ids, None, probe)[:, position : position + 1]  # (rows, 1, C)
    logits = run.model.unembed(x, position, probe)[:, 0].float()
    require_numbers(logits)
    return logits


def _no_heads(heads: dict[int, int]) -> Patch:
    """z (B, H, T, D) with one head of each row set to zero."""

    def patch(value: Tensor, start: int) -> Tensor:
        value = value.clone()
        value[list(heads), list(heads.values())] = 0
        return value

    return patch


def _no_rows(rows: list[int]) -> Patch:
    """A value with some rows of the batch set to zero."""

    def patch(value: Tensor, start: int) -> Tensor:
        value = value.clone()
        value[rows] = 0
        return value

    return patch


def _logit(logits: Tensor, token: int, versus: int | None) -> float:
    """The token's logit, or its distance from the other's."""
    return float(logits[token] if versus is None else logits[token] - logits[versus])
