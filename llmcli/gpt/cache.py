"""The KV cache: the keys and values of every token seen, so that each is computed once.

Preallocated; each layer's attention is handed its own part of it. Knows no model, only sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llmcli.config import ModelConfig


class Past(NamedTuple):
    """Keys and values of the S tokens seen, of which this call computes the last T: views.

    Of all layers, (L, B, H, S, D) and (L, B, H, T, D), or of one, without the L.
    """

    keys: Tensor
    values: Tensor
    new_keys: Tensor
    new_values: Tensor

    def layers(self) -> list[Past]:
        return [Past(*of) for of in zip(*(part.unbind() for part in self), strict=True)]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's `k` and `v` (B, H, T, D); all that it has so far: (B, H, S, D)."""
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
        places = torch.arange(capacity, device=device).unsqueeze(0)
        self.places = places if pad is None else (places - pad[:, None]).clamp(min=0)

    def positions(self, T: int) -> Tensor:
        """Where the next `T` tokens stand: (1, T), or (B, T) with padding, which stands at 0."""
        return self.places.narrow(1, self.length, T)

    def extend(self, T: int) -> Past:
        """Room for `T` more tokens; from now on they count as seen."""
        start, self.length = self.length, self.length + T
        keys, values = (stored.narrow(3, 0, self.length) for stored in (self.keys, self.values))
        return Past(keys, values, keys.narrow(3, start, T), values.narrow(3, start, T))

    def drop(self, row: int) -> None:
        """Forget a row of the batch; the last row takes its place, so that one row is copied."""
        for stored in (self.keys, self.values):
            stored[:, row, :, : self.length] = stored[:, -1, :, : self.length]
        self.keys, self.values = self.keys[:, :-1], self.values[:, :-1]
        if self.pad is not None:
            self.pad[row] = self.pad[-1]
            self.places[row] = self.places[-1]
            self.pad, self.places = self.pad[:-1], self.places[:-1]
