"""Ids in, Steps out: one prefill, then one decode step per token, none wasted.

Knows ids only; text, stop strings and prompts as words are someone else's.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmcli.config import Sampling
from llmcli.errors import IntegrityError, UsageError
from llmcli.gpt.cache import KVCache
from llmcli.gpt.model import GPT, NO_TAP
from llmcli.gpt.sampling import draw, filtered, generator_for
from llmcli.gpt.tap import Tap


@dataclass(frozen=True, slots=True)
class Choice:
    """One vocabulary entry with its natural-log probability, before and after the filters."""

    id: int
    logprob: float
    drawn_logprob: float  # -inf where the filters cut it


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one row, and what the model thought when it was chosen."""

    row: int
    index: int  # from 0, of the tokens generated
    chosen: Choice
    rank: int  # of the chosen token by `logprob`, from 0
    entropy_bits: float  # of the model's own distribution
    top: tuple[Choice, ...]  # the most probable first
    time_s: float  # since `generate` was called
    finish_reason: Literal["stop", "length"] | None

    @property
    def id(self) -> int:
        return self.chosen.id


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int,
    stop_ids: Collection[int] = (),
    top_probs: int = 0,
    use_cache: bool = True,
    tap: Tap = NO_TAP,
    ended: Collection[int] = (),
) -> Iterator[Step]:
    """Continue each of `prompts` by up to `max_new_tokens`, as one batch: a Step a row and token.

    Row i draws with numbers of its own, made of (`seed`, i). A row ends at one of `stop_ids`, at
    `max_new_tokens`, when the context is full, or once the caller has put it into `ended`.
    Without `use_cache` every step computes all tokens anew, which changes the time, not the text.

    Raises UsageError for an empty prompt or one longer than the context.
    """
    started = time.perf_counter()
    longest = _check(prompts, model.config.n_ctx)
    total = min(longest + max_new_tokens, model.config.n_ctx + 1)
    device = model.token_embedding.weight.device
    pad = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    generators = [generator_for(seed, row) for row in range(len(prompts))]

    def new_cache() -> KVCache:
        ragged = pad if bool(pad.any()) else None
        dtype = model.token_embedding.weight.dtype
        return KVCache(model.config, len(prompts), total - 1, dtype, device, ragged)

    cache = new_cache()
    running = set(range(len(prompts)))
    fed = ids
    for index in range(total - longest):
        logits = model(fed, cache, tap, last_only=True)[:, -1].float()  # (B, V)
        drawn = filtered(logits, sampling)
        last = index == total - longest - 1
        chosen = ids.new_zeros(len(prompts), 1)
        for row in sorted(running):
            id = _draw(drawn[row], generators[row])
            chosen[row] = id
            reason: Literal["stop", "length"] | None = "length" if last else None
            reason = "stop" if id in stop_ids else reason
            yield _step(row, index, id, logits[row], drawn[row], top_probs, started, reason)
            if reason or row in ended:
                running.discard(row)
        if not running:
            return
        ids = torch.cat([ids, chosen], dim=1)
        fed = chosen if use_cache else ids
        cache = cache if use_cache else new_cache()


def _check(prompts: Sequence[Sequence[int]], n_ctx: int) -> int:
    """The length of the longest prompt."""
    longest = max(len(prompt) for prompt in prompts)
    if longest > n_ctx:
        raise UsageError(
            f"The prompt has {longest} tokens; the model's context holds {n_ctx}.",
            "Shorten it, or let --truncate-prompt left|right do so.",
        )
    if not all(prompts):
        raise UsageError("The prompt is empty, and this model has no token to begin with.")
    return longest


def _draw(drawn: Tensor, generator: torch.Generator) -> int:
    probs = drawn.softmax(dim=-1)
    if not torch.isfinite(probs).all():
        raise IntegrityError(
            "The model's logits are not numbers (NaN or infinite).",
            "Its weights are damaged, or too large for this dtype; try --dtype float32.",
        )
    return draw(probs, generator)


def _step(
    row: int,
    index: int,
    id: int,
    logits: Tensor,
    drawn: Tensor,
    top_probs: int,
    started: float,
    reason: Literal["stop", "length"] | None,
) -> Step:
    """What there is to know of the choice of `id` from `logits` (V,), filtered to `drawn` (V,)."""
    logprobs, drawn_logprobs = logits.log_softmax(dim=-1), drawn.log_softmax(dim=-1)
    top_ids = logprobs.topk(min(top_probs, len(logprobs))).indices.tolist()
    choices = [Choice(i, float(logprobs[i]), float(drawn_logprobs[i])) for i in [id, *top_ids]]
    return Step(
        row=row,
        index=index,
        chosen=choices[0],
        rank=int((logits > logits[id]).sum()),
        entropy_bits=float(torch.special.entr(logprobs.exp()).sum()) / 0.6931471805599453,
        top=tuple(choices[1:]),
        time_s=time.perf_counter() - started,
        finish_reason=reason,
    )
