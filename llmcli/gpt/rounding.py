"""Weights in fewer bits: what a matrix becomes on its way from a file to a layer, part by part.

Sources: integers with a scale per output channel, arXiv:1712.05877 and arXiv:2208.07339; groups of
32 weights in 4 bits, arXiv:2210.17323.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmcli.errors import IntegrityError

PART_NBYTES = 2 << 20  # of weights converted at once: what the processor's caches hold
GROUP = 32  # weights that share a scale and a minimum in 4 bits


class Rows(Protocol):
    """A matrix (out, in) that is read by its rows: a tensor, or one that still lies in a file.

    What reads some rows at a time need not have all of a file's in memory at once. Where the file
    has the transpose, which the attribute `transposed` says, they come from all over it.
    """

    @property
    def shape(self) -> Sequence[int]: ...
    def __getitem__(self, rows: slice, /) -> Tensor: ...


def parts(weight: Rows, itemsize: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `weight` (out, in), as many at once as make PART_NBYTES at `itemsize` bytes each."""
    n_out, n_in = weight.shape
    n = max(1, PART_NBYTES // (n_in * itemsize))
    if getattr(weight, "transposed", False):  # some rows of it would be read with all others
        weight = weight[:]
    for start in range(0, n_out, n):
        where = slice(start, start + n)
        yield where, weight[where]


def as_floats(weight: Rows) -> Tensor:
    """The whole matrix in fp32. Raises IntegrityError where some of it are no numbers."""
    return numbers(weight[:]).float()


def to_half(weight: Tensor) -> Tensor:
    """float16, what is too large for it as the largest that it has, as the kernels do."""
    most = torch.finfo(torch.float16).max
    if weight.dtype == torch.bfloat16:  # which does not have this number
        weight = weight.float()
    return weight.clamp(-most, most).half()


def as_dtype(weight: Rows, dtype: torch.dtype) -> Tensor:
    """The whole matrix in `dtype`, one row after the other: (out, in)."""
    whole = torch.empty(tuple(weight.shape), dtype=dtype)
    for where, part in parts(weight, 4):
        whole[where] = part
    return whole


def numbers(values: Tensor) -> Tensor:
    """`values`; raises IntegrityError where some are NaN or infinite, which rounding would hide."""
    if not all(bound.isfinite() for bound in values.aminmax()):
        raise IntegrityError(
            "The model's weights are not numbers (NaN or infinite).", "They are damaged."
        )
    return values


def to_int8(weight: Rows, most: int = 127) -> tuple[Tensor, Tensor]:
    """Integers (out, in) from -most to most and a scale (out,) with weight = integers * scale."""
    values = torch.empty(tuple(weight.shape), dtype=torch.int8)
    scale = torch.empty(len(values))
    for where, part in parts(weight, 4):
        low, high = part.aminmax(dim=1)
        scale[where] = numbers(torch.maximum(-low, high).float()).clamp(min=1e-12) / most
        values[where] = (part / scale[where, None]).round_()
    return values, scale


def to_int4(weight: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Integers (out, in) from 0 to 15, scales and minima (out, in / GROUP) of their groups."""
    groups = weight[:].float().unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=2)
    numbers(torch.maximum(-low, high))
    scale = ((high - low) / 15).clamp(min=1e-8)
    values = ((groups - low[..., None]) / scale[..., None]).round_().clamp_(0, 15)
    return values.flatten(1).int(), scale, low
