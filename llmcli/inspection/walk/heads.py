"""Pages 11 to 15: one head from its queries to what it hands on, then all heads of the layer.

Eq. 1 of "Attention Is All You Need" (arXiv:1706.03762), a step a page; heads as summands:
"A Mathematical Framework for Transformer Circuits" (Elhage et al., 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.inspection.values import Token
from llmcli.inspection.walk.run import FIRST, Walk, length, numbers, strongest

SOURCES = 6  # places read from that are shown
CORNER = 5  # positions of the small matrix
HEADS = 10


@dataclass(frozen=True, slots=True)
class Vector:
    name: str
    length: float
    first: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class At:
    """One position in one head."""

    layer: int
    head: int
    position: int
    token: Token


@dataclass(frozen=True, slots=True)
class Qkv(At):
    """Its three vectors."""

    read_position: int  # what the head reads most of `Walk.choices`
    read_token: Token
    read_weight: float
    chosen: bool  # False where there is nothing between the first position and its own
    asked: bool  # whether --layer or --head said which
    n_tokens: int
    n_embd: int
    n_head: int
    head_dim: int
    vectors: tuple[Vector, ...]


@dataclass(frozen=True, slots=True)
class Score:
    position: int
    token: Token
    dot: float
    score: float
    weight: float


@dataclass(frozen=True, slots=True)
class Scores(At):
    """Its query against the keys, before and after scaling."""

    n_seen: int
    head_dim: int
    by_head_dim: bool
    by_layer: bool
    scale: float  # what q.k is multiplied by
    rows: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One query of the corner: None is what the mask hides."""

    position: int
    token: Token
    scores: tuple[float | None, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Mask:
    """The first positions' scores and weights, as matrices."""

    layer: int
    head: int
    n_tokens: int
    n_hidden: int  # of the (T, T) scores, those behind the mask
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Weighted:
    position: int
    token: Token
    weight: float
    value_length: float
    first: tuple[float, ...]  # of weight times value


@dataclass(frozen=True, slots=True)
class Context(At):
    """The values that it reads, each times its weight, and their sum."""

    n_seen: int
    head_dim: int
    rows: tuple[Weighted, ...]
    n_others: int
    others_weight: float
    others: tuple[float, ...]  # the sum of all that no row shows
    total: tuple[float, ...]
    max_difference: float  # of all numbers of the sum from what the model has


@dataclass(frozen=True, slots=True)
class Head:
    head: int
    position: int  # what it reads most
    token: Token
    weight: float
    length: float  # of what it adds to the stream


@dataclass(frozen=True, slots=True)
class Heads:
    """What each head of the layer writes into the stream."""

    layer: int
    head: int  # the one that the walk follows
    n_head: int
    head_dim: int
    n_embd: int
    width: int  # of the heads' vectors end to end
    rows: tuple[Head, ...]
    n_others: int
    others_length: float  # of the longest that another writes
    bias_length: float
    sum_length: float
    max_difference: float  # of heads plus bias from the layer's output


def qkv(walk: Walk) -> Qkv:
    layer, head = walk.head
    weights = walk.weights[head]  # (T,)
    read = walk.choices.start + int(weights[walk.choices].argmax())
    return Qkv(
        layer=layer,
        head=head,
        position=walk.last,
        token=walk.token,
        read_position=read,
        read_token=walk.run.tokens[read],
        read_weight=float(weights[read]),
        chosen=walk.last > 1,
        asked=walk.layer_asked is not None or walk.head_asked is not None,
        n_tokens=len(walk.run.ids),
        n_embd=walk.config.n_embd,
        n_head=walk.config.n_head,
        head_dim=walk.config.head_dim,
        vectors=tuple(
            Vector(name, length(walk.inside[point][head, -1]),
                   numbers(walk.inside[point][head, -1], FIRST))
            for name, point in (("query", "q"), ("key", "k"), ("value", "v"))
        ),
    )  # fmt: skip


def scores(walk: Walk) -> Scores:
    layer, head = walk.head
    q, k = walk.inside["q"][head, -1].float(), walk.inside["k"][head].float()  # (D,), (T, D)
    dots, scale = k @ q, walk.config.attn_scale(layer)  # (T,)
    weights = (dots * scale).softmax(dim=-1)
    return Scores(
        layer=layer,
        head=head,
        position=walk.last,
        token=walk.token,
        n_seen=len(dots),
        head_dim=walk.config.head_dim,
        by_head_dim=walk.config.scale_by_head_dim,
        by_layer=walk.config.scale_by_layer,
        scale=scale,
        rows=tuple(
            Score(i, walk.run.tokens[i], float(dots[i]), float(dots[i] * scale), float(weights[i]))
            for i in strongest(weights, SOURCES)
        ),
    )


def mask(walk: Walk) -> Mask:
    layer, head = walk.head
    T = len(walk.run.ids)
    n = min(T, CORNER)
    q, k = (walk.inside[name][head, :n].float() for name in ("q", "k"))  # (n, D)
    found = q @ k.T * walk.config.attn_scale(layer)  # (n, n)
    found = found.masked_fill(torch.ones_like(found).triu(diagonal=1).bool(), -math.inf)
    weights = found.softmax(dim=-1)
    return Mask(
        layer=layer,
        head=head,
        n_tokens=T,
        n_hidden=T * (T - 1) // 2,
        rows=tuple(
            Row(i, walk.run.tokens[i], _or_none(found[i]), numbers(weights[i])) for i in range(n)
        ),
    )


def _or_none(row: Tensor) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in row.tolist())


