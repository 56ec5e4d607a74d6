"""From logits to a token: pure filters (..., V) -> (..., V), and the order in which they apply.

A filter sets what it cuts to -inf and knows nothing of models or tokens. The order stands once, in
`stages`; help text, the sampling view and the draw all follow it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from llmcli.config import Sampling


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by `temperature`: below 1 the likely become likelier."""
    return logits / temperature


def with_top_k(logits: Tensor, k: int) -> Tensor:
    """The `k` largest logits, exactly; among equals the lowest ids stay (arXiv:1805.04833)."""
    if k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k, dim=-1).values[..., -1:]  # the k-th largest
    above, equal = logits > smallest, logits == smallest
    places = k - above.sum(dim=-1, keepdim=True)
    keep = above | (equal & (equal.cumsum(dim=-1) <= places))
    return logits.masked_fill(~keep, -math.inf)


def with_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest most probable tokens that together reach `p`, at least one (arXiv:1904.09751)."""
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    keep_ordered = before < p
    keep_ordered[..., 0] = True
    keep = torch.zeros_like(keep_ordered).scatter(-1, ids, keep_ordered)
    return logits.masked_fill(~keep, -math.inf)


def stages(logits: Tensor, sampling: Sampling) -> Iterator[tuple[str, Tensor]]:
    """Each filter in force, by name, with the logits that it leaves; the last are drawn from."""
    if sampling.temperature == 0:
        yield "greedy", with_top_k(logits, 1)
        return
    if sampling.temperature != 1:
        logits = with_temperature(logits, sampling.temperature)
        yield "temperature", logits
    if sampling.top_k:
        logits = with_top_k(logits, sampling.top_k)
        yield "top_k", logits
    if sampling.top_p < 1:
        logits = with_top_p(logits, sampling.top_p)
        yield "top_p", logits


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """The logits to draw from: (..., V) -> (..., V)."""
    return [logits, *(left for _, left in stages(logits, sampling))][-1]


def draw(probs: Tensor, generator: torch.Generator) -> int:
    """An id drawn from `probs` (V,): where one uniform number falls in their running sum.

    One number a token, whatever V is, so that the last bits of the logits hardly ever change the
    choice: the same seed gives the same text with and without cache, stream and batch.
    """
    total = probs.double().cumsum(dim=0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * total[-1]
    place = torch.searchsorted(total, point.to(total.device), right=True)
    return min(int(place), len(total) - 1)


def generator_for(seed: int, row: int) -> torch.Generator:
    """The random numbers of sample `row`; the same however many samples there are."""
    return torch.Generator().manual_seed((seed + row * 0x9E3779B97F4A7C15) % 2**63)
