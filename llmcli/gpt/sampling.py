"""From logits to a token: pure filters of one row, and the order in which they apply.

Some change logits, others cut: they say which places stay. None knows of models or text. The order
stands once, in `config.ORDER`: help text, the sampling view and the draw all follow it. In NumPy:
torch takes longer to be called than a row takes to be looked at. Even so a small model's step feels
each call, so that ufuncs and methods stand here where functions of the same name wrap them.

A filter that cuts is given numbers, or -inf where a bias forbids an id.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.config import ORDER, Sampling

Row = NDArray[np.float32]  # logits (V,), or (n,) where others were cut; torch can share it
Places = NDArray[np.int64]  # in a row, ascending
Drawable = slice | Places  # the ids that may be drawn: those below a number, or such a list
EVERY = slice(None)

# --- what changes logits: (V,) -> (V,) -----------------------------------------------------------


def with_bias(logits: Row, bias: Mapping[int, float]) -> Row:
    """Logits with something added to some ids; -inf forbids an id."""
    logits = logits.copy()
    for id, value in bias.items():
        logits[id] += np.float32(value)
    return logits


def with_repetition_penalty(logits: Row, counts: Row, penalty: float) -> Row:
    """Ids seen before made less likely: divided if positive, else multiplied (arXiv:1909.05858)."""
    lower = np.where(logits > 0, logits / np.float32(penalty), logits * np.float32(penalty))
    return np.where(counts > 0, lower, logits)


def with_presence_penalty(logits: Row, counts: Row, penalty: float) -> Row:
    """`penalty` taken off each id seen before."""
    return np.where(counts > 0, logits - np.float32(penalty), logits)


def with_frequency_penalty(logits: Row, counts: Row, penalty: float) -> Row:
    """`penalty` taken off each id as often as it was seen."""
    return logits - np.float32(penalty) * counts


def with_temperature(logits: Row, temperature: float) -> Row:
    """Logits divided by `temperature`: below 1 the likely become likelier."""
    return logits / np.float32(temperature)


# --- what cuts: (n,) -> the places that stay -----------------------------------------------------


def largest(logits: Row) -> Places:
    """The largest logit, as at temperature 0; among equals the lowest id."""
    return np.array([logits.argmax()])


def top_k(logits: Row, k: int) -> Places:
    """The `k` largest logits, exactly; among equals the lowest ids stay (arXiv:1805.04833)."""
    if k >= len(logits):
        return np.arange(len(logits))
    least = np.float32(torch.from_numpy(logits).topk(k, sorted=True).values[-1].item())
    places = np.flatnonzero(logits >= least)
    if len(places) > k:  # several are equal to it
        last = np.flatnonzero(logits == least)[k - len(places) :]
        places = np.setdiff1d(places, last, assume_unique=True)
    return places


def top_p(logits: Row, p: float) -> Places:
    """The fewest most probable tokens that together reach `p`, at least one (arXiv:1904.09751)."""
    probs = softmax(logits)
    # All less probable than this have together less than 1 - p: they are not needed to reach p.
    likely = (probs >= (1 - p) / (2 * len(probs))).nonzero()[0]
    return _first(-logits[likely], probs[likely], likely, p)


def min_p(logits: Row, p: float) -> Places:
    """Tokens at least `p` times as probable as the most probable one (arXiv:2407.01082)."""
    return np.flatnonzero(logits >= np.maximum.reduce(logits) + np.float32(math.log(p)))


def typical_p(logits: Row, p: float) -> Places:
    """The tokens whose surprise is nearest the entropy, until they reach `p` (arXiv:2202.00666)."""
    logprobs = log_softmax(logits)
    probs = np.exp(logprobs)
    possible = probs > 0
    entropy = -np.dot(probs[possible], logprobs[possible])  # nats
    surprise = abs(logprobs[possible] + entropy)
    return _first(surprise, probs[possible], possible.nonzero()[0], p)


def _first(key: Row, probs: Row, places: Places, p: float) -> Places:
    """Of `places`, those with the smallest `key` whose predecessors have not reached `p`."""
    order = key.argsort(kind="stable")
    sums = probs[order].cumsum(dtype=np.float64)
    n = 1 + int(sums.searchsorted(p))  # the first to reach it stays
    first = places[order[:n]]
    first.sort()
    return first


def softmax(logits: Row) -> Row:
    exponentials = np.exp(logits - np.maximum.reduce(logits))
    return exponentials / np.add.reduce(exponentials)


def log_softmax(logits: Row) -> Row:
    logits = logits - np.maximum.reduce(logits)
    return logits - np.log(np.add.reduce(np.exp(logits)))


# --- in their order ------------------------------------------------------------------------------

NEUTRAL = Sampling()  # leaves the model's distribution as it is
Change = Callable[[Row, Any], Row]  # of logits and counts (V,), as `seen` has them, if any
Cut = Callable[[Row], Places]


class Filters(NamedTuple):
    """Those in force, by name; none changes logits after the first cut."""

    changes: tuple[tuple[str, Change], ...]
    cuts: tuple[tuple[str, Cut], ...]


@lru_cache(maxsize=16)
def in_force(sampling: Sampling) -> Filters:
    """The filters that do anything, in their order; what penalises needs counts."""
    s = sampling
    changes: dict[str, Change] = {
        "bias": lambda x, _: with_bias(x, dict(s.bias)),
        "repetition_penalty": lambda x, n: with_repetition_penalty(x, n, s.repetition_penalty),
        "presence_penalty": lambda x, n: with_presence_penalty(x, n, s.presence_penalty),
        "frequency_penalty": lambda x, n: with_frequency_penalty(x, n, s.frequency_penalty),
    }
    cuts: dict[str, Cut] = {
        "top_k": lambda x: top_k(x, s.top_k),
        "top_p": lambda x: top_p(x, s.top_p),
        "min_p": lambda x: min_p(x, s.min_p),
        "typical_p": lambda x: typical_p(x, s.typical_p),
    }
    if s.temperature:
        changes["temperature"] = lambda x, _: with_temperature(x, s.temperature)
    else:
        cuts["temperature"] = largest
    acting = [name for name in ORDER if getattr(s, name) != getattr(NEUTRAL, name)]
    return Filters(
        tuple((name, changes[name]) for name in acting if name in changes),
        tuple((name, cuts[name]) for name in acting if name in cuts),
    )


def stages(logits: Row, sampling: Sampling, counts: Row | None = None) -> Iterator[tuple[str, Row]]:
    """Each filter in force, by name, with what it leaves of `logits` (V,): -inf where it cut."""
    changes, cuts = in_force(sampling)
    for name, change in changes:
        logits = change(logits, counts)
        yield name, logits
    ids = np.arange(len(logits))
    for name, cut in cuts:
        ids = ids[cut(logits[ids])]
        left = np.full_like(logits, -math.inf)
        left[ids] = logits[ids]
        yield name, left


def filtered(logits: Row, sampling: Sampling, counts: Row | None = None) -> Row:
    """Logits (V,) after all filters: their softmax is what is drawn from."""
    return [logits, *(left for _, left in stages(logits, sampling, counts))][-1]


class Left(NamedTuple):
    """What the filters leave of one row, rarely much."""

    ids: Places  # (n,)
    logprobs: Row  # (n,), natural logs of probabilities that sum to 1

    def logprobs_of(self, ids: Sequence[int]) -> list[float]:
        """Those of `ids`, -inf where the filters cut them."""
        asked = np.array(ids)
        places = np.minimum(self.ids.searchsorted(asked), len(self.ids) - 1)
        logprobs = self.logprobs[places]
        logprobs[self.ids[places] != asked] = -math.inf
        return logprobs.tolist()


def left(
    logits: Row, sampling: Sampling, counts: Row | None = None, drawable: Drawable = EVERY
) -> Left:
    """What is left of `logits` (V,), if anything: what is `drawable` and not -inf in `filtered`.

    Of each filter that cuts, the next is only given what is left. Where a logit is NaN or infinite,
    as a tiny temperature may make it, a NaN is what is left.
    """
    changes, cuts = in_force(sampling)
    for _, change in changes:
        logits = change(logits, counts)
    logits, ids = logits[drawable], None if isinstance(drawable, slice) else drawable
    if any(value == -math.inf for _, value in sampling.bias):
        places = (logits != -math.inf).nonzero()[0]
        logits, ids = logits[places], places if ids is None else ids[places]
        if not len(ids):
            return Left(ids, logits)
    if not np.maximum.reduce(logits) < math.inf:
        return Left(np.zeros(1, np.int64), np.full(1, math.nan, np.float32))
    for _, cut in cuts:
        places = cut(logits)
        logits, ids = logits[places], places if ids is None else ids[places]
    return Left(np.arange(len(logits)) if ids is None else ids, log_softmax(logits))


def seen(row: Sequence[int], window: int, vocab_size: int) -> Row:
    """How often each id occurs among the last `window` ids of `row`, 0: of all: (V,)."""
    counts = np.bincount(row[-window:] if window else row, minlength=vocab_size)
    return counts[:vocab_size].astype(np.float32)


def draw(probs: Row, point: float) -> int:
    """Where a number `point` from 0 to 1 falls in the running sums of `probs` (n,).

    One number a token, whatever n is, so that the last bits of the logits hardly ever change the
    choice: the same seed gives the same text with and without cache, stream and batch.
    """
    sums = probs.cumsum(dtype=np.float64)
    place = int(sums.searchsorted(point * sums[-1], side="right"))
    return min(place, len(probs) - 1)


def uniforms(generator: torch.Generator, n: int) -> list[float]:
    """The next `n` numbers to draw with, from 0 to 1."""
    return torch.rand(n, generator=generator, dtype=torch.float64).tolist()


def generator_for(seed: int, *path: int) -> torch.Generator:
    """The random numbers of one sample, say `(seed, prompt, sample)`, whatever others there are."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
