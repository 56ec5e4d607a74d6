"""Every head and every MLP ablated in turn, and what that does to one logit.

What a part does through later layers is in it, other than in the attribution; what other parts
would make up for is not seen ("Are Sixteen Heads Really Better than One?", arXiv:1905.10650).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.config import ModelConfig
from llmcli.inspection.ask import Ask
from llmcli.inspection.intervention import composed
from llmcli.inspection.lens import Best, Final
from llmcli.inspection.model import text_flops
from llmcli.inspection.run import Run, assigned, batched
from llmcli.inspection.values import LONG_FLOPS, Row, Token, View, gflop

Component = tuple[int, int | None]  # (layer, head), or (layer, None): the MLP


@dataclass(frozen=True, slots=True)
class Effect(Row):
    """What becomes of the next token without one part."""

    key: ClassVar = ("part",)
    about: ClassVar = {"top": ("top_prob",)}

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
    compared: ClassVar = ("logit", "prob")

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
        n_forwards=1 + len(list(batched(components(run.config), len(run.ids)))),
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
    for parts in batched(components(run.config), len(run.ids)):
        logits = without(run, parts, ask.position)
        best, probs = Best.of(logits, final), logits.softmax(dim=-1)[:, token].tolist()
        told = (best.kl_bits.tolist(), best.ids.tolist(), best.probs.tolist())
        for (layer, head), here, prob, *others in zip(parts, logits, probs, *told, strict=True):
            name = f"L{layer}.mlp" if head is None else f"L{layer}.H{head}"
            rows.append((name, _logit(here, token, ask.versus) - base, prob, *others))
    return rows


def components(config: ModelConfig) -> list[Component]:
    """All heads and MLPs."""
    heads: list[int | None] = [*range(config.n_head), None]
    return [(layer, head) for layer in range(config.n_layer) for head in heads]


def without(run: Run, parts: Sequence[Component], position: int) -> Tensor:
    """The logits at `position` without each of `parts`, all in one forward: (len(parts), V)."""
    patch = dict(run.patch)
    for layer in sorted({layer for layer, _ in parts}):
        here = [(row, head) for row, (at, head) in enumerate(parts) if at == layer]
        heads = [(row, head) for row, head in here if head is not None]
        mlps = [row for row, head in here if head is None]
        silent = assigned([row for row, _ in heads], [head for _, head in heads], 0)
        for point, mine in ((f"{layer}.z", silent), (f"{layer}.mlp_out", assigned(mlps, None, 0))):
            patch[point] = composed([patch[point], mine]) if point in patch else mine
    return run.logits_of_rows(run.ids_tensor[None].expand(len(parts), -1), position, patch)


def _logit(logits: Tensor, token: int, versus: int | None) -> float:
    """The token's logit, or its distance from the other's."""
    return float(logits[token] if versus is None else logits[token] - logits[versus])
