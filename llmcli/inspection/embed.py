"""Where the residual stream begins: a token's vector plus its position's, and how alike tokens are.

"Language Models are Unsupervised Multitask Learners" (GPT-2, 2019): both are rows of learned
tables, looked up and added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run, cosine, cosines
from llmcli.inspection.values import Row, Token, View
from llmcli.units import window

FIRST = 8  # numbers of each vector that are written out


@dataclass(frozen=True, slots=True)
class EmbedRow(Row):
    """One position's vectors, and its token's cosine with the tokens shown up to it."""

    key: ClassVar = ("position", "token")

    position: int
    token: Token
    norm: float  # of the token's vector
    position_norm: float
    sum_norm: float
    cosine: float  # of the token's vector with the position's: 0 where they do not overlap
    first: tuple[float, ...]  # numbers of the token's vector
    position_first: tuple[float, ...]
    sum_first: tuple[float, ...]
    cosines: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Embed(View):
    """The vectors that enter the first layer."""

    name: ClassVar[str] = "embed"

    n_tokens: int
    n_embd: int
    position: int
    rows: tuple[EmbedRow, ...]
    notes: tuple[str, ...]


NOTES = (
    "measured: the two rows are looked up, one by the token's id and one by its position, and "
    "added; no layer has read them yet.",
    "The cosines between tokens are those of their vectors alone, without positions: a token "
    "that comes twice has 1 with itself.",
)


def view(run: Run, ask: Ask) -> Embed:
    """The vectors at `rows` positions around `position`; at all where `rows` is not given."""
    T = len(run.ids)
    places = window(T, ask.position, ask.rows or T)
    here = {name: x[places.start : places.stop].float() for name, x in tensors(run, ask).items()}
    alike = cosines(here["embed"], here["embed"]).tolist()
    rows = []
    for i, place in enumerate(places):
        token, position, total = (here[name][i] for name in ("embed", "pos_embed", "sum"))  # (C,)
        row = EmbedRow(
            position=place,
            token=run.tokens[place],
            norm=float(token.norm()),
            position_norm=float(position.norm()),
            sum_norm=float(total.norm()),
            cosine=cosine(token, position),
            first=tuple(token[:FIRST].tolist()),
            position_first=tuple(position[:FIRST].tolist()),
            sum_first=tuple(total[:FIRST].tolist()),
            cosines=tuple(alike[i][: i + 1]),
        )
        rows.append(row)
    return Embed(
        n_tokens=T,
        n_embd=run.config.n_embd,
        position=ask.position,
        rows=tuple(rows),
        notes=NOTES,
    )


@torch.inference_mode()
def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`embed`, `pos_embed` and their `sum`, (T, C) each."""
    seen = run.record("embed", "pos_embed")
    return {**seen, "sum": seen["embed"] + seen["pos_embed"]}
