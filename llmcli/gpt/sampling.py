"""From logits to a token: pure filters (..., V) -> (..., V), and the order in which they apply.

A filter that cuts sets logits to -inf; none knows of models or text. The order stands once, in
`config.ORDER`: help text, the sampling view and the draw all follow it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmcli.config import ORDER, Sampling


def with_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Logits with something added to some ids; -inf forbids an id."""
    added = torch.zeros_like(logits)
    for id, value in bias.items():
        added[..., id] = value
    return logits + added


def with_repetition_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Ids seen before made less likely: divided if positive, else multiplied (arXiv:1909.05858)."""
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(counts > 0, lower, logits)


def with_presence_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """`penalty` taken off each id seen before."""
    return logits - penalty * (counts > 0)


def with_frequency_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """`penalty` taken off each id as often as it was seen."""
    return logits - penalty * counts


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by `temperature`: below 1 the likely become likelier; 0 leaves the largest."""
    return logits / temperature if temperature else with_top_k(logits, 1)


def with_top_k(logits: Tensor, k: int) -> Tensor:
    """The `k` largest logits, exactly; among equals the lowest ids stay (arXiv:1805.04833)."""
    if k >= logits.shape[-1]:
        return logits
    if k == 1:  # every step of a greedy text
        largest, id = logits.max(dim=-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter_(-1, id, largest)
    smallest = logits.topk(k, dim=-1).values[..., -1:]  # the k-th largest
    keep = logits >= smallest
    if (keep.sum(dim=-1) > k).any():  # several are equal to it
        above, equal = logits > smallest, logits == smallest
        places = k - above.sum(dim=-1, keepdim=True)
        keep = above | (equal & (equal.cumsum(dim=-1) <= places))
    return logits.masked_fill(~keep, -math.inf)


def with_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest most probable tokens that together reach `p`, at least one (arXiv:1904.09751)."""
    return _keep_first(logits, -logits, p)


def with_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least `p` times as probable as the most probable one (arXiv:2407.01082)."""
    least = logits.amax(dim=-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, -math.inf)


def with_typical_p(logits: Tensor, p: float) -> Tensor:
    """The tokens whose surprise is nearest the entropy, until they reach `p` (arXiv:2202.00666)."""
    logprobs = logits.log_softmax(dim=-1)
    entropy = torch.special.entr(logprobs.exp()).sum(dim=-1, keepdim=True)  # nats
    return _keep_first(logits, (-logprobs - entropy).abs(), p)


def _keep_first(logits: Tensor, key: Tensor, p: float) -> Tensor:
    """The tokens with the smallest `key` whose predecessors have not reached `p`; at least one."""
    probs = logits.softmax(dim=-1)
    order = _first(key, probs, p)
    sums = probs.gather(-1, order)
    keep = sums.cumsum(dim=-1) - sums < p
    keep[..., 0] = True
    return logits.masked_fill(
        ~torch.zeros_like(probs, dtype=torch.bool).scatter(-1, order, keep), -math.inf
    )


FIRST = 256  # tokens looked at first: to sort a vocabulary takes half as long as a decode step


def _first(key: Tensor, probs: Tensor, p: float) -> Tensor:
    """Ids (..., n) by `key`, equal ones by id: the first that together reach `p`, or all V."""
    if key.shape[-1] > FIRST:
        ids = key.topk(FIRST, dim=-1, largest=False, sorted=False).indices.sort(dim=-1).values
        keys, places = key.gather(-1, ids).sort(dim=-1, stable=True)
        order = ids.gather(-1, places)
        # Others may be equal to the last of these: what counts is what comes before it for certain.
        certain = probs.gather(-1, order).masked_fill(keys == keys[..., -1:], 0)
        if (certain.sum(dim=-1) >= p).all():
            return order
    return key.sort(dim=-1, stable=True).indices


Filter = Callable[
    [Tensor, "Tensor | None"], Tensor
]  # logits and counts (..., V), as `seen` has them
CERTAIN = np.zeros(1, np.float32)  # the logprob of what is left alone
CUTS = ORDER[ORDER.index("temperature") + 1 :]  # these only set logits to -inf


@lru_cache(maxsize=16)
def in_force(sampling: Sampling) -> tuple[tuple[str, Filter], ...]:
    """The filters that change anything, by name and in their order.

    Only those that penalise look at the counts; without any, no id was seen.
    """
    s = sampling

    def alone(function: Callable[..., Tensor], value: object) -> Filter:
        return lambda x, counts: function(x, value)

    def counted(function: Callable[..., Tensor], penalty: float) -> Filter:
        return lambda x, counts: function(
            x, torch.zeros_like(x) if counts is None else counts, penalty
        )

    filters: dict[str, tuple[object, Filter]] = {  # in force?, what it does
        "bias": (s.bias, alone(with_bias, dict(s.bias))),
        "repetition_penalty": (
            s.repetition_penalty != 1,
            counted(with_repetition_penalty, s.repetition_penalty),
        ),
        "presence_penalty": (
            s.presence_penalty,
            counted(with_presence_penalty, s.presence_penalty),
        ),
        "frequency_penalty": (
            s.frequency_penalty,
            counted(with_frequency_penalty, s.frequency_penalty),
        ),
        "temperature": (s.temperature != 1, alone(with_temperature, s.temperature)),
        "top_k": (s.top_k, alone(with_top_k, s.top_k)),
        "top_p": (s.top_p < 1, alone(with_top_p, s.top_p)),
        "min_p": (s.min_p, alone(with_min_p, s.min_p)),
        "typical_p": (s.typical_p < 1, alone(with_typical_p, s.typical_p)),
    }
    return tuple((name, filters[name][1]) for name in ORDER if filters[name][0])


def stages(
    logits: Tensor, sampling: Sampling, counts: Tensor | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Each filter in force, by name, with the logits that it leaves; the last are drawn from."""
    for name, apply in in_force(sampling):
        logits = apply(logits, counts)
        yield name, logits


def filtered(logits: Tensor, sampling: Sampling, counts: Tensor | None = None) -> Tensor:
    """The logits to draw from: (..., V) -> (..., V)."""
    return [logits, *(stage for _, stage in stages(logits, sampling, counts))][-1]


class Left(NamedTuple):
    """What the filters leave of one row, rarely much: so NumPy has it, whose calls cost little."""

    ids: NDArray[np.int64]  # (n,), ascending
    logprobs: NDArray[np.float32]  # (n,), natural logs of probabilities that sum to 1
    largest: float  # of the row's logits before any was cut: NaN if one of them is

    def logprobs_of(self, ids: Sequence[int]) -> list[float]:
        """Those of `ids`, -inf where the filters cut them."""
        places = self.ids.searchsorted(ids).clip(max=len(self.ids) - 1)
        there = self.ids[places] == ids
        return np.where(there, self.logprobs[places], -math.inf).tolist()


def left(logits: Tensor, sampling: Sampling, counts: Tensor | None = None) -> list[Left]:
    """What is left of each row of `logits` (B, V), if anything: what is not -inf in `filtered`.

    Of each filter that cuts, the next is only given what it left. For logits on a CPU.
    """
    cuts: list[Filter] = []
    for name, apply in in_force(sampling):
        if name in CUTS:
            cuts.append(apply)
        elif name == "temperature" and not sampling.temperature:
            return [_largest(row) for row in logits.numpy()]
        else:
            logits = apply(logits, counts)
    largest = logits.numpy().max(axis=1).tolist()
    for apply in cuts[:1]:  # all rows at once: what each of them has left is small
        logits = apply(logits, counts)
    return [_left(*row, cuts[1:]) for row in zip(logits.numpy(), largest, strict=True)]


def _largest(row: NDArray[np.float32]) -> Left:
    """The largest of a row (V,), among equals the lowest id; nothing of a row of -inf."""
    id = row.argmax()
    largest = float(row[id])
    n = int(largest != -math.inf)
    return Left(np.array([id])[:n], CERTAIN[:n], largest)


def _left(row: NDArray[np.float32], largest: float, cuts: Sequence[Filter]) -> Left:
    ids = np.flatnonzero(row != -math.inf)
    row = row[ids]
    for cut in cuts:
        if not len(row):
            break
        row = cut(torch.from_numpy(row), None).numpy()
        there = np.flatnonzero(row != -math.inf)
        row, ids = row[there], ids[there]
    return Left(ids, torch.from_numpy(row).log_softmax(dim=0).numpy(), largest)


def seen(rows: Sequence[Sequence[int]], window: int, vocab_size: int) -> Tensor:
    """How often each id occurs among the last `window` ids of each row, 0: of all: (B, V)."""
    tails = [torch.tensor(row[-window:] if window else row, dtype=torch.long) for row in rows]
    return torch.stack([tail.bincount(minlength=vocab_size) for tail in tails])


def draw(probs: NDArray[np.float32], point: float) -> int:
    """Where a number `point` from 0 to 1 falls in the running sums of `probs` (V,).

    One number a token, whatever V is, so that the last bits of the logits hardly ever change the
    choice: the same seed gives the same text with and without cache, stream and batch.
    """
    sums = probs.cumsum(dtype=np.float64)
    place = int(sums.searchsorted(point * sums[-1], side="right"))
    return min(place, len(probs) - 1)


def points(generator: torch.Generator, n: int) -> list[float]:
    """The next `n` numbers to draw with, from 0 to 1."""
    return torch.rand(n, generator=generator, dtype=torch.float64).tolist()


def generator_for(seed: int, *path: int) -> torch.Generator:
    """The random numbers of one sample, say `(seed, prompt, sample)`, whatever others there are."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
