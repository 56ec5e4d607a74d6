"""Ids in, Steps out: one prefill, then one decode step per token, none wasted.

Knows ids only; text, stop strings and prompts as words are someone else's. `generate` is a pure
function of its arguments, so that bulk work can be cut into batches and given to anyone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from llmcli.config import Sampling
from llmcli.errors import IntegrityError, UsageError
from llmcli.gpt.cache import KVCache
from llmcli.gpt.model import GPT, NO_TAP
from llmcli.gpt.sampling import draw, filtered, seen
from llmcli.gpt.script import decode_step
from llmcli.gpt.tap import Tap

WORTH_A_SCRIPT = 48  # tokens: to write one down takes as long as it saves in so many steps

FinishReason = Literal["stop", "length"]


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
    kept: float  # the share of that distribution which the filters leave
    top: tuple[Choice, ...]  # by `logprob`, the most probable first
    drawn_top: tuple[Choice, ...]  # by `drawn_logprob`; what the filters cut is not listed
    forced: bool
    time_s: float  # since `generate` was called
    finish_reason: FinishReason | None

    @property
    def id(self) -> int:
        return self.chosen.id


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    forced: Mapping[int, int] = MappingProxyType({}),
    n_tokens: int | None = None,
    top_probs: int = 0,
    use_cache: bool = True,
    tap: Tap = NO_TAP,
    ended: Collection[int] = (),
) -> Iterator[Step]:
    """Continue `prompts` as one batch, each row drawing from its own generator: Steps, by index.

    A row ends at one of `stop_ids`, at `max_new_tokens`, when its context is full, or once the
    caller has put it into `ended`. `forced` gives the id at some indices whatever the draw says;
    ids from `n_tokens` on, the padding of some vocabularies, are never drawn.
    `ended` is read again after each step, so that who listens can end a row while iterating.
    Without `use_cache` every step computes all tokens anew, which changes the time, not the text.

    Raises UsageError for an empty prompt or one longer than the context.
    """
    started = time.perf_counter()
    longest = _check(prompts, model.config.n_ctx)
    # The last token of a full context needs no place in it.
    room = [min(max_new_tokens, model.config.n_ctx + 1 - len(prompt)) for prompt in prompts]
    padding = torch.arange(n_tokens or 0, model.config.vocab_size, device=model.device)
    running = list(range(len(prompts)))  # which row of the caller's each row of the batch is
    history = [list(prompt) for prompt in prompts]
    finished: set[int] = set()
    next_logits: Callable[[Tensor, KVCache], Tensor] = partial(model, tap=tap, last_only=True)
    scripted = tap is NO_TAP and max(room) > WORTH_A_SCRIPT and model.device.type == "cpu"
    for index in range(max(room)):
        if index == 0 or not use_cache:
            now = [history[row] for row in running]
            cache = _new_cache(model, now, capacity=longest + max(room) - 1)
            fed = _left_padded(now).to(model.device)
        elif index == 1 and scripted:
            next_logits = decode_step(model)
        logits = next_logits(fed, cache)[:, -1].float()  # (B, V)
        real = logits if n_tokens is None else logits.index_fill(1, padding, -math.inf)
        drawn = filtered(real, sampling, _counts(history, running, sampling, logits))
        drawn_logprobs = drawn.log_softmax(dim=-1)
        ids = _draw(drawn_logprobs, sampling, [generators[row] for row in running])
        if index in forced:  # after the draw, so that later steps draw what they would have drawn
            ids = torch.full_like(ids, forced[index])
        time_s = time.perf_counter() - started
        for place, facts in enumerate(_facts(logits, drawn_logprobs, ids, top_probs)):
            row, id = running[place], facts["chosen"].id
            history[row].append(id)
            last = index + 1 == room[row]
            reason: FinishReason | None = "stop" if id in stop_ids else "length" if last else None
            if reason:
                finished.add(row)
            yield Step(
                row=row,
                index=index,
                forced=index in forced,
                time_s=time_s,
                finish_reason=reason,
                **facts,
            )
        over = [row in finished or row in ended for row in running]
        if all(over):
            return
        fed = ids[:, None]
        for place in reversed(range(len(running))):
            if over[place]:
                cache.drop(place)  # the last row takes its place
                running[place] = running[-1]
                fed[place] = fed[len(running) - 1]
                running.pop()
        fed = fed[: len(running)]


@torch.inference_mode()
def score(model: GPT, ids: Sequence[int], top_probs: int = 0, tap: Tap = NO_TAP) -> list[Step]:
    """What the model thought of each of `ids` but the first, which nothing predicts: as Steps.

    A step's `index` is the token's position. Raises UsageError as `generate` does.
    """
    _check([ids], model.config.n_ctx)
    if len(ids) == 1:
        return []
    tensor = torch.tensor([ids], device=model.device)
    x = model.stream(tensor[:, :-1], None, tap)  # (1, T - 1, C)
    facts: list[dict[str, Any]] = []
    for start in range(0, len(ids) - 1, 64):  # all logits at once would take V / C times the room
        logits = model.unembed(x[:, start : start + 64], start, tap)[0].float()
        logprobs = logits.log_softmax(dim=-1)
        facts += _facts(logits, logprobs, tensor[0, 1 + start :][:64], top_probs)
    return [
        Step(row=0, index=position, forced=True, time_s=0.0, finish_reason=None, **values)
        for position, values in enumerate(facts, start=1)
    ]


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


def _left_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """`rows` as one tensor (B, T), the shorter ones filled up at the left with id 0."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])


