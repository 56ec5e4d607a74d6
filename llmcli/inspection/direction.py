"""A direction made from examples: what sets activations of one kind apart from those of another.

An example's activation is the mean of a layer's resid_post over its tokens, so that a long one
counts no more than a short one. The difference of means is contrastive activation addition
(arXiv:2312.06681); the first principal component of paired differences, not centred, is the linear
reading of "Representation Engineering" (arXiv:2310.01405). Knows tensors, no views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from llmcli.gpt.model import GPT
from llmcli.inspection.attribution import through_norm
from llmcli.inspection.intervention import seen, without_prefix
from llmcli.inspection.run import cosines

MAX_FOLDS = 10

Make = Callable[[Tensor, Tensor], Tensor]  # activations (P, C) and (N, C) -> a vector (C,)


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """The mean of `positive` (P, C) minus that of `negative` (N, C): (C,)."""
    return positive.mean(dim=0) - negative.mean(dim=0)


def first_component(positive: Tensor, negative: Tensor) -> Tensor:
    """The first principal component of the differences of pairs, (N, C) each: (C,).

    Not centred: what all pairs have in common is what is looked for. A component has neither sign
    nor length: it takes both from the mean difference along it, so that it points to `positive`,
    and one such vector is the distance of the means.
    """
    differences = positive - negative
    unit = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    return (unit @ differences.mean(dim=0)) * unit


METHODS: Mapping[str, Make] = {"mean": mean_difference, "pca": first_component}


def activations(model: GPT, texts: Sequence[Sequence[int]], n_prefix: int) -> tuple[Tensor, Tensor]:
    """What each text is at each layer, the mean over its own tokens, in fp64: (L, N, C).

    And how long the stream is at each of those tokens, as the mean: (L, N); their mean is shorter.
    """
    means, lengths = [], []
    for ids in texts:
        values = seen(model, ids, "*.resid_post")  # (T, C) each
        layers = [values[f"{layer}.resid_post"] for layer in range(model.config.n_layer)]
        stream = torch.stack([without_prefix(x, n_prefix).double() for x in layers])  # (L, T, C)
        means.append(stream.mean(dim=1))
        lengths.append(stream.norm(dim=2).mean(dim=1))
    return torch.stack(means, dim=1), torch.stack(lengths, dim=1)


def along(vector: Tensor, positive: Tensor, negative: Tensor, examples: Tensor) -> Tensor:
    """How far `examples` (N, C) lie along `vector`, from the middle of the two kinds: (N,)."""
    middle = (positive.mean(dim=0) + negative.mean(dim=0)) / 2
    return (examples - middle) @ (vector / vector.norm().clamp(min=1e-30))


def held_out(make: Make, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor] | None:
    """`along` for each example on a vector that was made without it; None with one of a kind.

    In many dimensions any two handfuls of points can be told apart by a vector made from them:
    only examples that it has not seen say whether it holds for others.
    """
    n_folds = min(MAX_FOLDS, len(positive), len(negative))
    if n_folds < 2:
        return None
    found = tuple(torch.empty(len(x), dtype=x.dtype) for x in (positive, negative))
    for fold in range(n_folds):
        out = [torch.arange(len(x)) % n_folds == fold for x in (positive, negative)]
        rest = positive[~out[0]], negative[~out[1]]
        vector = make(*rest)
        for places, mine, all_of in zip(found, out, (positive, negative), strict=True):
            places[mine] = along(vector, *rest, all_of[mine])
    return found[0], found[1]


def n_apart(positive: Tensor, negative: Tensor) -> int:
    """How many of both kinds' places along a vector, (P,) and (N,), are on their own side."""
    return int((positive > 0).sum() + (negative < 0).sum())


@torch.inference_mode()
def likeness(model: GPT, vector: Tensor) -> Tensor:
    """The cosine of `vector` (C,) with each token's row of the unembedding: (V,).

    Read as the lens reads a stream: centred and times the final norm's gain. The scale that the
    norm would divide by has no part in a cosine.
    """
    read = through_norm(model, vector[None].double(), vector.double())  # (1, C)
    return cosines(model.head.weight, read)[:, 0]
