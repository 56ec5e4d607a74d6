"""What a view is asked to show: words and ids resolved, before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmcli.config import Sampling
from llmcli.inspection.plan import Plan


@dataclass(frozen=True, slots=True)
class Sweep:
    """The one vector of `plan` tried at several strengths, a text of the prompt for each."""

    plan: Plan
    strengths: tuple[float, ...]
    max_new_tokens: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Ask:
    """What a view is asked to show; indices are resolved, so none is negative.

    `position` is one of the prompt, or of the context for a view that needs no prompt.
    """

    position: int
    layer: int | None = None
    head: int | None = None
    token: int | None = None  # an id
    versus: int | None = None  # an id
    analogy: tuple[tuple[int, int], ...] = ()  # (how often, id): negative is taken off
    rows: int | None = None
    also: frozenset[tuple[Any, ...]] = frozenset()  # rows of cut tables that are wanted besides
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    draw: tuple[int, int] = (0, 0)  # whose random numbers: the prompt's place, the sample
    n_drawn: int = 0  # how many of them were used before
    forced: int | None = None  # the id that was put in the place of the drawn one
    corrupt: tuple[int, ...] | None = None  # the ids of the prompt to compare with
    page: int | None = None  # of `explain`, from 1; None is all of them
    changes: tuple[str, ...] = ()  # in words; the patches of the run are what makes them true
    sweep: Sweep | None = None
