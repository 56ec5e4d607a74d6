"""Weights in fewer bits: what a matrix becomes on its way from a file to a layer, part by part.

Sources: integers with a scale per output channel, arXiv:1806.08342 and arXiv:2208.07339; groups of
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


def floats(weight: Rows) -> Iterator[tuple[slice, Tensor]]:
    """The same rows in fp32, one after the other, where the next ones will be: they may be changed.

    New memory takes longer than to fill it. Of a transpose a compact copy is turned, since whole
    rows of the file lie so far apart that a processor's caches have one place for all of them.
    """
    room: Tensor | None = None
    for where, part in parts(weight, 4):
        if room is None or room.shape != part.shape:
            room = torch.empty(part.shape)
        transposed = part.stride(0) < part.stride(1)
        yield where, room.copy_(part.t().contiguous().t() if transposed else part)


def as_floats(weight: Rows) -> Tensor:
    """The whole matrix in fp32, one row after the other. Raises IntegrityError as `numbers`.

    If it lies so already it is no copy: a kernel that packs it may change what is too large for it.
    """
    whole = weight[:]
    ready = whole.dtype == torch.float32 and whole.is_contiguous()
    return numbers(whole if ready else as_dtype(weight, torch.float32))


def to_half(weight: Tensor) -> Tensor:
    """float16, what is too large for it as the largest that it has, as the kernels do."""
    if weight.dtype == torch.float16:
        return weight
    most = torch.finfo(torch.float16).max
    return weight.half().clamp_(-most, most)


def as_dtype(weight: Rows, dtype: torch.dtype) -> Tensor:
    """The whole matrix in `dtype`, one row after the other: (out, in)."""
    whole = torch.empty(tuple(weight.shape), dtype=dtype)
    for where, part in floats(weight):
        whole[where] = part
    return whole


def numbers(values: Tensor) -> Tensor:
    """`values`; raises IntegrityError where some are NaN or infinite, which rounding would hide."""
    # A sum is soon made, and finite unless one of them is not, or they are huge.
    finite = values.sum(dtype=torch.float32).isfinite()
    if not (finite or all(bound.isfinite() for bound in values.aminmax())):
        raise IntegrityError(
            "The model's weights are not numbers (NaN or infinite).", "They are damaged."
        )
    return values


def to_int8(weight: Rows, most: int = 127) -> tuple[Tensor, Tensor]:
    """Integers (out, in) from -most to most and a scale (out,) with weight = integers * scale."""
    values = torch.empty(tuple(weight.shape), dtype=torch.int8)
    scale = torch.empty(len(values))
    for where, part in floats(weight):
        low, high = part.amin(1), part.amax(1)  # by far faster than `aminmax` of each row
        scale[where] = numbers(torch.maximum(-low, high)).clamp(min=1e-12) / most
        values[where] = part.div_(scale[where, None]).round_()
    return values, scale


def to_int4(weight: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Integers (out, in) from 0 to 15, scales and minima (out, in / GROUP) of their groups."""
    n_out, n_in = weight.shape
    values = torch.empty(n_out, n_in, dtype=torch.int32)
    scale, minimum = torch.empty(n_out, n_in // GROUP), torch.empty(n_out, n_in // GROUP)
    for where, part in floats(weight):
        groups = part.unflatten(1, (-1, GROUP))
        low, high = groups.amin(2), groups.amax(2)
        numbers(torch.maximum(-low, high))
        scale[where] = ((high - low) / 15).clamp(min=1e-8)
        minimum[where] = low
        groups.sub_(low[..., None]).div_(scale[where, :, None]).round_().clamp_(0, 15)
        values[where] = part
    return values, scale, minimum
