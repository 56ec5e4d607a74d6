"""One head at one position, step by step, in numbers that can be checked with a pencil.

softmax(q k^T / sqrt(D)) v, Eq. 1 of arXiv:1706.03762, and the head's share of W_O. What the model
computed is rounded first; every further number follows from the printed ones, exactly, in decimal
arithmetic. The model's own stand beside, so that it shows what the rounding did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llmcli.errors import UsageError
from llmcli.inspection.ask import Ask
from llmcli.inspection.attribution import through_norm
from llmcli.inspection.run import Run
from llmcli.inspection.values import Row, Token, View

VECTOR, SUM, WEIGHT = 3, 4, 6  # decimals of q, k, v; of dot products; of exp and the weights
DIGITS = 7  # of any number at most: what fp32 has, and what all forms write
PUSHED = 5  # tokens listed for and against


@dataclass(frozen=True, slots=True)
class Key(Row):
    """A place that the position may read, or not; `model_` is what the model itself computed."""

    key: ClassVar = ("position", "token")

    position: int
    token: Token
    visible: bool  # not behind the causal mask, not knocked out
    k: tuple[float, ...]  # (D,)
    dot: float  # q . k
    score: float | None  # dot / divisor; None is -inf, by the mask
    model_score: float | None
    exp: float  # e ** (score - greatest)
    weight: float  # exp / total
    model_weight: float
    v: tuple[float, ...]  # (D,)


@dataclass(frozen=True, slots=True)
class Push(Row):
    """What the head's writing adds to a token's logit, beyond what it adds to the average one."""

    key: ClassVar = ("token",)

    token: Token
    adds: float


@dataclass(frozen=True, slots=True)
class Head(View):
    """q, keys, scores, weights, z, and what is written into the stream."""

    name: ClassVar[str] = "head"
    compared: ClassVar = ("n_visible", "q", "greatest", "total", "z", "model_z", "written",
                          "model_written", "norm", "stream_norm")  # fmt: skip
    about: ClassVar = {"component": ("written", "model_written")}

    layer: int
    head: int
    position: int
    token: Token
    n_tokens: int
    n_visible: int
    n_embd: int
    head_dim: int
    divisor: float  # sqrt(head_dim) in most models
    q: tuple[float, ...]  # (D,)
    greatest: float  # of the scores
    total: float  # of exp
    z: tuple[float, ...]  # (D,)
    model_z: tuple[float, ...]
    component: int  # of the stream: the one that the head writes most into
    w_out: tuple[float, ...]  # (D,): W_O's weights into it
    written: float  # z . w_out
    model_written: float
    norm: float  # of all C numbers that the head writes
    stream_norm: float  # of the stream that it adds them to
    score_error: float  # the largest difference between a printed number and the model's
    weight_error: float
    z_error: float
    keys: tuple[Key, ...]
    pushes: tuple[Push, ...]  # the most for, then the most against
    notes: tuple[str, ...]


NOTES = (
    f"measured, then rounded: q, k and v to {VECTOR} decimals, weights of W_O to {SUM}. Every "
    "further number is computed from the printed ones and rounded, halves away from zero: exp and "
    f"weight to {WEIGHT} decimals, all else to {SUM}; none has more than {DIGITS} digits. The "
    "model's own numbers, unrounded, are those that say so.",
    "derived: what the head does to tokens, straight through the final norm at the scale it has "
    "here, beside the average token. W_O's bias belongs to no head and is left out.",
)
CHANGED = (
    "The run is changed: where scores, pattern or z were replaced after they had been computed, "
    "the model's own numbers are the replaced ones."
)


def which(ask: Ask, view: str) -> tuple[int, int]:
    """The layer and the head asked for. Raises UsageError where one of them is not said."""
    if ask.layer is None or ask.head is None:
        raise UsageError(
            f"--view {view} is about one head, and needs to know which.",
            "For example: --layer 0 --head 1; --view attention shows them all.",
        )
    return ask.layer, ask.head


@torch.inference_mode()
def view(run: Run, ask: Ask) -> Head:
    """The head at `position`; the `rows` keys with the greatest scores (all without it)."""
    layer, head = which(ask, "head")
    p, config = ask.position, run.config
    names = [f"{layer}.{point}" for point in ("q", "k", "v", "scores", "pattern", "z")]
    stream = f"{layer}.resid_pre"
    seen = run.record(*names, stream, run.end)
    q, k, v, scores, pattern, z = (seen[name][head].float() for name in names)
    divisor = rounded(Decimal(1 / config.attn_scale(layer)), WEIGHT)
    sums = worked(q[p], k, v, torch.isfinite(scores[p]).tolist(), divisor)
    w_out = run.model.block(layer).attn.w_out[:, head].float()  # (C, D)
    written = w_out @ z[p]  # (C,)
    by_hand = w_out @ torch.tensor(floats(sums.z)).to(w_out)  # which a change may replace
    component = int(by_hand.abs().argmax())
    column = decimals(w_out[component], SUM)
    own_scores, own_weights, own_z = scores[p].tolist(), pattern[p].tolist(), z[p].tolist()
    keys = [
        Key(
            i, run.tokens[i], sums.scores[i] is not None, floats(sums.k[i]), float(sums.dots[i]),
            _float(sums.scores[i]), None if sums.scores[i] is None else own_scores[i],
            float(sums.exps[i]), float(sums.weights[i]), own_weights[i], floats(sums.v[i]),
        )
        for i in sorted(sums.order[: ask.rows])
    ]  # fmt: skip
    visible = [i for i, score in enumerate(sums.scores) if score is not None]
    return Head(
        layer=layer,
        head=head,
        position=p,
        token=run.tokens[p],
        n_tokens=len(run.ids),
        n_visible=len(visible),
        n_embd=config.n_embd,
        head_dim=config.head_dim,
        divisor=float(divisor),
        q=floats(sums.q),
        greatest=float(sums.greatest),
        total=float(sums.total),
        z=floats(sums.z),
        model_z=tuple(own_z),
        component=component,
        w_out=floats(column),
        written=float(rounded(dot(sums.z, column), SUM)),
        model_written=float(written[component]),
        norm=float(written.norm()),
        stream_norm=float(seen[stream][p].float().norm()),
        score_error=_apart([_float(sums.scores[i]) for i in visible], own_scores, visible),
        weight_error=_apart(floats(sums.weights), own_weights, range(len(own_weights))),
        z_error=_apart(floats(sums.z), own_z, range(len(own_z))),
        keys=tuple(keys),
        pushes=tuple(_pushes(run, written, seen[run.end][p])),
        notes=(*NOTES, CHANGED) if run.patch else NOTES,
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`q`, `k`, `v`, `z` (T, D), `scores`, `pattern` (T, T) of the head, as the model has them."""
    layer, head = which(ask, "head")
    points = ("q", "k", "v", "scores", "pattern", "z")
    seen = run.record(*[f"{layer}.{point}" for point in points])
    return {point: seen[f"{layer}.{point}"][head].float() for point in points}


