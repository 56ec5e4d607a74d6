"""Which layer of `linear` stores a model's weights on this machine, and how they are all made."""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from llmcli.gpt.kernels import has_bfloat16_kernel, has_fbgemm, has_int4_kernel, has_onednn
from llmcli.gpt.linear import (
    BFloat16Linear,
    HalfLinear,
    Int4Linear,
    Int8Linear,
    OrderedLinear,
    PlainBFloat16Linear,
    PlainHalfLinear,
    PlainInt4Linear,
    PlainInt8Linear,
    SerialHalfLinear,
    UnpackedHalfLinear,
)
from llmcli.gpt.rounding import GROUP, Rows

MANY = 8  # rows of a step that pay for ordering float32 weights, which takes some 30 steps' gain

Make = Callable[[Rows, "Tensor | None"], nn.Module]


def packs(storage: str, rows: int) -> bool:
    """Whether on a CPU layers store such weights in a way of their own, for steps of `rows` rows.

    float32 stays as the file has it, mapped, unless there are many rows.
    """
    return storage != "float32" or (rows >= MANY and has_onednn() and torch.get_num_threads() > 1)


def maker(storage: str, shape: Sequence[int], unpacked: bool = False) -> Make:
    """What stores weights of `shape` (out, in) so: the plain and slow layer if it must be.

    A shape that the kernel for 4 bits does not take is stored in 8. `unpacked` puts off what takes
    long and can be done later, by `pack`.
    """
    if storage == "int4" and (shape[0] % 16 or shape[1] % GROUP):
        storage = "int8"
    half: Make = SerialHalfLinear if torch.get_num_threads() == 1 else HalfLinear
    if unpacked:
        half = UnpackedHalfLinear
    kinds: dict[str, Make] = {
        "float32": OrderedLinear,
        "bfloat16": BFloat16Linear if has_bfloat16_kernel() else PlainBFloat16Linear,
        "float16": half if has_fbgemm() else PlainHalfLinear,
        "int8": Int8Linear if has_fbgemm() else PlainInt8Linear,
        "int4": Int4Linear if has_int4_kernel() else PlainInt4Linear,
    }
    return kinds[storage]


def missing_kernel(storage: str) -> str | None:
    """What is missing on this machine to multiply such weights fast; None: nothing is."""
    there = {"float16": has_fbgemm, "int8": has_fbgemm, "int4": has_int4_kernel}
    if storage not in there or there[storage]():
        return None
    cost = "a token at a time is rounded to it" if storage == "float16" else "slower, the same"
    return f"This processor, or build of torch, has no kernel for {storage}: {cost}."


def pack(model: nn.Module) -> None:
    """Pack the layers that were left unpacked, if there are any."""
    layers = model.named_modules()
    waiting = [(name, layer) for name, layer in layers if isinstance(layer, UnpackedHalfLinear)]
    waiting.sort(key=lambda named: -math.prod(named[1].source.shape))
    replace(model, {name: partial(_packed, layer) for name, layer in waiting})


def _packed(layer: UnpackedHalfLinear) -> nn.Module:
    return maker(layer.storage, layer.source.shape)(layer.source, layer.bias)


def replace(model: nn.Module, making: Mapping[str, Callable[[], nn.Module]]) -> None:
    """Put what is made into the places named, as many at once as torch has threads.

    The largest should come first: the others are made beside it.
    """
    jobs = list(making.items())[::-1]

    def work() -> None:
        while jobs:
            try:
                name, make = jobs.pop()
            except IndexError:  # somebody else took the last
                return
            layer = make()
            _trim()
            model.set_submodule(name, layer)

    helpers = torch.get_num_threads() - 1
    with for_fbgemm(), ThreadPoolExecutor(max(1, helpers)) as pool:
        helping = [pool.submit(work) for _ in range(helpers)]
        try:
            work()  # here, too: a signal ends work better than it ends waiting for others
        finally:
            jobs.clear()
        for helper in helping:
            helper.result()


def _trim() -> None:
    """Give the system what was freed: glibc keeps holes between what stays, 280 MB on 124 M."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def for_fbgemm() -> Iterator[None]:
    """While layers are made: packed for fbgemm, of which each packed weight remembers that it is.

    Its kernels warn once, when they are first called: a layer calls its own while it is made. That
    weights too large for float16 become its largest is as it is everywhere (`rounding.to_half`).
    These operators are announced to leave torch one day; the range in pyproject has them.
    """
    before = torch.backends.quantized.engine
    if has_fbgemm():
        torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fbgemm_|FOUND weight out of range", UserWarning)
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            yield
    finally:
        torch.backends.quantized.engine = before
