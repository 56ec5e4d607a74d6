"""From logits to a token: pure filters (..., V) -> (..., V), and the order in which they apply.

A filter that cuts sets logits to -inf; none knows of models or text. The order stands once, in
`config.ORDER`: help text, the sampling view and the draw all follow it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
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


Filter = Callable[[Tensor], Tensor]
CUTS = ORDER[ORDER.index("temperature") + 1 :]  # these only set logits to -inf


def in_force(sampling: Sampling, counts: Tensor | None = None) -> Iterator[tuple[str, Filter]]:
    """The filters that change anything, by name and in their order.

    `counts` (..., V), as `seen` makes them, is needed only where `sampling.penalises`.
    """
    s = sampling

    def penalised(x: Tensor, by: Callable[..., Tensor], penalty: float) -> Tensor:
        return by(x, torch.zeros_like(x) if counts is None else counts, penalty)

    filters: dict[str, tuple[object, Filter]] = {  # in force?, what it does
        "bias": (s.bias, lambda x: with_bias(x, dict(s.bias))),
        "repetition_penalty": (
            s.repetition_penalty != 1,
            lambda x: penalised(x, with_repetition_penalty, s.repetition_penalty),
        ),
        "presence_penalty": (
            s.presence_penalty,
            lambda x: penalised(x, with_presence_penalty, s.presence_penalty),
        ),
        "frequency_penalty": (
            s.frequency_penalty,
            lambda x: penalised(x, with_frequency_penalty, s.frequency_penalty),
        ),
        "temperature": (s.temperature != 1, lambda x: with_temperature(x, s.temperature)),
        "top_k": (s.top_k, lambda x: with_top_k(x, s.top_k)),
        "top_p": (s.top_p < 1, lambda x: with_top_p(x, s.top_p)),
        "min_p": (s.min_p, lambda x: with_min_p(x, s.min_p)),
        "typical_p": (s.typical_p < 1, lambda x: with_typical_p(x, s.typical_p)),
    }
    return ((name, filters[name][1]) for name in ORDER if filters[name][0])


def stages(
    logits: Tensor, sampling: Sampling, counts: Tensor | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Each filter in force, by name, with the logits that it leaves; the last are drawn from."""
    for name, apply in in_force(sampling, counts):
        logits = apply(logits)
        yield name, logits


def filtered(logits: Tensor, sampling: Sampling, counts: Tensor | None = None) -> Tensor:
    """The logits to draw from: (..., V) -> (..., V)."""
    return [logits, *(stage for _, stage in stages(logits, sampling, counts))][-1]


class Left(NamedTuple):
    """What the filters leave of one row, rarely much."""

    ids: Tensor  # (n,), ascending
    logprobs: Tensor  # (n,), natural logs of probabilities that sum to 1

    def logprobs_of(self, ids: Tensor) -> list[float]:
        """Those of `ids` (k,), -inf where the filters cut them."""
        places = torch.searchsorted(self.ids, ids).clamp_(max=self.ids.numel() - 1)
        there = self.ids.index_select(0, places).tolist()
        logprobs = self.logprobs.index_select(0, places).tolist()
        found = zip(ids.tolist(), there, logprobs, strict=True)
        return [logprob if id == other else -math.inf for id, other, logprob in found]


def left(logits: Tensor, sampling: Sampling, counts: Tensor | None = None) -> list[Left]:
    """What is left of each row of `logits` (B, V), if anything: what is not -inf in `filtered`.

    Of each filter that cuts, the next is only given what it left.
    """
    cuts: list[Filter] = []
    for name, apply in in_force(sampling, counts):
        if name in CUTS:
            cuts.append(apply)
        elif name == "temperature" and not sampling.temperature:
            return _largest(logits)
        else:
            logits = apply(logits)
    for apply in cuts[:1]:  # all rows at once: what each of them has left is small
        logits = apply(logits)
    return [_left(row, cuts[1:]) for row in logits.unbind()]


def _largest(logits: Tensor) -> list[Left]:
    """The largest of each row of `logits` (B, V), unless it is -inf; among equals the lowest id.

    On a CPU, NumPy finds it ten times as fast.
    """
    if logits.device.type == "cpu":
        ids = torch.from_numpy(logits.detach().numpy().argmax(axis=-1))
    else:
        ids = logits.argmax(dim=-1)
    certain = torch.zeros(1, device=logits.device)
    there = (logits.gather(1, ids[:, None])[:, 0] != -math.inf).tolist()
    return [
        Left(id[:is_there], certain[:is_there])
        for id, is_there in zip(ids.split(1), there, strict=True)
    ]


def _left(row: Tensor, cuts: Sequence[Filter]) -> Left:
    ids = (row != -math.inf).nonzero().flatten()
    row = row.index_select(0, ids)
    for cut in cuts:
        if not row.numel():
            break
        row = cut(row)
        there = (row != -math.inf).nonzero().flatten()
        row, ids = row.index_select(0, there), ids.index_select(0, there)
    return Left(ids, row.log_softmax(dim=0))


def seen(rows: Sequence[Sequence[int]], window: int, vocab_size: int) -> Tensor:
    """How often each id occurs among the last `window` ids of each row, 0: of all: (B, V)."""
    tails = [torch.tensor(row[-window:] if window else row, dtype=torch.long) for row in rows]
    return torch.stack([tail.bincount(minlength=vocab_size) for tail in tails])


def draw(probs: Tensor, points: Tensor) -> Tensor:
    """Where numbers `points` (B,) from 0 to 1 fall in the running sums of `probs` (B, V): (B,).

    One number a token, whatever V is, so that the last bits of the logits hardly ever change the
    choice: the same seed gives the same text with and without cache, stream and batch.
    """
    sums = probs.double().cumsum(dim=-1)  # (B, V)
    places = torch.searchsorted(sums, points[:, None] * sums[:, -1:], right=True)[:, 0]
    return places.clamp(max=probs.shape[-1] - 1)


def generator_for(seed: int, *path: int) -> torch.Generator:
    """The random numbers of one sample, say `(seed, prompt, sample)`, whatever others there are."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