def context(walk: Walk) -> Context:
    layer, head = walk.head
    v, weights = walk.inside["v"][head].float(), walk.weights[head]  # (T, D), (T,)
    parts = weights[:, None] * v  # (T, D)
    shown = strongest(weights, SOURCES)
    others = torch.ones_like(weights, dtype=torch.bool)
    others[shown] = False
    total = parts.sum(dim=0)
    return Context(
        layer=layer,
        head=head,
        position=walk.last,
        token=walk.token,
        n_seen=len(weights),
        head_dim=walk.config.head_dim,
        rows=tuple(
            Weighted(i, walk.run.tokens[i], float(weights[i]), length(v[i]),
                     numbers(parts[i], FIRST))
            for i in shown
        ),
        n_others=int(others.sum()),
        others_weight=float(weights[others].sum()),
        others=numbers(parts[others].sum(dim=0), FIRST),
        total=numbers(total, FIRST),
        max_difference=float((total - walk.inside["z"][head, -1].float()).abs().max()),
    )  # fmt: skip


def heads(walk: Walk) -> Heads:
    layer, head = walk.head
    attn = walk.model.block(layer).attn
    z = walk.inside["z"][:, -1].float()  # (H, D)
    written = torch.einsum("hd,chd->hc", z, attn.w_out.float())  # (H, C)
    total = written.sum(dim=0) + attn.out.bias.float()
    lengths = written.norm(dim=-1)
    keenest = walk.weights.max(dim=-1)
    shown = sorted({head, *strongest(lengths, HEADS - 1)})
    others = lengths[[h for h in range(attn.n_head) if h not in shown]]
    return Heads(
        layer=layer,
        head=head,
        n_head=attn.n_head,
        head_dim=attn.head_dim,
        n_embd=walk.config.n_embd,
        width=z.numel(),
        rows=tuple(
            Head(h, int(keenest.indices[h]), walk.run.tokens[int(keenest.indices[h])],
                 float(keenest.values[h]), float(lengths[h]))
            for h in shown
        ),
        n_others=len(others),
        others_length=float(others.max()) if len(others) else 0.0,
        bias_length=length(attn.out.bias),
        sum_length=length(total),
        max_difference=float((total - walk.inside["attn_out"][-1].float()).abs().max()),
    )  # fmt: skip