# --- decimal arithmetic --------------------------------------------------------------------------


class Sums(NamedTuple):
    """Every number as it is printed; lists of keys are by position."""

    q: list[Decimal]  # (D,)
    k: list[list[Decimal]]  # (T, D)
    v: list[list[Decimal]]
    dots: list[Decimal]
    scores: list[Decimal | None]
    greatest: Decimal
    exps: list[Decimal]
    total: Decimal
    weights: list[Decimal]
    order: list[int]  # the keys, that with the greatest score first
    z: list[Decimal]  # (D,)


def worked(q: Tensor, k: Tensor, v: Tensor, visible: Sequence[bool], divisor: Decimal) -> Sums:
    """Attention of one query `q` (D,) over `k`, `v` (T, D), each step from the printed numbers."""
    query = decimals(q, VECTOR)
    keys, values = ([decimals(x, VECTOR) for x in table] for table in (k, v))
    dots = [rounded(dot(query, key), SUM) for key in keys]
    scores = [
        rounded(product / divisor, SUM) if seen else None
        for product, seen in zip(dots, visible, strict=True)
    ]
    greatest = max(score for score in scores if score is not None)
    exps = [
        Decimal(0) if score is None else rounded((score - greatest).exp(), WEIGHT)
        for score in scores
    ]
    order = sorted(range(len(scores)), key=lambda i: (scores[i] is None, -(scores[i] or 0)))
    total = rounded(sum(exps, Decimal(0)), WEIGHT)
    weights = [rounded(exp / total, WEIGHT) for exp in exps]
    z = [rounded(dot(weights, column), SUM) for column in zip(*values, strict=True)]
    return Sums(query, keys, values, dots, scores, greatest, exps, total, weights, order, z)


def rounded(value: Decimal, places: int) -> Decimal:
    """`value` to `places` decimals, halves away from zero; fewer where DIGITS would be exceeded."""
    whole = max(1, value.adjusted() + 1)
    step = Decimal(1).scaleb(-max(0, min(places, DIGITS - whole)))
    return value.quantize(step, ROUND_HALF_UP) + 0  # + 0: no minus before a zero


def decimals(values: Tensor, places: int) -> list[Decimal]:
    """The numbers of a vector, rounded."""
    return [rounded(Decimal(x), places) for x in values.tolist()]


def dot(a: Sequence[Decimal], b: Sequence[Decimal]) -> Decimal:
    """The sum of the products, exactly."""
    return sum((x * y for x, y in zip(a, b, strict=True)), Decimal(0))


def floats(values: Sequence[Decimal]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _apart(ours: Sequence[float | None], own: Sequence[float], places: Sequence[int]) -> float:
    """The largest difference between our numbers and the model's own at `places`."""
    return max(abs((x or 0.0) - own[i]) for x, i in zip(ours, places, strict=True))


# --- what it does to the next token --------------------------------------------------------------


def _pushes(run: Run, written: Tensor, final: Tensor) -> list[Push]:
    """The tokens whose logits the vector `written` (C,) raises most, and those it lowers most.

    None where it is zero, as that of a silenced head.
    """
    if not written.any():
        return []
    share = through_norm(run.model, written[None].double(), final.double())
    logits = run.model.head(share.to(run.dtype))[0].float()  # (V,)
    logits = logits - logits.mean()
    order = logits.argsort(descending=True).tolist()
    ids = [*order[:PUSHED], *order[max(PUSHED, len(order) - PUSHED) :][::-1]]
    return [Push(run.token(id), float(logits[id])) for id in ids]