def _new_cache(model: GPT, rows: Sequence[Sequence[int]], capacity: int) -> KVCache:
    longest = max(len(row) for row in rows)
    pad = torch.tensor([longest - len(row) for row in rows], device=model.device)
    ragged = pad if bool(pad.any()) else None
    return KVCache(model.config, len(rows), capacity, model.dtype, model.device, ragged)


def _counts(
    history: Sequence[Sequence[int]], running: Sequence[int], sampling: Sampling, logits: Tensor
) -> Tensor | None:
    """What the penalties need to know of the ids before; None where none is in force."""
    if not sampling.penalises:
        return None
    rows = [history[row] for row in running]
    return seen(rows, sampling.penalty_window, logits.shape[-1]).to(logits.device)


def _draw(
    drawn_logprobs: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]
) -> Tensor:
    """An id for each row of `drawn_logprobs` (B, V), from its own generator: (B,)."""
    if not sampling.temperature:
        return drawn_logprobs.argmax(dim=-1)  # the only one left
    points = [torch.rand((), generator=generator, dtype=torch.float64) for generator in generators]
    return draw(drawn_logprobs.exp().cpu(), torch.stack(points)).to(drawn_logprobs.device)


def _facts(
    logits: Tensor, drawn_logprobs: Tensor, ids: Tensor, top_probs: int
) -> list[dict[str, Any]]:
    """What there is to know of `ids` (B,), drawn from `logits` (B, V) that the filters changed.

    All rows at once, and one list for each of Step's fields: a tensor that is asked for its
    numbers one by one takes longer than the model. Raises IntegrityError for logits that are no
    numbers: a single one in a row makes all its logprobs NaN.
    """
    logprobs = logits.log_softmax(dim=-1)
    probs = logprobs.exp()
    k = min(top_probs, logits.shape[-1])
    choices = ids[:, None]
    if k:
        top, drawn_top = logprobs.topk(k).indices, drawn_logprobs.topk(k).indices  # (B, k)
        choices = torch.cat([choices, top, drawn_top], dim=1)  # (B, 1 + 2 k)
    rank = _rank(logits, ids).tolist()
    entropy_bits = (-(probs * logprobs).sum(dim=1) / math.log(2)).tolist()
    kept = probs.where(drawn_logprobs > -math.inf, 0).sum(dim=1).clamp(max=1).tolist()
    listed = [
        [Choice(*values) for values in zip(*row, strict=True)]
        for row in zip(
            choices.tolist(),
            logprobs.gather(1, choices).tolist(),
            drawn_logprobs.gather(1, choices).tolist(),
            strict=True,
        )
    ]
    if any(math.isnan(row[0].logprob) for row in listed):
        raise IntegrityError(
            "The model's logits are not numbers (NaN or infinite).",
            "Its weights are damaged, or too large for this dtype; try --dtype float32.",
        )
    return [
        {
            "chosen": row[0],
            "rank": rank[place],
            "entropy_bits": entropy_bits[place],
            "kept": kept[place],
            "top": tuple(sorted(row[1 : 1 + k], key=lambda c: (-c.logprob, c.id))),
            "drawn_top": tuple(
                sorted(
                    (c for c in row[1 + k :] if c.drawn_logprob > -math.inf),
                    key=lambda c: (-c.drawn_logprob, c.id),
                )
            ),
        }
        for place, row in enumerate(listed)
    ]


def _rank(logits: Tensor, ids: Tensor) -> Tensor:
    """How many of `logits` (B, V) come before those of `ids` (B,), equal ones by id: (B,)."""
    chosen = logits.gather(1, ids[:, None])  # (B, 1)
    above = (logits > chosen).count_nonzero(dim=1)
    equal = logits == chosen
    if equal.count_nonzero() > len(ids):
        lower = torch.arange(logits.shape[-1], device=ids.device) < ids[:, None]
        above += (equal & lower).sum(dim=1)
    return above
