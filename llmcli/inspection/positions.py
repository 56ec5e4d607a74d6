"""How alike the learned position vectors are: nothing told the model that 7 stands next to 8.

The table of position vectors is learned as the token vectors are (GPT-2, 2019); an order among them
is one that training found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run, cosines, vectors
from llmcli.inspection.values import View

MAP_SIZE = 64  # pixels of the map, each way


@dataclass(frozen=True, slots=True)
class Stretch:
    """A pixel's positions, and how alike they are to those of each pixel up to this one."""

    start: int
    end: int  # the last one
    norm: float  # mean
    cosines: tuple[float, ...]  # means over the pairs of positions


@dataclass(frozen=True, slots=True)
class Distance:
    """All pairs of positions that lie so far apart."""

    distance: int
    n_pairs: int
    cosine: float  # mean
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Near:
    """One of the positions most like the one asked about."""

    rank: int
    position: int
    cosine: float
    dot: float


@dataclass(frozen=True, slots=True)
class Positions(View):
    """The map, what distance does to the cosine, and what is nearest to one position."""

    name: ClassVar[str] = "positions"

    n_ctx: int
    n_embd: int
    positions_per_pixel: int
    position: int
    norm: float  # of the vector at the position
    stretches: tuple[Stretch, ...]
    distances: tuple[Distance, ...]
    nearest: tuple[Near, ...]
    notes: tuple[str, ...]


def view(run: Run, ask: Ask) -> Positions:
    """The position vectors alone; `rows` of those nearest to `position`."""
    table = vectors(run.model.position_embedding)  # (n_ctx, C)
    alike = cosines(table, table)  # (n_ctx, n_ctx)
    n = len(table)
    position = min(ask.position, n - 1)  # a text beside it may be longer than the context
    size = -(-n // MAP_SIZE)
    notes = ["measured: the learned vectors as they are, neither centred nor normalised."]
    if size > 1:
        notes.append(
            f"A pixel of the map is the mean cosine of {size} × {size} positions; on the diagonal "
            "each is taken with itself, too, which is 1."
        )
    return Positions(
        n_ctx=n,
        n_embd=table.shape[1],
        positions_per_pixel=size,
        position=position,
        norm=float(table[position].norm()),
        stretches=tuple(_stretches(table, alike, size)),
        distances=tuple(_distances(alike)),
        nearest=tuple(_nearest(table, alike, position, ask.rows or 8)),
        notes=tuple(notes),
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`vectors` (n_ctx, C), and `cosines` (n_ctx, n_ctx) of each with each."""
    table = vectors(run.model.position_embedding)
    return {"vectors": table, "cosines": cosines(table, table)}


def _stretches(table: Tensor, alike: Tensor, size: int) -> list[Stretch]:
    """The map's rows: means over blocks of `size` x `size`, the last ones as they come."""
    norms = table.norm(dim=-1)
    blocks = F.avg_pool2d(alike[None], size, ceil_mode=True)[0].tolist()
    rows = []
    for i, start in enumerate(range(0, len(table), size)):
        end = min(start + size, len(table))
        norm = float(norms[start:end].mean())
        rows.append(Stretch(start, end - 1, norm, tuple(blocks[i][: i + 1])))
    return rows


def _distances(alike: Tensor) -> list[Distance]:
    """A row for the distances 1, 2, 4, ... that the context holds."""
    rows, distance = [], 1
    while distance < len(alike):
        pairs = alike.diagonal(distance)
        lowest, highest = pairs.aminmax()
        mean = float(pairs.mean())
        rows.append(Distance(distance, len(pairs), mean, float(lowest), float(highest)))
        distance *= 2
    return rows


def _nearest(table: Tensor, alike: Tensor, position: int, n: int) -> list[Near]:
    own, dots = alike[position], table @ table[position]
    order = own.sort(descending=True, stable=True).indices.tolist()
    others = [other for other in order if other != position][:n]
    return [
        Near(rank, other, float(own[other]), float(dots[other]))
        for rank, other in enumerate(others)
    ]
