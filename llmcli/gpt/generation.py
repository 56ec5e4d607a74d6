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
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llmcli.config import Sampling
from llmcli.errors import IntegrityError, UsageError
from llmcli.gpt.cache import KVCache
from llmcli.gpt.facts import Facts, Rows, facts_of
from llmcli.gpt.model import GPT, NO_TAP
from llmcli.gpt.packing import pack
from llmcli.gpt.sampling import EVERY, Drawable, Left, Row, draw, left, seen, uniforms
from llmcli.gpt.step import decode_step
from llmcli.gpt.tap import Tap

FinishReason = Literal["stop", "length"]
Look = Callable[[Rows, Sequence[Left]], None]  # logits (B, V), and what the filters leave of each


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one row."""

    row: int
    index: int  # from 0, of the tokens generated
    id: int
    forced: bool
    time_s: float  # since `generate` was called
    finish_reason: FinishReason | None
    known: Facts | None  # None: nobody asked

    @property
    def facts(self) -> Facts:
        """Raises ValueError where `top_probs` of `generate` was None."""
        if self.known is None:
            raise ValueError("this step was made without its facts")
        return self.known


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
    drawable: Drawable = EVERY,
    top_probs: int | None = 0,
    use_cache: bool = True,
    tap: Tap = NO_TAP,
    ended: Collection[int] = (),
    look: Look = lambda logits, kept: None,
) -> Iterator[Step]:
    """Continue `prompts` as one batch, each row drawing from its own generator: Steps, by index.

    A row ends at one of `stop_ids`, at `max_new_tokens`, when its context is full, or once the
    caller has put it into `ended`. `forced` gives the id at some indices whatever the draw says;
    an id that is not `drawable`, as those that pad some vocabularies, is never drawn. The facts of
    a step list the `top_probs` most probable tokens; None leaves them out: they take as long as a
    layer. `ended` is read again after each step, so that who listens can end a row while iterating.
    `look` is shown what the Steps of an index come from, a row for each, before they come.
    Without `use_cache` every step computes all tokens anew: it takes longer, for the same text, but
    for what bfloat16 and 8 and 4 bits round away.

    Raises UsageError for an empty prompt, one longer than the context, and where a bias forbids
    every id; IntegrityError for logits that are no numbers.
    """
    started = time.perf_counter()
    longest = _check(prompts, model.config.n_ctx)
    # The last token of a full context needs no place in it.
    room = [min(max_new_tokens, model.config.n_ctx + 1 - len(prompt)) for prompt in prompts]
    device = model.device
    running = list(range(len(prompts)))  # which row of the caller's each row of the batch is
    history = [list(prompt) for prompt in prompts]
    finished: set[int] = set()
    next_logits: Callable[[Tensor, KVCache], Tensor] = partial(model, tap=tap, last_only=True)
    for index in range(max(room)):
        if index == 0 or not use_cache:
            now = [history[row] for row in running]
            cache = _new_cache(model, now, capacity=longest + max(room) - 1)
            fed = _left_padded(now)
        if index == 1:
            pack(model)
            if use_cache and tap is NO_TAP:
                next_logits = decode_step(model, max(room), len(running))
        logits = next_logits(fed.to(device), cache).select(1, -1).float().cpu()  # (B, V)
        _check_logits(logits)
        rows = zip(logits.numpy(), running, strict=True)
        kept = [_left(of, history[row], sampling, drawable) for of, row in rows]
        ids = _draw(kept, sampling, [generators[row] for row in running])
        if index in forced:  # after the draw, so that later steps draw what they would have drawn
            ids = [forced[index]] * len(ids)
        time_s = time.perf_counter() - started
        look(logits.numpy(), kept)
        facts = facts_of(logits.numpy(), kept, ids, top_probs)
        for row, id, known in zip(running, ids, facts, strict=True):
            history[row].append(id)
            last = index + 1 == room[row]
            reason: FinishReason | None = "stop" if id in stop_ids else "length" if last else None
            if reason:
                finished.add(row)
            yield Step(row, index, id, index in forced, time_s, reason, known)
        for place in reversed(range(len(running))):
            if running[place] in finished or running[place] in ended:
                cache.drop(place)  # the last row takes its place
                running[place] = running[-1]
                running.pop()
        if not running:
            return
        fed = torch.from_numpy(np.array([history[row][-1:] for row in running], np.int64))


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
    facts: list[Facts | None] = []
    for start in range(0, len(ids) - 1, 64):  # all logits at once would take V / C times the room
        logits = model.unembed(x[:, start : start + 64], start, tap)[0].float().cpu()
        _check_logits(logits)
        kept = [left(row, Sampling()) for row in logits.numpy()]
        facts += facts_of(logits.numpy(), kept, ids[1 + start :][:64], top_probs)
    return [
        Step(0, position, id, True, 0.0, None, known)
        for position, (id, known) in enumerate(zip(ids[1:], facts, strict=True), start=1)
    ]


def _check(prompts: Sequence[Sequence[int]], n_ctx: int) -> int:
    """The length of the longest prompt."""
    longest = max(len(prompt) for prompt in prompts)
    if longest > n_ctx:
        raise UsageError(
            f"The prompt has {longest} tokens; the model's context holds {n_ctx}.",
            "Shorten it.",
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
    return model.new_cache(len(rows), capacity, ragged)


def _left(logits: Row, ids: Sequence[int], sampling: Sampling, drawable: Drawable) -> Left:
    """What the filters leave of `logits` (V,), which follow `ids`."""
    counts = seen(ids, sampling.penalty_window, len(logits)) if sampling.penalises else None
    kept = left(logits, sampling, counts, drawable)
    if not len(kept.ids):
        raise UsageError("No token is left to choose from.", "Let --bias forbid fewer of them.")
    if math.isnan(kept.logprobs[0]):  # the filters made them so
        raise _no_numbers()
    return kept


def _check_logits(logits: Tensor) -> None:
    if not np.logical_and.reduce(np.isfinite(logits.numpy()), axis=None):
        raise _no_numbers()


def _no_numbers() -> IntegrityError:
    return IntegrityError(
        "The model's logits are not numbers (NaN or infinite).",
        "Its weights are damaged, or too large for this dtype; try --dtype float32.",
    )


def _draw(
    kept: Sequence[Left], sampling: Sampling, generators: Sequence[torch.Generator]
) -> list[int]:
    """An id of what the filters `kept` of each row, from its own generator."""
    if not sampling.temperature:
        return [int(row.ids[0]) for row in kept]  # the only one left
    return [
        int(row.ids[draw(np.exp(row.logprobs), *uniforms(generator, 1))])
        for row, generator in zip(kept, generators, strict=True)
    ]
