"""A recorded run computed again: does this machine, dtype and version come to the same numbers?

Compares numbers; who computes them is `commands.replay`. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llmcli.inspection.trace import token
from llmcli.inspection.values import Token, View
from llmcli.trace_lines import Step

WORST = 5  # steps listed


@dataclass(frozen=True, slots=True)
class ReplayFact:
    """Something about the machinery that was not then as it is here."""

    what: str
    recorded: str
    here: str


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """One text."""

    run: int
    n_tokens: int  # recorded
    n_compared: int  # steps that both computed after the same tokens
    n_identical: int  # whose logprobs are the recorded ones to the last digit
    first_difference: int | None  # a step with another token or, if forced, beyond the tolerance
    max_difference: float


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """One step, and how far its logprobs came out from the recorded ones."""

    run: int
    step: int
    token: Token
    logprob: float  # of the recorded token, as it was recorded
    max_difference: float  # of all that was recorded of the step
    drawn: Token | None  # the token drawn instead


@dataclass(frozen=True, slots=True)
class Replay(View):
    """The verdict, and where the differences are."""

    name: ClassVar[str] = "replay"

    file: str
    how: str  # "forced" or "resampled"
    model: str
    dtype: str
    n_runs: int
    n_compared: int
    n_identical: int
    max_difference: float
    tolerance: float
    passed: bool
    verdict: str
    facts: tuple[ReplayFact, ...]
    runs: tuple[ReplayRun, ...]
    worst: tuple[ReplayStep, ...]
    notes: tuple[str, ...]


NOTES = (
    "measured: a difference is the largest, in nats, between a logprob of the model as it was "
    "recorded and as it is computed here; of each step's token and of the likeliest ones.",
)


def compared(
    steps: Sequence[tuple[Step, float, Token | None]], n_tokens: int, run: int, tolerance: float
) -> ReplayRun:
    """One text, from each step's difference and the token that was drawn instead, if another.

    With an infinite `tolerance` it is the tokens alone that make a difference.
    """
    apart = [
        step.index for step, difference, drawn in steps if drawn or not difference <= tolerance
    ]
    return ReplayRun(
        run=run,
        n_tokens=n_tokens,
        n_compared=len(steps),
        n_identical=sum(difference == 0 for _, difference, _ in steps),
        first_difference=apart[0] if apart else None if len(steps) == n_tokens else len(steps),
        max_difference=max((difference for _, difference, _ in steps), default=0.0),
    )


def worst(steps: Sequence[tuple[Step, float, Token | None]]) -> tuple[ReplayStep, ...]:
    """The steps that differ most, those with another token first."""
    ordered = sorted(steps, key=lambda s: (s[2] is None, -s[1], s[0].run, s[0].index))
    return tuple(
        ReplayStep(step.run, step.index, token(step.chosen), step.chosen.logprob, difference, drawn)
        for step, difference, drawn in ordered[:WORST]
        if difference or drawn
    )


def verdict(
    how: str, runs: Sequence[ReplayRun], dtype: str, tolerance: float, holed: bool = False
) -> str:
    """The whole in a sentence; `holed`: some of what was recorded cannot be read."""
    said = _verdict(how, runs, dtype, tolerance)
    return f"{said}, as far as the damaged trace can be read" if holed else said


def _verdict(how: str, runs: Sequence[ReplayRun], dtype: str, tolerance: float) -> str:
    if not any(run.n_compared for run in runs):
        return "nothing was compared"
    apart = sum(run.first_difference is not None for run in runs)
    near = all(run.max_difference <= tolerance for run in runs)
    if how == "resampled":
        if apart:
            return f"another text in {apart} of {len(runs)} runs"
        return (
            "the same text" if near else f"the same text, its logprobs beyond what {dtype} allows"
        )
    if apart:
        return f"not the same in {apart} of {len(runs)} runs"
    if all(run.n_identical == run.n_compared for run in runs):
        return "the same, to the last digit"
    return f"the same, within what {dtype} allows"
