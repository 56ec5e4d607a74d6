"""One prompt through one model, and the values that a view asks for on the way.

Each view runs the forward for itself and records only what it shows, so that attention stays fused
wherever nobody looks at it. Knows ids and how to name one, no tokenizer and no options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np  # noqa: F401 (before torch: see llmcli.gpt)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.config import ModelConfig
from llmcli.errors import IntegrityError
from llmcli.gpt.model import GPT
from llmcli.gpt.sampling import EVERY, Drawable
from llmcli.gpt.tap import Patch, Probe
from llmcli.inspection.values import Token

BATCH_TOKENS = 2048  # at once: larger batches are no faster on a processor, and take more memory
Item = TypeVar("Item")


@dataclass(frozen=True)
class Run:
    """`ids` through `model`; every forward of a view happens here, with `patch` in force.

    Without ids there is no forward, for views of the weights alone.
    """

    model: GPT
    ids: Sequence[int]
    token_bytes: Callable[[int], bytes]  # of any id of the model
    patch: Mapping[str, Patch] = field(default_factory=dict)
    n_prefix: int = 0  # how many of `ids` stand before the text: special tokens, without bytes
    # Ids of no token, which are never drawn, are left out.
    drawable: Drawable = field(default_factory=lambda: EVERY)
    load_fp32: Callable[[], GPT] | None = None  # the same model in fp32, for `check`

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def on(self, ids: Sequence[int]) -> Run:
        """The same model on other ids."""
        return replace(self, ids=ids)

    def token(self, id: int) -> Token:
        """A vocabulary entry; one that only pads the vocabulary has no bytes."""
        return Token(id, self.token_bytes(id))

    def only_drawable(self, logits: Tensor) -> Tensor:
        """`logits` (V,) with -inf for ids that `generate` never draws."""
        used = torch.full_like(logits, -math.inf)
        used[self.drawable] = logits[self.drawable]
        return used

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of generated `ids`, without what ended it."""
        shown = [id for id in ids if id not in self.config.eos_ids]
        return b"".join(map(self.token_bytes, shown)).decode("utf-8", "replace")

    @property
    def ids_tensor(self) -> Tensor:
        """The prompt's ids: (T,)."""
        return torch.tensor(list(self.ids), device=self.device)

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The prompt's tokens, one per position."""
        return tuple(self.token(id) for id in self.ids)

    @property
    def end(self) -> str:
        """The point at which the residual stream leaves the last block."""
        return f"{self.config.n_layer - 1}.resid_post"

    @cached_property
    def final(self) -> Tensor:
        """The residual stream after the last block, attention fused: (T, C)."""
        return self._forward(())[1]

    def record(self, *names: str) -> dict[str, Tensor]:
        """The values at these points of one forward, without their batch dimension.

        Raises IntegrityError where the stream they end in does not consist of numbers.
        """
        values, _ = self._forward(names)
        return {name: value[0] for name, value in values.items()}

    def probe(self, names: Sequence[str] = ()) -> Probe:
        """A probe that records `names`, with the patches of this run."""
        return Probe(self.config.n_layer, record=names, patch=self.patch)

    @torch.inference_mode()
    def _forward(self, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        probe = self.probe(names)
        x = self.model.stream(self.ids_tensor[None], None, probe)  # (1, T, C)
        require_numbers(x)
        return probe.values, x[0]

    @torch.inference_mode()
    def logits(self, positions: range) -> Tensor:
        """The model's own logits at `positions`: (len(positions), V), in fp32.

        Raises IntegrityError where they are not numbers.
        """
        return self.unembed(self.final[positions.start : positions.stop], positions.start)

    @torch.inference_mode()
    def logits_of_rows(self, ids: Tensor, position: int, patch: Mapping[str, Patch]) -> Tensor:
        """The logits at `position` of each row of `ids` (N, T), in one forward: (N, V), in fp32.

        `patch` is in force in the place of this run's own.
        """
        probe = Probe(self.config.n_layer, patch=patch)
        x = self.model.stream(ids, None, probe)[:, position : position + 1]  # (N, 1, C)
        logits = self.model.unembed(x, position, probe)[:, 0].float()
        require_numbers(logits)
        return logits

    @torch.inference_mode()
    def unembed(self, x: Tensor, start: int) -> Tensor:
        """The model's own logits from the final stream `x` (n, C), from `start` on: (n, V).

        For a view that has recorded `x` anyway: `logits` would run the forward once more.
        """
        logits = self.model.unembed(x[None], start, self.probe())[0].float()
        require_numbers(logits)
        return logits


def batched(items: Sequence[Item], length: int) -> Iterator[Sequence[Item]]:
    """`items` in runs of as many texts of `length` as are read at once: mostly all of them."""
    size = max(1, BATCH_TOKENS // max(1, length))
    for low in range(0, len(items), size):
        yield items[low : low + size]


def assigned(rows: Sequence[int], things: Sequence[int] | None, new: Tensor | float) -> Patch:
    """A value whose `rows` of the batch, or each row's own one of `things` in it, are `new`."""

    def patch(value: Tensor, start: int) -> Tensor:
        value = value.clone()
        value[list(rows) if things is None else (list(rows), list(things))] = new
        return value

    return patch


def require_numbers(values: Tensor) -> None:
    """Raises IntegrityError where some of `values` are NaN or infinite."""
    if not torch.isfinite(values).all():
        raise IntegrityError(
            "The model's values are not numbers (NaN or infinite).",
            "Its weights are damaged, or too large for this dtype; try --dtype float32.",
        )


def entropy_bits(probs: Tensor) -> Tensor:
    """Shannon entropy of probabilities (..., V), in bits: (...)."""
    return torch.special.entr(probs).sum(dim=-1) / math.log(2)


def vectors(table: nn.Embedding) -> Tensor:
    """The rows of an embedding (N, C), in fp32. Raises IntegrityError where they are no numbers."""
    values = table.weight.detach().float()
    require_numbers(values)
    return values


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each vector of `a` (N, C) with each of `b` (M, C): (N, M); of zero it is 0."""
    return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of two vectors (C,)."""
    return float(cosines(a[None], b[None]))


def rank_of(logits: Tensor, ids: Tensor) -> Tensor:
    """How many of `logits` (..., V) come before that of `ids` (...), equal ones by id: (...)."""
    own = logits.gather(-1, ids[..., None])
    larger, equal = (logits > own).sum(dim=-1), logits == own
    if not bool((equal.sum(dim=-1) > 1).any()):
        return larger
    lower = torch.arange(logits.shape[-1], device=logits.device) < ids[..., None]
    return larger + (equal & lower).sum(dim=-1)


def rank_in(logits: Tensor, id: int) -> int:
    """The same of one id in one row of `logits` (V,): 0 is the most probable."""
    return int(rank_of(logits, torch.tensor(id, device=logits.device)))
