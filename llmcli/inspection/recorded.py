"""A recorded step computed again: do the logprobs come out as they were recorded?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmcli.inspection.run import Run
from llmcli.trace_lines import TOLERANCE, Step, difference


@dataclass(frozen=True, slots=True)
class Held:
    """How far the logprobs (nats) of a step came out from the recorded ones."""

    run: int
    step: int
    max_difference: float
    tolerance: float
    passed: bool


@torch.inference_mode()
def held(run: Run, step: Step, dtype: str) -> Held:
    """`step`, recorded in `dtype`, against what `run`, the ids before it, says now."""
    last = len(run.ids) - 1
    logprobs = run.logits(range(last, last + 1))[0].log_softmax(dim=-1)
    ids = [c.id for c in (step.chosen, *step.top)]
    apart = difference(step, dict(zip(ids, logprobs[ids].tolist(), strict=True)))
    allowed = max(TOLERANCE[dtype], TOLERANCE[run.model.storage])
    return Held(step.run, step.index, apart, allowed, apart <= allowed)
