"""The arithmetic of the benchmarks: what a decode step reads, medians, ratios, tables. No torch.

A decode step at batch 1 reads every weight and all keys and values once, so that bytes over memory
bandwidth is the least time it can take: the floor (roofline model, Williams et al. 2009).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmcli.config import ModelConfig


class Stored(NamedTuple):
    """How an engine keeps a model: bits per weight (scales included), bytes per key or value."""

    linear_bits: float
    head_bits: float
    kv_itemsize: int


STORED = {
    "ours-float32": Stored(32, 32, 4),
    "ours-float16": Stored(16, 16, 4),
    "ours-bfloat16": Stored(16, 16, 4),
    "ours-int8": Stored(8, 8, 4),
    "ours-int4": Stored(5, 8, 4),  # 32 weights, a scale and a minimum in bfloat16
    "transformers-float32": Stored(32, 32, 4),
    "transformers-bfloat16": Stored(16, 16, 2),
    "llamacpp-f16": Stored(16, 16, 2),
    "llamacpp-q8_0": Stored(8.5, 8.5, 2),  # 32 weights and a float16 scale
    "llamacpp-q4_0": Stored(4.5, 4.5, 2),
    "ctranslate2-int8": Stored(8, 8, 4),
}


def weight_nbytes(config: ModelConfig, stored: Stored) -> int:
    """Bytes of weights that one decode step reads: all linear layers and the head, norms, biases.

    Of a token's and a position's table one row is read: nothing beside the rest.
    """
    C, M = config.n_embd, config.mlp_dim
    linear = config.n_layer * (4 * C * C + 2 * C * M)
    vectors = config.n_layer * (9 * C + M) + 2 * C
    head = config.vocab_size * C
    return int((linear * stored.linear_bits + head * stored.head_bits) / 8) + 4 * vectors


def step_nbytes(config: ModelConfig, stored: Stored, position: float) -> int:
    """Bytes that a decode step reads with `position` tokens before it."""
    return weight_nbytes(config, stored) + int(position * config.kv_nbytes(stored.kv_itemsize))


def floor_tok_s(nbytes: int, bandwidth: float) -> float:
    """Tokens per second that no engine can pass at `bandwidth` bytes per second."""
    return bandwidth / nbytes


class Times(NamedTuple):
    """One run: when each new token was there, in seconds from the call on."""

    times: Sequence[float]

    @property
    def first_s(self) -> float:
        return self.times[0]

    @property
    def decode_tok_s(self) -> float:
        """The decode steps alone: the first token is prefill's."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


class Spread(NamedTuple):
    """The median of a few measurements, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of ratios, each of one round: what slows a whole round slows both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def number(value: float) -> str:
    """Three digits that count: 0.0123, 1.23, 12.3, 123, 1,234."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"


def ratio_table(values: Mapping[str, Sequence[float]], higher_is_better: bool = True) -> str:
    """Each engine of ours beside each peer: how many times as fast it is. Empty without peers."""
    ours = [name for name in values if name.startswith("ours-")]
    peers = [name for name in values if name not in ours]
    if not ours or not peers:
        return ""

    def times_as_fast(mine: str, peer: str) -> str:
        pair = (values[mine], values[peer])
        return f"{ratio(*(pair if higher_is_better else pair[::-1])):.2f}x"

    rows = [[mine, *(times_as_fast(mine, peer) for peer in peers)] for mine in ours]
    return table(["times as fast as", *peers], rows)
