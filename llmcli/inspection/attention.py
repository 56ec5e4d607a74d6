"""Where each head looks: every head as a small map, or one head in full.

The roles follow "In-context Learning and Induction Heads" (Olsson et al., arXiv:2209.11895); the
score of a role is the share of a head's attention that falls on the places the role names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run, entropy_bits
from llmcli.inspection.values import Row, Token, View

MAP_SIZE = 16  # pixels of a small map, each way
ROLE_FROM = 0.4  # the least way from an even head's share to all that earns the name of a role
ROLES_FROM = 4  # tokens: of two, the previous one is the first one, too
CAVEAT = (
    "measured: the weights of this prompt. Attention is where a head reads, not proof of cause. "
    "Bits are the entropy of a row, for a head the mean of its rows: 0 where all is read from one "
    "place."
)

Map = tuple[tuple[float, ...], ...]  # row i holds i + 1 weights: the lower triangle


@dataclass(frozen=True, slots=True)
class HeadRow(Row):
    """One head; scores are None where the prompt has no place at which the role could show."""

    key: ClassVar = ("layer", "head")
    about: ClassVar = {"role": ("role_score",)}

    layer: int
    head: int
    entropy_bits: float  # mean over the positions
    role: str  # "" where no score is far enough above that of an even head
    role_score: float | None
    previous: float | None
    first: float | None
    duplicate: float | None
    induction: float | None
    map: Map


@dataclass(frozen=True, slots=True)
class Grid(View):
    """All heads asked for, each as a map of at most MAP_SIZE x MAP_SIZE pixels."""

    name: ClassVar[str] = "attention"

    n_tokens: int
    tokens_per_pixel: int
    heads: tuple[HeadRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QueryRow(Row):
    key: ClassVar = ("position", "token")

    position: int
    token: Token
    entropy_bits: float
    weights: tuple[float, ...]  # on positions 0 .. position


@dataclass(frozen=True, slots=True)
class SourceRow(Row):
    """One of the places that a position reads most from."""

    key: ClassVar = ("position", "source", "token")

    position: int
    source: int
    token: Token  # at the source
    weight: float


@dataclass(frozen=True, slots=True)
class OneHead(View):
    """One head: all its weights, and the strongest sources of each position."""

    name: ClassVar[str] = "attention"
    compared: ClassVar = ("entropy_bits", "role_score")
    about: ClassVar = {"role": ("role_score",)}

    layer: int
    head: int
    n_tokens: int
    position: int
    entropy_bits: float
    role: str
    role_score: float | None
    queries: tuple[QueryRow, ...]
    sources: tuple[SourceRow, ...]
    notes: tuple[str, ...]


def view(run: Run, ask: Ask) -> Grid | OneHead:
    """The grid; one head where both --layer and --head say which."""
    if ask.layer is not None and ask.head is not None:
        return _one_head(run, ask, ask.layer, ask.head)
    T = len(run.ids)
    keys = role_keys(torch.tensor(list(run.ids)))
    heads = []
    for layer, pattern in patterns(run, ask).items():
        for row in _head_rows(layer, pattern, keys):
            if ask.head is None or row.head == ask.head:
                heads.append(row)
    notes = [CAVEAT, *silenced(run), *_role_notes(keys)]
    if T > MAP_SIZE:
        n = tokens_per_pixel(T)
        notes.append(f"A pixel of a map is the largest weight of {n} × {n} tokens.")
    return Grid(
        n_tokens=T,
        tokens_per_pixel=tokens_per_pixel(T),
        heads=tuple(heads),
        notes=tuple(notes),
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`L.pattern` (H, T, T) of each layer shown."""
    return {f"{layer}.pattern": pattern for layer, pattern in patterns(run, ask).items()}


def patterns(run: Run, ask: Ask) -> dict[int, Tensor]:
    """The patterns (H, T, T) of the layers asked for; the other layers stay fused."""
    layers = range(run.config.n_layer) if ask.layer is None else [ask.layer]
    values = run.record(*[f"{layer}.pattern" for layer in layers])
    return {layer: values[f"{layer}.pattern"].float() for layer in layers}


def role_keys(ids: Tensor) -> dict[str, Tensor]:
    """For each role, the places that a head in it would read from: role -> (T, T) of bool.

    previous: the token before. first: the very first one. duplicate: the same token, earlier.
    induction: the token that came after the same token, earlier.
    """
    place = torch.arange(len(ids))
    earlier = place[None, :] < place[:, None]  # key before query
    same = (ids[:, None] == ids[None, :]) & earlier
    after_same = F.pad(same, (1, 0))[:, :-1] & earlier
    return {
        "previous": place[None, :] == place[:, None] - 1,
        "first": (place[None, :] == 0) & earlier,
        "duplicate": same,
        "induction": after_same,
    }


