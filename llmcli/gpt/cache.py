"""The KV cache: the keys and values of every token seen, so that each is computed once.

Preallocated; one slot per layer, handed to that layer's attention. Knows no model, only sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.config import ModelConfig


class LayerCache:
    """One layer's keys and values, (B, H, capacity, D) each, of which `length` are filled."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store `k` and `v` (B, H, T, D) behind the tokens seen; all so far: (B, H, S, D)."""
        T = k.shape[2]
        self.keys.narrow(2, self.length, T).copy_(k)
        self.values.narrow(2, self.length, T).copy_(v)
        self.length += T
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)


class KVCache:
    """The slots of all layers; `pad` (B,) counts the padding at the left of each row, if any."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        pad: Tensor | None = None,
    ) -> None:
        shape = (batch, config.n_head, capacity, config.head_dim)
        self.layers = [
            LayerCache(
                torch.empty(shape, dtype=dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
            )
            for _ in range(config.n_layer)
        ]
        self.capacity = capacity
        self.pad = pad

    def drop(self, row: int) -> None:
        """Forget a row of the batch; the last row takes its place, so that one row is copied."""
        for layer in self.layers:
            for stored in (layer.keys, layer.values):
                stored[row, :, : layer.length] = stored[-1, :, : layer.length]
            layer.keys, layer.values = layer.keys[:-1], layer.values[:-1]
        if self.pad is not None:
            self.pad[row] = self.pad[-1]
            self.pad = self.pad[:-1]

    @property
    def length(self) -> int:
        """S, the tokens seen so far."""
        return self.layers[0].length
