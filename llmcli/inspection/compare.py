"""A changed run held against the untouched one: where they part, how far, and how odd the text is.

Both distributions are of the same context, the changed text, so that a KL is of the change alone
and not of the other words that it led to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmcli import units
from llmcli.inspection.lens import CHUNK, Best, Final
from llmcli.inspection.run import Run


@dataclass(frozen=True, slots=True)
class Comparison:
    """One changed text beside the untouched one."""

    first_difference: int | None  # the first step at which the tokens differ
    kl_bits: tuple[float, ...]  # per step: KL(untouched || changed)
    perplexity: float | None  # of the changed text, under the untouched model
    baseline_perplexity: float | None  # of the untouched text, under the same


def compare(
    run: Run, changed: Sequence[int], plain: Sequence[int], whole: bool = True
) -> Comparison:
    """What `run`'s patches did to its prompt's continuation: `changed` ids instead of `plain`.

    Unless both are `whole`, that one goes on longer than the other is no difference.
    """
    untouched = replace(run, patch={})
    return Comparison(
        first_difference(changed, plain, whole),
        tuple(kl_per_step(run, changed)),
        *(perplexity(untouched, ids) if ids else None for ids in (changed, plain)),
    )


@torch.inference_mode()
def kl_per_step(run: Run, changed: Sequence[int]) -> list[float]:
    """KL(untouched || changed) in bits at each of the `changed` ids that continue the prompt."""
    if not changed:
        return []
    here = run.on([*run.ids, *changed][:-1])  # the last token foretells nothing that is shown
    untouched = replace(here, patch={})
    positions = range(len(run.ids) - 1, len(here.ids))
    kl: list[float] = []
    for low in range(0, len(positions), CHUNK):
        some = positions[low : low + CHUNK]
        kl += Best.of(here.logits(some), Final.of(untouched.logits(some))).kl_bits.tolist()
    return kl


@torch.inference_mode()
def perplexity(run: Run, continuation: Sequence[int]) -> float:
    """exp of the mean of -log p of each id of `continuation`, one at least, after the prompt."""
    n = len(run.ids)
    fed = run.on([*run.ids, *continuation][:-1])
    ids = torch.tensor(list(continuation), device=run.device)
    losses: list[Tensor] = []
    for low in range(0, len(ids), CHUNK):
        here = ids[low : low + CHUNK]
        logprobs = fed.logits(range(n - 1 + low, n - 1 + low + len(here))).log_softmax(dim=-1)
        losses.append(-logprobs.gather(-1, here[:, None]))
    return units.perplexity(float(torch.cat(losses).double().mean()))


def first_difference(
    changed: Sequence[int], plain: Sequence[int], whole: bool = True
) -> int | None:
    """The first step at which two texts have different tokens; None where they never have.

    Where one is the other's beginning it is where that one ends, if it was to end there (`whole`).
    """
    for step, (a, b) in enumerate(zip(changed, plain, strict=False)):
        if a != b:
            return step
    return None if not whole or len(changed) == len(plain) else min(len(changed), len(plain))
