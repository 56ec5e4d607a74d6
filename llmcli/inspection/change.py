"""What an intervention did: the changed run held against the untouched one, place by place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.inspection.ask import Ask
from llmcli.inspection.lens import CHUNK, Best, Final, stream_after
from llmcli.inspection.run import Run, rank_in
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


@torch.inference_mode()
def view(run: Run, ask: Ask) -> Change:
    """The run with its patches against the same without them."""
    untouched = replace(run, patch={})
    after, before = stream_after(run), stream_after(untouched)  # by layer: (T, C)
    *_, last = after
    places = tuple(_places(run, untouched, after[last], before[last]))
    p, at = ask.position, slice(ask.position, ask.position + 1)
    logits = run.unembed(after[last][at], p)[0], untouched.unembed(before[last][at], p)[0]
    notes = [
        "measured: both runs read the same prompt. KL is KL(untouched || changed) in bits; moved "
        "is how far the stream has moved, share that over the untouched stream's norm."
    ]
    if not run.patch:
        notes.append("Nothing is changed: see --ablate, --knockout, --steer and --patch.")
    return Change(
        n_tokens=len(run.ids),
        position=p,
        kl_bits=places[p].kl_bits,
        changes=tuple(Given(words) for words in ask.changes),
        layers=tuple(_moved(layer, x[p], before[layer][p]) for layer, x in after.items()),
        candidates=tuple(_candidates(run, ask, *logits)),
        places=places,
        notes=tuple(notes),
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`logits` and `untouched_logits` (T, V)."""
    every = range(len(run.ids))
    return {
        "logits": run.logits(every),
        "untouched_logits": replace(run, patch={}).logits(every),
    }


def _moved(after: str, here: Tensor, there: Tensor) -> Moved:
    """How far the stream `here` (C,) is from the untouched one."""
    norm, moved = float(there.float().norm()), float((here.float() - there.float()).norm())
    return Moved(after, norm, moved, moved / norm if norm else 0.0)


def _candidates(run: Run, ask: Ask, after: Tensor, before: Tensor) -> list[Shift]:
    """The likeliest tokens by either logits (V,), and --token, by what they were before."""
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


def _places(run: Run, untouched: Run, after: Tensor, before: Tensor) -> Iterator[PlaceShift]:
    """What each position expects, from both runs' final streams (T, C), CHUNK of them at a time."""
    for low in range(0, len(run.ids), CHUNK):
        here = run.unembed(after[low : low + CHUNK], low)  # (n, V)
        final = Final.of(untouched.unembed(before[low : low + CHUNK], low))
        kl = Best.of(here, final).kl_bits.tolist()
        (plain_probs, plain), (probs, ids) = (
            (best.values.tolist(), best.indices.tolist())
            for best in (final.probs.max(dim=-1), here.softmax(dim=-1).max(dim=-1))
        )
        for i, position in enumerate(range(low, low + len(here))):
            yield PlaceShift(
                position,
                run.tokens[position],
                kl[i],
                run.token(plain[i]),
                plain_probs[i],
                run.token(ids[i]),
                probs[i],
            )
