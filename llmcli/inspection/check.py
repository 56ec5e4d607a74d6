"""Proof of the views: the ways of computing the same thing, and how far apart they end up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.gpt.cache import KVCache
from llmcli.inspection import attribution
from llmcli.inspection.run import Ask, Run
from llmcli.inspection.values import View

FP32 = 1e-5  # of the largest logit: what another order of summing costs
HALF = 5e-2  # the same in 16 bits


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to the same values; they pass if no two of them differ by more than `tolerance`."""

    check: str
    max_difference: float
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
    relative = FP32 if run.dtype == torch.float32 else HALF
    dtype = str(run.dtype).removeprefix("torch.")
    rows = [
        _compare("fused = explicit", full, explicit(run), relative * largest,
                 "attention as views show it gives the logits of the fast path"),
        _compare("cached = full", full, cached(run), relative * largest,
                 "one token at a time with the KV cache gives the logits of one forward"),
        _attribution(run, ask),
        _patterns(run),
    ]  # fmt: skip
    if run.load_fp32 is not None and run.dtype != torch.float32:
        exact = Run(run.load_fp32(), run.ids, run.token_bytes, run.patch)
        theirs = exact.logits(range(len(run.ids)))
        rows.append(
            _compare(f"{dtype} = float32", full, theirs, HALF * largest, "what the dtype costs")
        )
    notes = ["measured: the largest difference of any two logits, over all positions."]
    if run.dtype == torch.float32:
        notes.append("The dtype in use is float32, the one that others are compared with.")
    return Check(
        n_tokens=len(run.ids),
        dtype=dtype,
        largest_logit=largest,
        passed=all(row.passed for row in rows),
        comparisons=tuple(rows),
        notes=tuple(notes),
    )


def explicit(run: Run) -> Tensor:
    """The logits (T, V) of a forward in which no layer's attention is fused."""
    last = f"{run.config.n_layer - 1}.resid_post"
    x = run.record("*.pattern", last)[last]
    return _unembed(run, x)


@torch.inference_mode()
def cached(run: Run) -> Tensor:
    """The logits (T, V) of a prefill of half the prompt and a decode step per token after it."""
    T = len(run.ids)
    half = max(1, T // 2)
    ids = torch.tensor([list(run.ids)])
    cache = KVCache(run.config, 1, T, dtype=run.dtype)
    tap = run.probe()
    chunks = [ids[:, :half], *ids[:, half:].split(1, dim=1)] if half < T else [ids]
    return torch.cat([run.model(chunk, cache, tap)[0] for chunk in chunks]).float()


@torch.inference_mode()
def _unembed(run: Run, x: Tensor) -> Tensor:
    return run.model.unembed(x[None], 0, run.probe())[0].float()


def _compare(name: str, ours: Tensor, theirs: Tensor, tolerance: float, means: str) -> Comparison:
    difference = float((ours - theirs).abs().max())
    return Comparison(name, difference, tolerance, difference <= tolerance, means)


def _attribution(run: Run, ask: Ask) -> Comparison:
    logits = run.logits(range(ask.position, ask.position + 1))[0]
    token = int(logits.argmax()) if ask.token is None else ask.token
    values, logit = attribution.account(run, ask.position, token, None)
    size = sum(map(abs, values.values()))
    limit = attribution.TOLERANCE if run.dtype == torch.float32 else attribution.HALF_TOLERANCE
    difference = abs(logit - sum(values.values()))
    return Comparison(
        "parts = logit", difference, size * limit, difference <= size * limit,
        "the parts of the attribution add up to the logit",
    )  # fmt: skip


@torch.inference_mode()
def _patterns(run: Run) -> Comparison:
    """Each row of each pattern is a distribution over the places before it."""
    limit = FP32 if run.dtype == torch.float32 else HALF
    difference = 0.0
    for pattern in run.record("*.pattern").values():
        sums = pattern.float().tril().sum(dim=-1)
        difference = max(difference, float((sums - 1).abs().max()))
    return Comparison(
        "patterns sum to 1", difference, limit, difference <= limit,
        "no attention is lost, and none falls on later tokens",
    )  # fmt: skip
