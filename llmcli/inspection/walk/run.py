"""One run that all pages look at, and what several of them need of it.

One forward serves all pages; a single layer's inside is then computed from the stream that entered
it. Pages follow the last position of the prompt through one head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from llmcli.config import ModelConfig
from llmcli.gpt.model import GPT, causal_mask
from llmcli.gpt.tap import Probe
from llmcli.inspection.next import attention_row
from llmcli.inspection.run import Run
from llmcli.inspection.values import Token

FIRST = 4  # how many numbers of a vector are shown
SEEN = ("embed", "pos_embed", "*.q", "*.k", "*.v", "*.resid_pre", "*.resid_mid", "*.resid_post")
INSIDE = ("norm_1", "q", "k", "v", "z", "attn_out", "norm_2", "mlp_pre", "mlp_post", "mlp_out")


@dataclass(frozen=True)
class Walk:
    """A run, and where in it the walk goes."""

    run: Run
    layer_asked: int | None = None
    head_asked: int | None = None

    @property
    def config(self) -> ModelConfig:
        return self.run.config

    @property
    def model(self) -> GPT:
        return self.run.model

    @property
    def last(self) -> int:
        """The position that the walk follows."""
        return len(self.run.ids) - 1

    @property
    def token(self) -> Token:
        """The token at the last position."""
        return self.run.tokens[self.last]

    @cached_property
    def seen(self) -> dict[str, Tensor]:
        """The values of the one forward; a layer's q, k and v share their memory."""
        return self.run.record(*SEEN)

    @property
    def final(self) -> Tensor:
        """The stream after the last block: (T, C)."""
        return self.seen[self.run.end]

    @cached_property
    def logits(self) -> Tensor:
        """What may follow the prompt: (V,)."""
        return self.run.unembed(self.final[-1:], self.last)[0]

    @cached_property
    def best(self) -> list[int]:
        """All ids, the most probable next one first."""
        order: list[int] = self.logits.sort(descending=True, stable=True).indices.tolist()
        return order

    @cached_property
    def head(self) -> tuple[int, int]:
        """(layer, head): of those asked for, the one that reads most from one of `choices`."""
        best, where = -1.0, (0, 0)
        n_layer, first = self.config.n_layer, self.head_asked or 0
        for layer in range(n_layer) if self.layer_asked is None else [self.layer_asked]:
            row = attention_row(self.run, self.seen, layer, self.last)  # (H, T)
            some = row if self.head_asked is None else row[first : first + 1]
            keenest = some[:, self.choices].amax(dim=-1).max(dim=0)
            if float(keenest.values) > best:
                best, where = float(keenest.values), (layer, first + int(keenest.indices))
        return where

    @property
    def choices(self) -> slice:
        """Where a head reads from if it chooses: not at the first token, where heads rest, or here.

        Of a shorter prompt all that comes before, and of one token that.
        """
        return slice(1, self.last) if self.last > 1 else slice(0, max(1, self.last))

    @cached_property
    def weights(self) -> Tensor:
        """Where the heads of that layer read from at the last position: (H, T)."""
        return attention_row(self.run, self.seen, self.head[0], self.last)

    @cached_property
    def inside(self) -> dict[str, Tensor]:
        """The values in the block of `head`, by point: its forward over the stream that came in."""
        layer, T = self.head[0], len(self.run.ids)
        probe = Probe(self.config.n_layer, record=[f"{layer}.{name}" for name in INSIDE])
        x = self.seen[f"{layer}.resid_pre"][None]
        mask = causal_mask(T, T, x.device)
        self.model.block(layer)(x, mask, None, probe.at(0, layer))
        return {name.split(".")[1]: value[0] for name, value in probe.values.items()}


def numbers(x: Tensor, most: int | None = None) -> tuple[float, ...]:
    """The first `most` numbers of a vector."""
    return tuple(x[:most].float().tolist())


def length(x: Tensor) -> float:
    """The Euclidean norm of a vector."""
    return float(x.float().norm())


def ends(count: int, most: int) -> list[int]:
    """At most `most` of 0 .. count-1: the first ones and the last ones."""
    if count <= most:
        return list(range(count))
    return [*range(most // 2), *range(count - (most - most // 2), count)]


def strongest(values: Tensor, most: int) -> list[int]:
    """The places of the largest of `values` (n,), in the order in which they stand."""
    return sorted(values.sort(descending=True, stable=True).indices[:most].tolist())
