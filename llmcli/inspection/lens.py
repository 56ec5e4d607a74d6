"""The logit lens: the residual stream after each layer, read as if it were the last.

"interpreting GPT: the logit lens" (nostalgebraist, 2020). Untuned: the final norm and the output
head were trained on the last layer alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llmcli.gpt.model import GPT
from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run, rank_of
from llmcli.inspection.values import Row, Token, View
from llmcli.units import window

LN2 = math.log(2)
CHUNK = 128  # positions unembedded at once: 26 MB of logits with a vocabulary of 50,257


@dataclass(frozen=True, slots=True)
class LensRow(Row):
    """What one position would say next, were this layer the last."""

    key: ClassVar = ("after", "position")
    about: ClassVar = {"top": ("top_prob",)}

    after: str  # "embed", or the layer
    position: int
    top: Token
    top_prob: float
    kl_bits: float  # from the model's own distribution: KL(final || here)
    token_rank: int | None  # of --token
    token_logit: float | None
    token_prob: float | None


@dataclass(frozen=True, slots=True)
class Lens(View):
    """Layers x positions; the last layer's rows are the model's own answer."""

    name: ClassVar[str] = "lens"

    n_tokens: int
    position: int
    token: Token | None
    prompt: tuple[LensPlace, ...]
    rows: tuple[LensRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LensPlace(Row):
    """A position shown, and the token that stands there."""

    key: ClassVar = ("position", "token")

    position: int
    token: Token


NOTES = (
    "approximate: the lens is untuned; early layers were never trained to be read this way.",
    "KL is KL(final || here) in bits: 0 where a layer already says what the model will say.",
)


def view(run: Run, ask: Ask) -> Lens:
    """The lens at `rows` positions around `position`; at all of them where `rows` is not given."""
    T = len(run.ids)
    places = window(T, ask.position, ask.rows or T)
    streams = {
        after: x[places.start : places.stop] for after, x in stream_after(run).items()
    }  # (W, C) each
    rows: dict[str, list[LensRow]] = {after: [] for after in streams}
    *before, last = streams
    for low in range(0, len(places), CHUNK):
        some = places[low : low + CHUNK]
        own = run.unembed(streams[last][low : low + CHUNK], some.start)  # (w, V)
        final = Final.of(own)
        for after in before:
            here = lens_logits(run.model, streams[after][low : low + CHUNK])
            rows[after] += _rows(run, ask, after, here, final, some)
        rows[last] += _rows(run, ask, last, own, final, some)
    return Lens(
        n_tokens=T,
        position=ask.position,
        token=None if ask.token is None else run.token(ask.token),
        prompt=tuple(LensPlace(p, run.tokens[p]) for p in places),
        rows=tuple(row for layer in rows.values() for row in layer),
        notes=NOTES,
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`lens` (L + 1, W, V): the logits after the embedding and after each layer."""
    places = window(len(run.ids), ask.position, ask.rows or len(run.ids))
    streams = stream_after(run).values()
    here = [lens_logits(run.model, x[places.start : places.stop]) for x in streams]
    return {"lens": torch.stack(here)}


def stream_points(layers: Iterable[int]) -> dict[str, str]:
    """The stream's points after the embedding, "embed", and after each of `layers`, "0", ..."""
    return {"embed": "0.resid_pre"} | {str(layer): f"{layer}.resid_post" for layer in layers}


def stream_after(run: Run) -> dict[str, Tensor]:
    """The residual stream after the embedding and after each layer: "embed", "0", ...: (T, C)."""
    points = stream_points(range(run.config.n_layer))
    values = run.record(*points.values())
    return {after: values[point] for after, point in points.items()}


@torch.inference_mode()
def lens_logits(model: GPT, x: Tensor) -> Tensor:
    """Final norm and output head on the stream `x` (..., C): (..., V), in fp32."""
    return model.head(model.norm_f(x)).float()


class Final(NamedTuple):
    """The model's own distribution, and what of KL(final || here) does not change with here."""

    probs: Tensor  # (W, V)
    entropy: Tensor  # (W,), nats

    @classmethod
    def of(cls, logits: Tensor) -> Final:
        probs = logits.softmax(dim=-1)
        return cls(probs, torch.special.entr(probs).sum(dim=-1))


class Best(NamedTuple):
    """The best guess of a layer, and how far its distribution is from the model's own."""

    ids: Tensor  # (W,)
    probs: Tensor  # (W,)
    kl_bits: Tensor  # (W,), KL(final || here)
    total: Tensor  # (W,), the logsumexp of its logits

    @classmethod
    def of(cls, logits: Tensor, final: Final) -> Best:
        """From `logits` (W, V) and the model's own distribution at each, or one for all."""
        top = logits.max(dim=-1)
        shifted = logits - top.values[:, None]  # large logits would cost digits
        total = shifted.logsumexp(dim=-1)
        kl = kl_bits(final, shifted, total)
        return cls(top.indices, (-total).exp(), kl, top.values + total)


@torch.inference_mode()
def _rows(
    run: Run, ask: Ask, after: str, logits: Tensor, final: Final, places: range
) -> list[LensRow]:
    """One layer's rows from its `logits` (W, V) at `places`."""
    best = Best.of(logits, final)
    probs, kl, ids = best.probs.tolist(), best.kl_bits.tolist(), best.ids.tolist()
    fate = _fate(logits, best.total, ask.token)
    return [
        LensRow(after, place, run.token(ids[i]), probs[i], kl[i], *fate[i])
        for i, place in enumerate(places)
    ]


def _fate(
    logits: Tensor, total: Tensor, id: int | None
) -> list[tuple[int | None, float | None, float | None]]:
    """Rank, logit and probability of `id` at each row of `logits` (W, V), logsumexp `total`."""
    if id is None:
        return [(None, None, None)] * len(logits)
    ids = torch.full((len(logits),), id, device=logits.device)
    own = logits[:, id]
    ranks = rank_of(logits, ids).tolist()
    probs = (own - total).exp().tolist()
    return list(zip(ranks, own.tolist(), probs, strict=True))


def kl_bits(final: Final, logits: Tensor, total: Tensor) -> Tensor:
    """KL(final || softmax(logits)) in bits, `total` the logsumexp of `logits` (W, V): (W,).

    `final` has W rows, or one for all. Sum of p (log p - log q), with log q = logits - total, so
    that no log q is stored. What the rounding of these sums alone may come to is 0: it grows like
    the root of V.
    """
    probs = final.probs.expand_as(logits)
    cross = total - torch.stack([p @ q for p, q in zip(probs, logits, strict=True)])
    kl = cross - final.entropy
    rounding = math.sqrt(logits.shape[-1]) / 2 * torch.finfo(kl.dtype).eps * (1 + final.entropy)
    return torch.where(kl <= rounding, 0.0, kl / LN2)
