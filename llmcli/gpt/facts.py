"""What the model thought when a token was chosen: probabilities, rank, entropy.

In NumPy, as `sampling` is: a step has little time for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmcli.gpt.sampling import Left, Row

Rows = NDArray[np.float32]  # logits (B, V)


class Choice(NamedTuple):
    """One vocabulary entry with its natural-log probability, before and after the filters."""

    id: int
    logprob: float
    drawn_logprob: float  # -inf where the filters cut it


class Facts(NamedTuple):
    """What the model thought when a token was chosen."""

    chosen: Choice
    rank: int  # of the chosen token by `logprob`, from 0
    entropy_bits: float  # of the model's own distribution
    kept: float  # the share of that distribution which the filters leave
    top: tuple[Choice, ...]  # by `logprob`, the most probable first
    drawn_top: tuple[Choice, ...]  # by `drawn_logprob`; what the filters cut is not listed


def facts_of(
    logits: Rows, kept: Sequence[Left], ids: Sequence[int], top_probs: int | None
) -> list[Facts | None]:
    """What there is to know of an id of each row, of what the filters `kept` of `logits` (B, V)."""
    if top_probs is None:
        return [None] * len(ids)
    return [row_facts(*of, top_probs) for of in zip(logits, kept, ids, strict=True)]


def row_facts(logits: Row, kept: Left, id: int, k: int) -> Facts:
    """What there is to know of one row (V,), listing `k` tokens."""
    below = logits - np.maximum.reduce(logits)
    exponentials = np.exp(below)
    total = float(np.add.reduce(exponentials))
    log_total = math.log(total)
    top = _largest(logits, k)
    ids = [id, *top, *kept.ids[_largest(kept.logprobs, k)].tolist()]
    chosen, *tops = map(Choice, ids, (below[ids] - log_total).tolist(), kept.logprobs_of(ids))
    all_kept = len(kept.ids) == len(logits)
    return Facts(
        chosen,
        rank=top.index(id) if id in top else _rank(logits, id),
        entropy_bits=(log_total - float(exponentials.dot(below)) / total) / math.log(2),
        kept=1.0 if all_kept else min(1.0, float(np.add.reduce(exponentials[kept.ids])) / total),
        top=tuple(tops[: len(top)]),
        drawn_top=tuple(tops[len(top) :]),
    )


def _largest(values: Row, k: int) -> list[int]:
    """Where the `k` largest of `values` are, of equal ones the first; -inf is none of them.

    To look `k` times for the largest is faster than any sorting, up to a `k` of some 20.
    """
    rest, places = values.copy(), list[int]()
    for _ in range(k):
        place = int(rest.argmax())
        if not rest[place] > -math.inf:
            break
        places.append(place)
        rest[place] = -math.inf
    return places


def _rank(logits: Row, id: int) -> int:
    """How many of `logits` (V,) come before that of `id`, equal ones by id."""
    before = np.count_nonzero(logits > logits[id])
    return int(before + np.count_nonzero(logits[:id] == logits[id]))
