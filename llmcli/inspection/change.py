"""What an intervention did: the changed run held against the untouched one, place by place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.inspection.compare import kl_per_position
from llmcli.inspection.run import Ask, Run, rank_in
from llmcli.inspection.values import Token, View


@dataclass(frozen=True, slots=True)
class Given:
    """One change as it was asked for."""

    change: str


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a layer's output moved at the position."""

    after: str  # "embed", or the layer
    norm: float  # of the untouched residual stream
    moved: float  # the norm of the difference
    share: float  # of the one in the other


@dataclass(frozen=True, slots=True)
class Shift:
    """A next token, before and after the change."""

    token: Token
    rank: int
    changed_rank: int
    prob: float
    changed_prob: float
    logit: float
    changed_logit: float
    difference: float  # of the logits


@dataclass(frozen=True, slots=True)
class PlaceShift:
    """What one position expects next, before and after."""

    position: int
    token: Token
    kl_bits: float  # KL(untouched || changed)
    top: Token
    top_prob: float
    changed_top: Token
    changed_top_prob: float


@dataclass(frozen=True, slots=True)
class Change(View):
    """Where in the layers, at which positions and for which tokens a change made a difference."""

    name: ClassVar[str] = "change"

    n_tokens: int
    position: int
    kl_bits: float
    changes: tuple[Given, ...]
    layers: tuple[Moved, ...]
    candidates: tuple[Shift, ...]
    places: tuple[PlaceShift, ...]
    notes: tuple[str, ...]


def view(run: Run, ask: Ask) -> Change:
    """The run with its patches against the same without them."""
    untouched = replace(run, patch={})
    T, p = len(run.ids), ask.position
    kl = kl_per_position(run, untouched, range(T))
    notes = [
        "measured: both runs read the same prompt. KL is KL(untouched || changed) in bits; moved "
        "is how far the stream has moved, share that over the untouched stream's norm."
    ]
    if not run.patch:
        notes.append("Nothing is changed: see --ablate, --knockout, --steer and --patch.")
    return Change(
        n_tokens=T,
        position=p,
        kl_bits=kl[p],
        changes=tuple(Given(words) for words in ask.changes),
        layers=tuple(_layers(run, untouched, p)),
        candidates=tuple(_candidates(run, untouched, ask)),
        places=tuple(_places(run, untouched, kl)),
        notes=tuple(notes),
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`logits` and `untouched_logits` (T, V)."""
    every = range(len(run.ids))
    return {
        "logits": run.logits(every),
        "untouched_logits": replace(run, patch={}).logits(every),
    }


@torch.inference_mode()
def _layers(run: Run, untouched: Run, position: int) -> list[Moved]:
    points = {"embed": "0.resid_pre"}
    points |= {str(layer): f"{layer}.resid_post" for layer in range(run.config.n_layer)}
    changed, plain = (one.record(*points.values()) for one in (run, untouched))
    rows = []
    for after, point in points.items():
        here, there = changed[point][position].float(), plain[point][position].float()
        norm, moved = float(there.norm()), float((here - there).norm())
        rows.append(Moved(after, norm, moved, moved / norm if norm else 0.0))
    return rows


@torch.inference_mode()
def _candidates(run: Run, untouched: Run, ask: Ask) -> list[Shift]:
    """The likeliest tokens of both runs, and --token, by what they were before."""
    at = range(ask.position, ask.position + 1)
    after, before = run.logits(at)[0], untouched.logits(at)[0]  # (V,)
    n = min(ask.rows or 5, len(before))
    ids = {*before.topk(n).indices.tolist(), *after.topk(n).indices.tolist()}
    ids |= set() if ask.token is None else {ask.token}
    probs, changed_probs = before.softmax(dim=-1), after.softmax(dim=-1)
    return [
        Shift(
            token=run.token(id),
            rank=rank_in(before, id),
            changed_rank=rank_in(after, id),
            prob=float(probs[id]),
            changed_prob=float(changed_probs[id]),
            logit=float(before[id]),
            changed_logit=float(after[id]),
            difference=float(after[id] - before[id]),
        )
        for id in sorted(ids, key=lambda id: -float(before[id]))
    ]


@torch.inference_mode()
def _places(run: Run, untouched: Run, kl: list[float]) -> list[PlaceShift]:
    tops = []
    for one in (untouched, run):
        best = one.logits(range(len(run.ids))).softmax(dim=-1).max(dim=-1)
        tops.append((best.indices.tolist(), best.values.tolist()))
    (ids, probs), (changed_ids, changed_probs) = tops
    return [
        PlaceShift(
            position,
            run.tokens[position],
            kl[position],
            run.token(ids[position]),
            probs[position],
            run.token(changed_ids[position]),
            changed_probs[position],
        )
        for position in range(len(run.ids))
    ]
