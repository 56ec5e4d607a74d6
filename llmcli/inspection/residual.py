"""The residual stream at one position: how long it is, what is added to it, how it is normed.

"A Mathematical Framework for Transformer Circuits" (2021) for the stream that all parts add to;
"Layer Normalization" (arXiv:1607.06450) for mean and variance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run, cosine
from llmcli.inspection.values import Row, Token, View


@dataclass(frozen=True, slots=True)
class Addition(Row):
    """What one part adds, and the stream after that."""

    key: ClassVar = ("part",)

    part: str  # "embed", "pos_embed", "L3.attn", "L3.mlp"; "L3.resid_post" is what a patch put in
    added_norm: float
    added_cosine: float  # of what is added with the final vector
    norm: float  # of the stream
    cosine: float  # of the stream with the final vector


@dataclass(frozen=True, slots=True)
class Norm(Row):
    """The numbers of one vector before and after a layer norm, its gain and bias included."""

    key: ClassVar = ("norm",)

    norm: str  # "L3.norm_1", "norm_f"
    mean_before: float
    variance_before: float
    mean_after: float
    variance_after: float


@dataclass(frozen=True, slots=True)
class Residual(View):
    """The stream from the embedding to the final norm."""

    name: ClassVar[str] = "residual"

    n_tokens: int
    position: int
    token: Token  # at the position
    additions: tuple[Addition, ...]
    norms: tuple[Norm, ...]
    notes: tuple[str, ...]


NOTES = (
    "measured. Cosines are with the final vector, the stream after the last layer, before the "
    "final norm: what the next token is read from.",
    "A layer norm reads the stream and leaves it as it is. What it hands on includes its gain and "
    "bias, so that its mean is not 0 and its variance not 1. Variance is over the numbers of one "
    "vector, divided by their count.",
)


@torch.inference_mode()
def view(run: Run, ask: Ask) -> Residual:
    """Norms, cosines, means and variances at `position`."""
    seen = {name: value[ask.position].float() for name, value in tensors(run, ask).items()}  # (C,)
    final = seen[run.end]
    rows = [
        Addition(part, float(added.norm()), cosine(added, final), float(stream.norm()),
                 cosine(stream, final))
        for part, added, stream in additions(run, seen)
    ]  # fmt: skip
    return Residual(
        n_tokens=len(run.ids),
        position=ask.position,
        token=run.tokens[ask.position],
        additions=tuple(rows),
        norms=tuple(_norms(run, seen)),
        notes=NOTES,
    )


@torch.inference_mode()
def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """The stream, what is added to it and each norm of it, by the names of their points: (T, C)."""
    points = ("embed", "pos_embed", "*.resid_*", "*.attn_out", "*.mlp_out", "*.norm_*")
    seen = run.record(*points)
    return {**seen, "norm_f": run.model.norm_f(seen[run.end])}


def additions(run: Run, seen: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each part in turn, what it adds and the stream after it; the last stream is the final one.

    What a patch put into the stream itself is an addition by the name of its point.
    """
    stream = seen["embed"]
    yield "embed", stream, stream
    stream = stream + seen["pos_embed"]
    yield "pos_embed", seen["pos_embed"], stream
    for layer in range(run.config.n_layer):
        for part, point in (("", "resid_pre"), ("attn", "resid_mid"), ("mlp", "resid_post")):
            after = seen[f"{layer}.{point}"]
            put_in = f"{layer}.{point}" in run.patch
            if part:
                added = seen[f"{layer}.{part}_out"]
                stream = stream + added if put_in else after
                yield f"L{layer}.{part}", added, stream
            if put_in:
                yield f"L{layer}.{point}", after - stream, after
            stream = after


def _norms(run: Run, seen: dict[str, Tensor]) -> Iterator[Norm]:
    """Each layer norm in turn, between the stream that it reads and what it makes of that."""
    pairs = [
        (f"{layer}.{norm}", f"{layer}.{point}")
        for layer in range(run.config.n_layer)
        for norm, point in (("norm_1", "resid_pre"), ("norm_2", "resid_mid"))
    ]
    for norm, point in [*pairs, ("norm_f", run.end)]:
        before, after = seen[point], seen[norm]
        name = norm if norm == "norm_f" else f"L{norm}"
        yield Norm(name, *_moments(before), *_moments(after))


def _moments(vector: Tensor) -> tuple[float, float]:
    """Mean and variance of the numbers of a vector (C,), as a layer norm takes them."""
    return float(vector.mean()), float(vector.var(unbiased=False))
