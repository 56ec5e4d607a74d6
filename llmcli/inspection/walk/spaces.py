"""Pages 6 to 8: vectors, a matrix as a table to look up in, a matrix as a projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.inspection.run import cosine, cosines
from llmcli.inspection.values import Token
from llmcli.inspection.walk.run import FIRST, Walk, length, numbers

PAIRS = (((3.0, 4.0), (6.0, 8.0)), ((3.0, 4.0), (-4.0, 3.0)), ((3.0, 4.0), (-3.0, -4.0)))
TABLE = ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0))  # a matrix to look up in
ONE_HOT = (0.0, 1.0, 0.0)
POINTS = ((1.0, 3.0), (2.0, 2.0))  # what a projection to one dimension does not tell apart
ONTO = (1.0, 1.0)
TRIED = 64  # tokens of the prompt that are sent to the stream's space and back


@dataclass(frozen=True, slots=True)
class Pair:
    """Two small vectors."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    length_a: float
    length_b: float
    dot: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Likeness:
    """The vector of another token, beside that of the last one."""

    token: Token
    why: str  # "nearest" of all, "likely" to follow, "first" of the prompt
    length: float
    dot: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Vectors:
    """Length, dot product, cosine: of small vectors and of tokens."""

    n_embd: int
    pairs: tuple[Pair, ...]
    token: Token
    length: float
    others: tuple[Likeness, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """A one-hot vector times a matrix, small and large."""

    one_hot: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    row: tuple[float, ...]
    token: Token
    vocab_size: int
    n_embd: int
    n_products: int  # multiplications that the look-up saves
    product: tuple[float, ...]  # the first numbers of one-hot times matrix
    looked_up: tuple[float, ...]  # the first numbers of the matrix' row
    max_difference: float


@dataclass(frozen=True, slots=True)
class Projection:
    """What is lost on the way into a smaller space."""

    points: tuple[tuple[float, ...], ...]
    onto: tuple[float, ...]
    images: tuple[float, ...]
    token: Token
    layer: int
    head: int
    n_embd: int
    head_dim: int
    vocab_size: int
    kept: float  # the share of the squared length that the head's query can depend on
    n_different: int  # tokens of the prompt
    n_tried: int  # of them, those sent through the token embedding and back by the output matrix
    n_back: int  # of them, those that come back as the strongest


def vectors(walk: Walk) -> Vectors:
    table = walk.model.token_vectors  # (V, C)
    own = table[walk.token.id].float()
    alike = cosines(table, own[None])[:, 0]  # (V,)
    alike[walk.token.id] = -math.inf
    chosen = {int(alike.argmax()): "nearest"}
    for id in walk.best[:2]:
        chosen.setdefault(id, "likely")
    chosen.setdefault(walk.run.ids[min(walk.run.n_prefix, walk.last)], "first")
    chosen.pop(walk.token.id, None)
    return Vectors(
        n_embd=walk.config.n_embd,
        pairs=tuple(_pair(torch.tensor(a), torch.tensor(b)) for a, b in PAIRS),
        token=walk.token,
        length=length(own),
        others=tuple(
            Likeness(walk.run.token(id), why, length(table[id]), float(own @ table[id].float()),
                     cosine(own, table[id]))
            for id, why in chosen.items()
        ),
    )  # fmt: skip


def _pair(a: Tensor, b: Tensor) -> Pair:
    return Pair(numbers(a), numbers(b), length(a), length(b), float(a @ b), cosine(a, b))


def lookup(walk: Walk) -> Lookup:
    table, id = walk.model.token_vectors, walk.token.id  # (V, C)
    one_hot = torch.zeros(len(table), dtype=table.dtype, device=table.device)
    one_hot[id] = 1
    product = one_hot @ table  # (C,)
    return Lookup(
        one_hot=ONE_HOT,
        matrix=TABLE,
        row=numbers(torch.tensor(ONE_HOT) @ torch.tensor(TABLE)),
        token=walk.token,
        vocab_size=walk.config.vocab_size,
        n_embd=walk.config.n_embd,
        n_products=table.numel(),
        product=numbers(product, FIRST),
        looked_up=numbers(table[id], FIRST),
        max_difference=float((product - table[id]).abs().max()),
    )


def projection(walk: Walk) -> Projection:
    layer, head = walk.head
    x = walk.inside["norm_1"][-1].float()  # (C,)
    w_q = walk.model.block(layer).attn.w_qkv[0, head]  # (D, C)
    basis = torch.linalg.qr(w_q.float().T).Q  # (C, D): what the query depends on
    different = sorted(set(walk.run.ids))
    tried = torch.tensor(different[:TRIED], device=x.device)
    back = walk.model.token_vectors[tried] @ walk.model.head.weight.T  # (n, V)
    return Projection(
        points=POINTS,
        onto=ONTO,
        images=numbers(torch.tensor(POINTS) @ torch.tensor(ONTO)),
        token=walk.token,
        layer=layer,
        head=head,
        n_embd=walk.config.n_embd,
        head_dim=walk.config.head_dim,
        vocab_size=walk.config.vocab_size,
        kept=float((x @ basis).square().sum() / x.square().sum()),
        n_different=len(different),
        n_tried=len(tried),
        n_back=int((back.argmax(dim=-1) == tried).sum()),
    )
