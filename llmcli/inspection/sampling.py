"""From logits to the token drawn, one filter at a time, in the order that `generate` uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.config import ORDER
from llmcli.gpt.sampling import draw, generator_for, seen, stages, uniforms
from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run, entropy_bits
from llmcli.inspection.values import Row, Token, View


@dataclass(frozen=True, slots=True)
class Stage(Row):
    """The distribution that one filter leaves."""

    key: ClassVar = ("stage",)
    about: ClassVar = {"top": ("top_prob",)}

    stage: str  # "model"; "unused" if some ids only pad the vocabulary; each filter in force
    kept: int  # tokens with any probability left
    cut_mass: float  # the probability, before this stage, of the tokens it removed
    entropy_bits: float
    top: Token
    top_prob: float


@dataclass(frozen=True, slots=True)
class Fate(Row):
    """One token at one stage; `rank` is its place in the model's own order."""

    key: ClassVar = ("stage", "token")

    stage: str
    rank: int
    token: Token
    logit: float | None  # None once it is cut
    prob: float


@dataclass(frozen=True, slots=True)
class SamplingView(View):
    """Every stage between the logits and the choice."""

    name: ClassVar[str] = "sampling"
    compared: ClassVar = ("drawn_prob", "drawn_model_prob", "forced_model_prob")
    about: ClassVar = {"drawn": ("drawn_prob", "drawn_model_prob")}

    position: int
    seed: int
    greedy: Token
    drawn: Token
    drawn_prob: float  # after the filters
    drawn_model_prob: float  # before them
    forced: Token | None  # what a recorded run was made to take in the place of the drawn one
    forced_model_prob: float | None
    stages: tuple[Stage, ...]
    candidates: tuple[Fate, ...]
    notes: tuple[str, ...]


CHANGING = ORDER[: ORDER.index("temperature")]  # what changes the order of tokens


def view(run: Run, ask: Ask) -> SamplingView:
    """The stages at `position`; the draw is `generate`'s with the same seed."""
    left = staged(run, ask)
    probs = {stage: logits.softmax(dim=-1) for stage, logits in left.items()}
    model, last = probs["model"], list(probs.values())[-1]
    drawn = drawn_by(last, ask)
    changed = [left[stage] for stage in ("model", "unused", *CHANGING) if stage in left]
    order = left["model"].sort(descending=True, stable=True).indices.tolist()
    shown = [*order[: ask.rows or 12]]
    shown += [id for id in (drawn, ask.forced) if id is not None and id not in shown]
    ranks = {id: rank for rank, id in enumerate(order)}
    return SamplingView(
        position=ask.position,
        seed=ask.seed,
        greedy=run.token(int(changed[-1].argmax())),
        drawn=run.token(drawn),
        drawn_prob=float(last[drawn]),
        drawn_model_prob=float(model[drawn]),
        forced=None if ask.forced is None else run.token(ask.forced),
        forced_model_prob=None if ask.forced is None else float(model[ask.forced]),
        stages=tuple(_stages(run, left, probs)),
        candidates=tuple(
            Fate(
                stage=stage,
                rank=ranks[id],
                token=run.token(id),
                logit=_finite(float(logits[id])),
                prob=float(probs[stage][id]),
            )
            for id in shown
            for stage, logits in left.items()
        ),
        notes=("measured: the probabilities of each stage are the softmax of what it leaves.",),
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`N.STAGE` (V,): the logits after each stage, in order."""
    return {f"{i}.{stage}": logits for i, (stage, logits) in enumerate(staged(run, ask).items())}


@torch.inference_mode()
def staged(run: Run, ask: Ask) -> dict[str, Tensor]:
    """The logits (V,) that each stage leaves; the first, "model", is before any.

    "unused" cuts the ids that have no token, if there are any: none is ever drawn.
    """
    logits = run.logits(range(ask.position, ask.position + 1))[0]
    used = run.only_drawable(logits)
    before = list(run.ids[: ask.position + 1])
    counts = seen(before, ask.sampling.penalty_window, len(used))
    after = stages(used.float().numpy(force=True), ask.sampling, counts)
    left = {} if torch.equal(used, logits) else {"unused": used}
    left |= {name: torch.from_numpy(row).to(used) for name, row in after}
    return {"model": logits, **left}


def drawn_by(probs: Tensor, ask: Ask) -> int:
    """The id that `generate` draws from `probs` (V,), by default as the first of its seed."""
    generator = generator_for(ask.seed, *ask.draw)
    return draw(probs.numpy(force=True), uniforms(generator, ask.n_drawn + 1)[-1])


def _stages(run: Run, left: dict[str, Tensor], probs: dict[str, Tensor]) -> list[Stage]:
    rows = []
    before = probs["model"]
    for stage, logits in left.items():
        kept = logits > -math.inf
        now = probs[stage]
        top = int(now.argmax())
        rows.append(
            Stage(
                stage=stage,
                kept=int(kept.sum()),
                cut_mass=float(before[~kept].sum()),
                entropy_bits=float(entropy_bits(now)),
                top=run.token(top),
                top_prob=float(now[top]),
            )
        )
        before = now
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
