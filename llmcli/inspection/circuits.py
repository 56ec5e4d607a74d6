"""What a head does by its weights alone: which tokens it reads from which, and what it then writes.

The circuits of "A Mathematical Framework for Transformer Circuits" (Elhage et al., 2021), each a
matrix of vocabulary x vocabulary: QK, the score of a reading token with a token read; OV, what a
token that is read does to the logits. Both are made a chunk of rows at a time and never held.
Composition tells how strongly what an earlier head writes reaches a later head's q, k or v.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llmcli.gpt.model import GPT
from llmcli.inspection.ask import Ask
from llmcli.inspection.head import which
from llmcli.inspection.run import Run, require_numbers
from llmcli.inspection.values import Token, View, gflop

ROWS = 8
CHUNK_NBYTES = 64 << 20  # of a circuit held at once, in fp32


@dataclass(frozen=True, slots=True)
class ReadPair:
    """QK: the position of `query` reads a place that holds `key`."""

    rank: int
    query: Token
    key: Token
    score: float  # beyond the same query's mean over all keys


@dataclass(frozen=True, slots=True)
class WritePair:
    """OV: where the head reads `source`, it raises the logit of `output`."""

    rank: int
    source: Token
    output: Token
    adds: float  # beyond the means over all sources and outputs, before the final norm divides


@dataclass(frozen=True, slots=True)
class Composition:
    """How strongly an earlier head's output is read."""

    rank: int
    kind: str  # "Q", "K" or "V": what of the later head it goes into
    layer: int  # of the earlier head
    head: int
    score: float  # ||W_QK W_OV|| / (||W_QK|| ||W_OV||) and its like, Frobenius norms
    times_chance: float


@dataclass(frozen=True, slots=True)
class Circuits(View):
    """The strongest pairs of both circuits, and the strongest compositions."""

    name: ClassVar[str] = "circuits"

    layer: int
    head: int
    token: Token | None  # --token: the one whose pairs are listed, as query and as source
    vocab_size: int
    n_composed: int  # earlier heads, three ways each
    chance: float  # the score of heads that take no notice of each other
    reads: tuple[ReadPair, ...]
    writes: tuple[WritePair, ...]
    compositions: tuple[Composition, ...]
    notes: tuple[str, ...]


NOTES = (
    "derived from the weights alone, approximate for any prompt: a token's own vector goes through "
    "this layer's norm, as if positions and earlier layers had written nothing.",
    "QK: scores above the query's mean over all tokens; only such differences count in a softmax. "
    "OV: logits above their means over all outputs and all sources, with the final norm's gain but "
    "before its division.",
    "Composition: the norm of a product by the product of the norms; chance is the root mean "
    "square of heads turned at random, 1 / sqrt(n_embd).",
)


def cost(run: Run, ask: Ask) -> str:
    """What the view is about to compute, in words."""
    which(ask, "circuits")
    V, D = run.config.vocab_size, run.config.head_dim
    rows = V if ask.token is None else 1
    C = run.config.n_embd
    # Both circuits, and the vocabulary through W_Q, W_K, W_V and back through W_O.
    flops = 2 * (2 * rows * V * D + 4 * V * C * D)
    chunk = min(rows, chunk_of(V)) * V * 4
    return (
        f"2 × {rows} × {V} entries, {gflop(flops)}, {max(1, round(chunk / 2**20))} MiB held at once"
    )


