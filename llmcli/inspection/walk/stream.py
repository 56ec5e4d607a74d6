"""Pages 9, 10 and 16 to 19: the vector that runs through the model, from embedding to logits.

Layer norm: arXiv:1607.06450. Shortcuts: arXiv:1512.03385. Guesses after each layer: the logit lens
(nostalgebraist, 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.gpt.activation import ACTIVATIONS
from llmcli.inspection.lens import lens_logits, stream_points
from llmcli.inspection.next import spread
from llmcli.inspection.run import cosine
from llmcli.inspection.values import Token
from llmcli.inspection.walk.heads import Vector
from llmcli.inspection.walk.run import FIRST, Walk, length, numbers

CURVE = (-3.0, -1.0, 0.0, 1.0, 3.0)  # where the activation is shown
NEURONS = 5


@dataclass(frozen=True, slots=True)
class Embedding:
    """Which token, plus where it stands."""

    position: int
    token: Token
    vocab_size: int
    n_ctx: int
    n_embd: int
    vectors: tuple[Vector, ...]  # token, position, sum
    max_difference: float  # of the sum from what enters the first block


@dataclass(frozen=True, slots=True)
class Stage:
    name: str  # "before", "normalised", "gain and bias"
    mean: float
    variance: float
    length: float
    first: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm's three stages, of the vector that enters the first block."""

    position: int
    token: Token
    n_embd: int
    n_layer: int
    n_norms: int
    eps: float
    stages: tuple[Stage, ...]
    max_difference: float  # of the last stage from the model's own


@dataclass(frozen=True, slots=True)
class Addition:
    name: str  # "before", "attention", "between", "feed-forward", "after"
    length: float
    cosine: float  # to the vector that entered the block


@dataclass(frozen=True, slots=True)
class Shortcut:
    """One block's two additions to the stream."""

    layer: int
    position: int
    token: Token
    steps: tuple[Addition, ...]
    n_terms: int  # vectors whose sum the final stream is: two embeddings, two for each block


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Neuron:
    neuron: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The two matrices and what is between them."""

    layer: int
    position: int
    token: Token
    n_embd: int
    mlp_dim: int
    times_as_wide: float
    activation: str
    curve: tuple[Point, ...]
    neurons: tuple[Neuron, ...]
    n_below: int  # neurons below 0 before the activation
    out_length: float


@dataclass(frozen=True, slots=True)
class After:
    after: str  # "embed", or a layer
    length: float
    best: Token
    prob: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """The stream at the last position as it passes the blocks, and what it says by then."""

    n_layer: int
    position: int
    token: Token
    rows: tuple[After, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    token: Token
    length: float  # of the token's row in the output matrix
    cosine: float  # between the row and the final vector
    dot: float
    logit: float  # the model's own


@dataclass(frozen=True, slots=True)
class Unembed:
    """The final vector against the rows of the output matrix."""

    position: int
    token: Token
    n_embd: int
    vocab_size: int
    tied: bool  # whether the rows are the token embedding's
    length: float  # of the vector after the final norm
    rows: tuple[Candidate, ...]


def embedding(walk: Walk) -> Embedding:
    token, place = walk.seen["embed"][-1], walk.seen["pos_embed"][-1]  # (C,)
    total = token + place
    return Embedding(
        position=walk.last,
        token=walk.token,
        vocab_size=walk.config.vocab_size,
        n_ctx=walk.config.n_ctx,
        n_embd=walk.config.n_embd,
        vectors=tuple(
            Vector(name, length(x), numbers(x, FIRST))
            for name, x in (("token", token), ("position", place), ("sum", total))
        ),
        max_difference=float((total - walk.seen["0.resid_pre"][-1]).abs().max()),
    )


def norm(walk: Walk) -> Norm:
    x = walk.seen["0.resid_pre"][-1].float()  # (C,)
    layer_norm, eps = walk.model.block(0).norm_1, walk.config.norm_eps
    normalised = (x - x.mean()) / (x.var(unbiased=False) + eps).sqrt()
    after = normalised * layer_norm.weight.float() + layer_norm.bias.float()
    theirs = layer_norm(walk.seen["0.resid_pre"][-1]).float()
    return Norm(
        position=walk.last,
        token=walk.token,
        n_embd=walk.config.n_embd,
        n_layer=walk.config.n_layer,
        n_norms=2 * walk.config.n_layer + 1,
        eps=eps,
        stages=tuple(
            Stage(name, float(v.mean()), float(v.var(unbiased=False)), length(v),
                  numbers(v, FIRST))
            for name, v in (("before", x), ("normalised", normalised), ("gain and bias", after))
        ),
        max_difference=float((after - theirs).abs().max()),
    )  # fmt: skip


def shortcut(walk: Walk) -> Shortcut:
    layer = walk.head[0]
    before, between, after = (
        walk.seen[f"{layer}.{name}"][-1] for name in ("resid_pre", "resid_mid", "resid_post")
    )
    steps = {
        "before": before,
        "attention": walk.inside["attn_out"][-1],
        "between": between,
        "feed-forward": walk.inside["mlp_out"][-1],
        "after": after,
    }
    return Shortcut(
        layer=layer,
        position=walk.last,
        token=walk.token,
        steps=tuple(Addition(name, length(x), cosine(x, before)) for name, x in steps.items()),
        n_terms=2 + 2 * walk.config.n_layer,
    )


def feed_forward(walk: Walk) -> FeedForward:
    before, after = (walk.inside[name][-1].float() for name in ("mlp_pre", "mlp_post"))  # (M,)
    strongest = after.abs().sort(descending=True, stable=True).indices[:NEURONS].tolist()
    curve = ACTIVATIONS[walk.config.activation](torch.tensor(CURVE)).tolist()
    return FeedForward(
        layer=walk.head[0],
        position=walk.last,
        token=walk.token,
        n_embd=walk.config.n_embd,
        mlp_dim=walk.config.mlp_dim,
        times_as_wide=walk.config.mlp_dim / walk.config.n_embd,
        activation=walk.config.activation,
        curve=tuple(Point(x, y) for x, y in zip(CURVE, curve, strict=True)),
        neurons=tuple(Neuron(n, float(before[n]), float(after[n])) for n in strongest),
        n_below=int((before < 0).sum()),
        out_length=length(walk.inside["mlp_out"][-1]),
    )


def blocks(walk: Walk) -> Blocks:
    points = stream_points(spread(walk.config.n_layer, 8))
    return Blocks(
        n_layer=walk.config.n_layer,
        position=walk.last,
        token=walk.token,
        rows=tuple(_after(walk, after, walk.seen[point][-1]) for after, point in points.items()),
    )


def _after(walk: Walk, after: str, x: Tensor) -> After:
    prob, id = lens_logits(walk.model, x[None])[0].softmax(dim=-1).max(dim=-1)
    return After(after, length(x), walk.run.token(int(id)), float(prob))


def unembed(walk: Walk) -> Unembed:
    x, table = walk.model.norm_f(walk.final[-1]).float(), walk.model.head.weight  # (C,), (V, C)
    return Unembed(
        position=walk.last,
        token=walk.token,
        n_embd=walk.config.n_embd,
        vocab_size=walk.config.vocab_size,
        tied=walk.config.tie_embeddings,
        length=length(x),
        rows=tuple(
            Candidate(walk.run.token(id), length(table[id]), cosine(x, table[id]),
                      float(x @ table[id].float()), float(walk.logits[id]))
            for id in [*walk.best[:4], walk.best[-1]]
        ),
    )  # fmt: skip
