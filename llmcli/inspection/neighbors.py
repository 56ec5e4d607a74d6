"""What lies near a token's vector, or near a sum of some, and what comes back of it from the model.

Sums: "Efficient Estimation of Word Representations in Vector Space" (arXiv:1301.3781). Its answers
leave out the tokens of the question; why that flatters: "Fair is Better than Sensational"
(arXiv:1905.09866). Here they are listed and marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.errors import UsageError
from llmcli.inspection.ask import Ask
from llmcli.inspection.lens import CHUNK, lens_logits
from llmcli.inspection.run import Run, cosines, rank_in, require_numbers, vectors
from llmcli.inspection.values import Token, View

ROWS = 10
TRIP_PRODUCTS = 4e10  # multiplications that the round trips may cost: about a second


@dataclass(frozen=True, slots=True)
class Term:
    """A token of the sum asked about."""

    times: int  # -1: taken off
    token: Token
    norm: float


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A vocabulary entry and how near it is."""

    rank: int
    token: Token
    cosine: float
    dot: float
    norm: float
    asked: bool  # whether it is one of the terms


@dataclass(frozen=True, slots=True)
class Return:
    """What the final norm and the output head make of the vector, with nothing in between."""

    rank: int
    token: Token
    prob: float
    logit: float
    asked: bool


@dataclass(frozen=True, slots=True)
class Fate:
    """Where a token stands in the three lists."""

    token: Token
    cosine_rank: int
    cosine: float
    dot_rank: int
    dot: float
    return_rank: int
    return_prob: float


@dataclass(frozen=True, slots=True)
class Neighbors(View):
    """Three lists, the nearest first, and the fate of the terms and of --token in them."""

    name: ClassVar[str] = "neighbors"

    vocab_size: int
    n_embd: int
    norm: float  # of the vector asked about
    mean_norm: float  # of all tokens' vectors
    n_tried: int  # tokens sent from embedding to head
    n_returned: int  # of them came back as the likeliest
    share_returned: float
    terms: tuple[Term, ...]
    fates: tuple[Fate, ...]
    by_cosine: tuple[Neighbor, ...]
    by_dot: tuple[Neighbor, ...]
    returns: tuple[Return, ...]
    notes: tuple[str, ...]


def view(run: Run, ask: Ask) -> Neighbors:
    """The neighbours of --analogy, or else of --token. Raises UsageError where there is neither."""
    terms = ask.analogy or (() if ask.token is None else ((1, ask.token),))
    if not terms:
        raise UsageError(
            "--view neighbors needs to know whose.",
            'For example: --token " king", or --analogy "king - man + woman"',
        )
    table = vectors(run.model.token_embedding)  # (V, C)
    vector = sum_of(table, terms)  # (C,)
    norms, asked = table.norm(dim=-1), [id for _, id in terms]
    cosine, dot = cosines(table, vector[None])[:, 0], table @ vector  # (V,) each
    logits = lens_logits(run.model, vector[None].to(run.dtype))[0]  # (V,)
    rows = ask.rows or ROWS

    def nearest(values: Tensor) -> tuple[Neighbor, ...]:
        return tuple(
            Neighbor(i, run.token(id), float(cosine[id]), float(dot[id]), float(norms[id]),
                     id in asked)
            for i, id in enumerate(_largest(values, rows))
        )  # fmt: skip

    probs = logits.softmax(dim=-1)
    known = list(dict.fromkeys([*asked, *([] if ask.token is None else [ask.token])]))
    n_tried, n_returned = round_trips(run)
    return Neighbors(
        vocab_size=len(table),
        n_embd=table.shape[1],
        norm=float(vector.norm()),
        mean_norm=float(norms.mean()),
        n_tried=n_tried,
        n_returned=n_returned,
        share_returned=n_returned / n_tried,
        terms=tuple(Term(times, run.token(id), float(norms[id])) for times, id in terms),
        fates=tuple(_fate(run, id, cosine, dot, logits) for id in known),
        by_cosine=nearest(cosine),
        by_dot=nearest(dot),
        returns=tuple(
            Return(i, run.token(id), float(probs[id]), float(logits[id]), id in asked)
            for i, id in enumerate(_largest(logits, rows))
        ),
        notes=_notes(run, n_tried, n_returned, len(terms)),
    )


def sum_of(table: Tensor, terms: Sequence[tuple[int, int]]) -> Tensor:
    """The rows of `table` (V, C) that `terms` name, each as often as they say, added up: (C,)."""
    times = torch.tensor([times for times, _ in terms], dtype=table.dtype, device=table.device)
    return times @ table[[id for _, id in terms]]


@torch.inference_mode()
def round_trips(run: Run) -> tuple[int, int]:
    """How many tokens went straight from embedding to head, and how many came back first.

    All tokens, or as many at even distances as TRIP_PRODUCTS allows.
    """
    table = run.model.token_vectors
    n = min(len(table), int(TRIP_PRODUCTS / table.numel()) + 1)
    ids = torch.arange(n, device=table.device) * len(table) // n
    back = 0
    for some in ids.split(CHUNK):
        logits = lens_logits(run.model, table[some])  # (n, V)
        require_numbers(logits)
        back += int((logits.argmax(dim=-1) == some).sum())
    return n, back


def _largest(values: Tensor, count: int) -> list[int]:
    """The ids of the `count` largest of `values` (V,), of equal ones the smallest ids first."""
    order: list[int] = values.sort(descending=True, stable=True).indices[:count].tolist()
    return order


def _fate(run: Run, id: int, cosine: Tensor, dot: Tensor, logits: Tensor) -> Fate:
    prob = float(logits.softmax(dim=-1)[id])
    ranks = (rank_in(values, id) for values in (cosine, dot, logits))
    c_rank, d_rank, l_rank = ranks
    return Fate(run.token(id), c_rank, float(cosine[id]), d_rank, float(dot[id]), l_rank, prob)


def _notes(run: Run, n_tried: int, n_returned: int, n_terms: int) -> tuple[str, ...]:
    V, C = run.config.vocab_size, run.config.n_embd
    came_back = f"{100 * n_returned / n_tried:.3g} %"
    notes = [
        "measured: the embedding's own vectors, neither centred nor normalised. Cosine compares "
        "directions; a dot product grows with the length of the vectors, too.",
        "Embed, then unembed: the vector goes through the final norm and the output head, which "
        f"were trained on the last layer's stream. {V} tokens share {C} dimensions: {came_back} of "
        "them come back as the likeliest, and a sum may be nearest to a token that is not in it.",
    ]
    if n_tried < V:
        notes.append(f"approximate: of all {V} tokens, {n_tried} at even distances were sent.")
    if n_terms > 1:
        notes.append(
            "The tokens of the sum are listed, too (*): the famous answers leave them out."
        )
    return tuple(notes)
