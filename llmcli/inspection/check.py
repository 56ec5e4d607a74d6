"""Proof of the views: the ways of computing the same thing, and how far apart they end up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.inspection import attribution
from llmcli.inspection.ask import Ask
from llmcli.inspection.lens import CHUNK
from llmcli.inspection.run import Run
from llmcli.inspection.values import View

# Of the largest logit: what another order of summing, or another cut into calls, may cost by the
# way in which the weights are stored.
RELATIVE = {**attribution.TOLERANCE, "float32": 1e-5}
# Mean KL from fp32, in nats: ten times what fable has and more, as other models take more. To leave
# out one of its layers costs 0.012 and up, which 4 bits may hide.
COSTS = {"float16": 1e-3, "bfloat16": 5e-3, "int8": 1e-2, "int4": 1e-1}
STEPS = 8  # decode steps compared


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to the same values; they pass if they differ by no more than `tolerance`."""

    check: str
    difference: float  # the largest of any two values; to float32 the mean KL, in nats
    tolerance: float
    passed: bool
    means: str


@dataclass(frozen=True, slots=True)
class Check(View):
    """The comparisons; `passed` is true where all of them are."""

    name: ClassVar[str] = "check"

    n_tokens: int
    dtype: str
    largest_logit: float
    passed: bool
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]


def view(run: Run, ask: Ask) -> Check:
    """Fused against explicit, cached against full, the attribution's sum, fp32 against this."""
    full = run.logits(range(len(run.ids)))  # (T, V)
    largest = float(full.abs().max())
    storage = run.model.storage
    relative = RELATIVE[storage]
    of_softmax = RELATIVE["float32" if run.dtype == torch.float32 else storage]
    shown, sums = explicit(run)
    rows = [
        _compare("fused = explicit", full, shown, relative * largest,
                 "attention as views show it gives the logits of the fast path" if fused(run) else
                 "nothing: the fast path does not run where the scores of all layers are changed"),
        _compare("cached = full", full[-STEPS:], cached(run), relative * largest,
                 "a prefill and decode steps with the KV cache give the logits of one forward"),
        _attribution(run, ask),
        Comparison("patterns sum to 1", sums, of_softmax, sums <= of_softmax,
                   "no attention is lost, and none falls on later tokens"),
    ]  # fmt: skip
    if run.load_fp32 is not None and storage != "float32":
        exact = Run(run.load_fp32(), run.ids, run.token_bytes, run.patch)
        theirs = exact.logits(range(len(run.ids)))
        rows.append(_cost(storage, full, theirs))
    notes = ["measured: the largest difference of any two logits, over the positions compared."]
    if storage == "float32":
        notes.append("The dtype in use is float32, the one that others are compared with.")
    else:
        notes.append(f"{storage} = float32 is a mean KL over all positions, in nats.")
    return Check(
        n_tokens=len(run.ids),
        dtype=storage,
        largest_logit=largest,
        passed=all(row.passed for row in rows),
        comparisons=tuple(rows),
        notes=tuple(notes),
    )


def fused(run: Run) -> bool:
    """Whether the attention of any layer is: scores are made wherever a change is of them."""
    return any(f"{layer}.scores" not in run.patch for layer in range(run.config.n_layer))


@torch.inference_mode()
def explicit(run: Run) -> tuple[Tensor, float]:
    """The logits (T, V) of a forward in which no layer's attention is fused.

    And how far the sum of any row of its patterns, later tokens left out, is from 1.
    """
    seen = run.record("*.pattern", run.end)
    x = seen.pop(run.end)
    sums = [float((p.float().tril().sum(dim=-1) - 1).abs().max()) for p in seen.values()]
    return run.unembed(x, 0), max(sums)


@torch.inference_mode()
def cached(run: Run) -> Tensor:
    """The logits of the last STEPS positions, a decode step each after a prefill: (n, V)."""
    T = len(run.ids)
    start = max(0, T - STEPS)
    ids, tap = run.ids_tensor[None], run.probe()
    cache = run.model.new_cache(1, T)
    if start:
        run.model.stream(ids[:, :start], cache, tap)
    steps = [run.model(ids[:, i : i + 1], cache, tap)[0] for i in range(start, T)]
    return torch.cat(steps).float()


def _compare(name: str, ours: Tensor, theirs: Tensor, tolerance: float, means: str) -> Comparison:
    difference = float((ours - theirs).abs().max())
    return Comparison(name, difference, tolerance, difference <= tolerance, means)


def _cost(storage: str, ours: Tensor, exact: Tensor) -> Comparison:
    """How far the distributions of the logits `ours` (T, V) are from the `exact` ones."""
    total = 0.0
    for here, there in zip(ours.split(CHUNK), exact.split(CHUNK), strict=True):
        logs = here.log_softmax(dim=-1), there.log_softmax(dim=-1)
        total += float(F.kl_div(*logs, log_target=True, reduction="sum"))
    mean = max(0.0, total / len(ours))
    return Comparison(
        f"{storage} = float32", mean, COSTS[storage], mean <= COSTS[storage],
        "what storing the weights so costs",
    )  # fmt: skip


def _attribution(run: Run, ask: Ask) -> Comparison:
    made = attribution.summed(run, replace(ask, versus=None))
    difference = abs(made.residual)
    return Comparison(
        "parts = logit", difference, made.tolerance, difference <= made.tolerance,
        "the parts of the attribution add up to the logit",
    )  # fmt: skip