@torch.inference_mode()
def role_scores(pattern: Tensor, keys: dict[str, Tensor]) -> dict[str, list[float] | None]:
    """The share of each head's attention on each role's places: role -> (H,).

    A mean over the positions that have such a place; None where none has.
    """
    places = torch.stack([places.flatten() for places in keys.values()]).to(pattern)  # (R, T * T)
    mass = pattern.flatten(1) @ places.T  # (H, R)
    scores: dict[str, list[float] | None] = {}
    for i, (role, where) in enumerate(keys.items()):
        able = int(where.any(dim=-1).sum())
        scores[role] = (mass[:, i] / able).tolist() if able else None
    return scores


@torch.inference_mode()
def _head_rows(layer: int, pattern: Tensor, keys: dict[str, Tensor]) -> list[HeadRow]:
    scores, even = role_scores(pattern, keys), role_scores(even_pattern(pattern), keys)
    enough = pattern.shape[-1] >= ROLES_FROM
    entropies = entropy_bits(pattern).mean(dim=-1).tolist()
    maps = small_maps(pattern).tolist()
    rows = []
    for head in range(len(pattern)):
        own = {role: None if s is None else s[head] for role, s in scores.items()}
        role, score = _fitting(own, even) if enough else ("", None)
        triangle = tuple(tuple(row[: i + 1]) for i, row in enumerate(maps[head]))
        rows.append(HeadRow(layer, head, entropies[head], role, score, **own, map=triangle))
    return rows


def small_maps(pattern: Tensor) -> Tensor:
    """(H, T, T) -> (H, P, P), P at most MAP_SIZE: each pixel the largest weight it covers."""
    return F.max_pool2d(pattern, tokens_per_pixel(pattern.shape[-1]), ceil_mode=True)


def tokens_per_pixel(T: int) -> int:
    return -(-T // MAP_SIZE)


def even_pattern(pattern: Tensor) -> Tensor:
    """What a head that reads everything alike has in the place of `pattern`: (1, T, T)."""
    lower = torch.ones_like(pattern[:1]).tril()
    return lower / lower.sum(dim=-1, keepdim=True)


def _fitting(
    scores: dict[str, float | None], even: dict[str, list[float] | None]
) -> tuple[str, float | None]:
    """The role whose score is farthest above an even head's, if that is far enough to be one.

    On a short prompt an even head reads a third of all from the first token.
    """
    ways = {
        role: (score - base[0]) / (1 - base[0])
        for role, score in scores.items()
        if score is not None and (base := even[role]) and base[0] < 1
    }
    role = max(ways, key=ways.__getitem__, default="")
    return (role, scores[role]) if role and ways[role] >= ROLE_FROM else ("", None)


@torch.inference_mode()
def _one_head(run: Run, ask: Ask, layer: int, head: int) -> OneHead:
    pattern = patterns(run, ask)[layer][head]  # (T, T)
    T = len(pattern)
    keys = role_keys(torch.tensor(list(run.ids)))
    row = _head_rows(layer, pattern[None], keys)[0]
    entropies = entropy_bits(pattern).tolist()
    queries, sources = [], []
    for position in range(T):
        weights = pattern[position, : position + 1]
        queries.append(
            QueryRow(position, run.tokens[position], entropies[position], tuple(weights.tolist()))
        )
        top = weights.sort(descending=True, stable=True)
        for weight, source in list(zip(top.values.tolist(), top.indices.tolist(), strict=True))[
            : ask.rows or 3
        ]:
            sources.append(SourceRow(position, source, run.tokens[source], weight))
    return OneHead(
        layer=layer,
        head=head,
        n_tokens=T,
        position=ask.position,
        entropy_bits=row.entropy_bits,
        role=row.role,
        role_score=row.role_score,
        queries=tuple(queries),
        sources=tuple(sources),
        notes=(CAVEAT, *silenced(run), *_role_notes(keys)),
    )


def silenced(run: Run) -> list[str]:
    """What is to be said of heads whose output is replaced after they have read."""
    if not any(point.endswith((".z", ".attn_out")) for point in run.patch):
        return []
    return ["Where a head's output is replaced, it still reads; what it has read goes nowhere."]


def _role_notes(keys: dict[str, Tensor]) -> list[str]:
    notes = [
        "approximate: a role is named where the attention that fits it exceeds that of a head that "
        f"reads all places alike by {100 * ROLE_FROM:.0f} % of what is left to 100 %. Another "
        "prompt may say otherwise."
    ]
    if len(keys["first"]) < ROLES_FROM:
        notes = [f"With fewer than {ROLES_FROM} tokens no role is told from another."]
    if not bool(keys["duplicate"].any()):
        notes.append(
            "This prompt repeats no token (one with a space before it is another), so duplicate "
            "and induction cannot show."
        )
    return notes