@torch.inference_mode()
def view(run: Run, ask: Ask) -> Circuits:
    """The circuits of one head. Raises UsageError where it is not said which."""
    layer, head = which(ask, "circuits")
    rows = ask.rows or ROWS
    factors = factors_of(run.model, layer, head)
    reads = top_pairs(*factors.qk, rows, ask.token)
    writes = top_pairs(*factors.ov, rows, ask.token)
    chance = run.config.n_embd**-0.5
    composed = sorted(compositions(run.model, layer, head), key=lambda row: -row[3])
    return Circuits(
        layer=layer,
        head=head,
        token=None if ask.token is None else run.token(ask.token),
        vocab_size=run.config.vocab_size,
        n_composed=len(composed) // 3,
        chance=chance,
        reads=tuple(
            ReadPair(rank, run.token(q), run.token(k), score)
            for rank, (q, k, score) in enumerate(reads)
        ),
        writes=tuple(
            WritePair(rank, run.token(s), run.token(o), adds)
            for rank, (s, o, adds) in enumerate(writes)
        ),
        compositions=tuple(
            Composition(rank, kind, at, earlier, score, score / chance)
            for rank, (kind, at, earlier, score) in enumerate(composed[:rows])
        ),
        notes=NOTES if composed else (*NOTES, "No head comes before layer 0."),
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`qk_left`, `qk_right`, `ov_left`, `ov_right` (V, D): a circuit is left @ right^T."""
    factors = factors_of(run.model, *which(ask, "circuits"))
    sides = zip(factors._fields, factors, strict=True)
    return {
        f"{name}_{side}": factor
        for name, pair in sides
        for side, factor in zip(("left", "right"), pair, strict=True)
    }


# --- the two circuits ----------------------------------------------------------------------------


class Factors(NamedTuple):
    """A circuit is left @ right^T, of (V, D) each."""

    qk: tuple[Tensor, Tensor]
    ov: tuple[Tensor, Tensor]


class Weights(NamedTuple):
    """One head's matrices: x W^T for q, k, v of (D, C) each; `out` (C, D) back into the stream."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    biases: Tensor  # (3, D): of q, k, v


def weights_of(model: GPT, layer: int, head: int) -> Weights:
    """The matrices of a head, as the checkpoint has them, in fp32."""
    attn = model.block(layer).attn
    q, k, v = attn.w_qkv[:, head].float()
    biases = attn.qkv.bias.view(3, attn.n_head, attn.head_dim)[:, head]
    return Weights(q, k, v, attn.w_out[:, head].float(), biases.float())


def factors_of(model: GPT, layer: int, head: int) -> Factors:
    """Both circuits as two thin matrices each.

    QK: (W_Q x + b_Q) . (W_K y - its mean over y) * scale, x and y normed embeddings. OV: the
    unembedding, with the final norm's centring and gain, of W_O W_V y, less its means over y and
    over the outputs: what the head writes wherever it looks is in neither.
    """
    w = weights_of(model, layer, head)
    x = model.block(layer).norm_1(model.token_vectors).float()  # (V, C)
    queries, keys, values = (x @ m.T + b for m, b in zip((w.q, w.k, w.v), w.biases, strict=True))
    outputs = _unembedding(model, w.out)  # (V, D)
    made = Factors(
        (queries * model.config.attn_scale(layer), keys - keys.mean(dim=0)),
        (values - values.mean(dim=0), outputs - outputs.mean(dim=0)),
    )
    for pair in made:
        for factor in pair:
            require_numbers(factor)
    return made


def _unembedding(model: GPT, out: Tensor) -> Tensor:
    """What `out` (C, D) does to the logits through the final norm's linear part: (V, D)."""
    centred = out - out.mean(dim=0)
    return model.head.weight.float() @ (model.norm_f.weight.float()[:, None] * centred)


def chunk_of(vocab_size: int) -> int:
    """How many rows of a circuit are held at once."""
    return max(1, CHUNK_NBYTES // (4 * vocab_size))


def top_pairs(
    left: Tensor, right: Tensor, n: int, row: int | None = None
) -> list[tuple[int, int, float]]:
    """The `n` largest entries of left @ right^T (V, V), or of one row: (row, column, value)."""
    rows = torch.arange(len(left)) if row is None else torch.tensor([row])
    best: list[tuple[int, int, float]] = []
    for some in rows.split(chunk_of(len(right))):
        part = left[some] @ right.T  # (chunk, V)
        # Only a row whose largest entry is among the best needs its entries sorted.
        least = best[-1][2] if len(best) == n else -torch.inf
        able = (part.amax(dim=-1) > least).nonzero()[:, 0].tolist()
        top = part[able].flatten().topk(min(n, len(able) * len(right)))
        for at, value in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            i, column = divmod(at, len(right))
            best.append((int(some[able[i]]), column, value))
        best = sorted(best, key=lambda pair: -pair[2])[:n]
    return best


# --- composition ---------------------------------------------------------------------------------


def compositions(model: GPT, layer: int, head: int) -> Iterator[tuple[str, int, int, float]]:
    """(kind, layer, head, score) of every earlier head, for Q, K and V.

    With W_QK = W_Q^T W_K and W_OV = W_O W_V, the gain and the centring of the norm before a head
    being part of its W_Q, W_K and W_V: ||W_QK^T W_OV|| for Q, ||W_QK W_OV|| for K and
    ||W_OV W_OV|| for V, by the norms of both factors. No matrix is larger than (D, C).
    """
    later = _folded(model, layer, head)
    inner: dict[str, tuple[Tensor, Tensor]] = {  # outer factor (C, D), and what reads (D, C)
        "Q": (later.k.T, later.q), "K": (later.q.T, later.k), "V": (later.out, later.v),
    }  # fmt: skip
    for at in range(layer):
        for earlier in range(model.config.n_head):
            first = _folded(model, at, earlier)
            for kind, (outer, reader) in inner.items():
                both = norm(outer, reader @ first.out @ first.v)
                apart = norm(outer, reader) * norm(first.out, first.v)
                yield kind, at, earlier, float(both / apart) if apart else 0.0


def norm(left: Tensor, right: Tensor) -> Tensor:
    """The Frobenius norm of left @ right, (C, D) and (D, C), from (D, D) matrices alone."""
    return ((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt()


def _folded(model: GPT, layer: int, head: int) -> Weights:
    """A head's matrices in fp64, q, k and v with the gain and the centring of their norm."""
    w = weights_of(model, layer, head)
    gain = model.block(layer).norm_1.weight.double()

    def fold(matrix: Tensor) -> Tensor:
        scaled = matrix.double() * gain
        return scaled - scaled.mean(dim=-1, keepdim=True)

    return Weights(fold(w.q), fold(w.k), fold(w.v), w.out.double(), w.biases.double())
