"""The KV cache: the keys and values of every token seen, so that each is computed once.

Preallocated; each layer's attention is handed its own part of it. Knows no model, only sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.config import ModelConfig


class LayerCache:
    """One layer's keys and values, (B, H, S, D) each, of which this call computes the last T."""

    def __init__(self, keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.new_keys, self.new_values = new_keys, new_values

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store `k` and `v` (B, H, T, D) behind the tokens seen; all so far: (B, H, S, D)."""
        self.new_keys.copy_(k)
        self.new_values.copy_(v)
        return self.keys, self.values


class KVCache:
    """The keys and values of all layers, (L, B, H, capacity, D) each, of which `length` are filled.

    `pad` (B,) counts the padding at the left of each row, if any.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        pad: Tensor | None = None,
    ) -> None:
        shape = (config.n_layer, batch, config.n_head, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0  # S, the tokens seen so far
        self.pad = pad

    def extend(self, T: int) -> list[LayerCache]:
        """Room for `T` more tokens, layer by layer; from now on they count as seen."""
        seen = [stored.narrow(3, 0, self.length + T) for stored in (self.keys, self.values)]
        new = [stored.narrow(3, self.length, T) for stored in seen]
        self.length += T
        return [LayerCache(*of) for of in zip(*(s.unbind() for s in (*seen, *new)), strict=True)]

    def drop(self, row: int) -> None:
        """Forget a row of the batch; the last row takes its place, so that one row is copied."""
        for stored in (self.keys, self.values):
            stored[:, row, :, : self.length] = stored[:, -1, :, : self.length]
        self.keys, self.values = self.keys[:, :-1], self.values[:, :-1]
        if self.pad is not None:
            self.pad[row] = self.pad[-1]
            self.pad = self.pad[:-1]
