"""How a linear layer stores its weights and multiplies: all in which the modes of a model differ.

Each layer here maps x (..., T, in) to x W^T + b (..., T, out) like `nn.Linear`, computes in x's
dtype as far as its kernel does, and has `weight` (out, in), whatever it stores. One row of x, a
decode step, waits for the bytes of W: what reads fewer of them is faster. Knows no model, no files.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.gpt.kernels import has_amx, has_onednn, has_vnni, mkl_is_at_home
from llmcli.gpt.rounding import (
    GROUP,
    Rows,
    as_dtype,
    as_floats,
    numbers,
    parts,
    to_half,
    to_int4,
    to_int8,
)

# Bound once: to find an operator by its name takes as long as a small one does.
SERIAL_HALF_PRODUCT = torch.fbgemm_linear_fp16_weight_fp32_activation
INT8_PRODUCT = torch.fbgemm_linear_int8_weight_fp32_activation
INT4_PRODUCT: Any = getattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", None)

SCRIPTING = Lock()  # layers are made side by side
COARSE = ("bfloat16", "int8", "int4")  # storages whose layers return what is right to 8 bits
LARGE = 1 << 18  # weights of one matrix
ROWS = 32  # of x that oneDNN orders weights for
ROWS_AT_ONCE = 256  # with AMX and two threads oneDNN takes twice as long for each of some 450


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def scripted_onednn() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The same, as it can become part of a script; its empty list stands in the way of tracing."""
    return scripted(onednn)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, n_weights: int) -> Tensor:
    """x W^T + b, by whom it is fastest; `n_weights` is a number while `weight.numel()` is traced.

    oneDNN multiplies large float32 matrices up to 2.7 times as fast as what torch would call, MKL,
    does on an AMD; small ones, and on one thread a single row, MKL. On an Intel MKL is as fast with
    all, and twice as fast with a transpose.
    """
    known = has_onednn() and x.dtype == torch.float32 and x.device.type == "cpu"
    large = n_weights >= LARGE and torch.get_num_threads() > 1
    if not (known and large) or mkl_is_at_home() or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return (scripted_onednn() if torch.jit.is_tracing() else onednn)(x, weight, bias)


class Linear(nn.Linear):
    """Weights in what is computed in, as a file may have them; of a mapped one they stay mapped."""

    @property
    def storage(self) -> str:
        """How the weights are stored, by the name of their dtype, or "int8" or "int4"."""
        return str(self.weight.dtype).removeprefix("torch.")

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias, self.in_features * self.out_features)


class OrderedLinear(nn.Module):
    """Weights in oneDNN's own order: as they are, each call of several rows orders them anew."""

    storage: ClassVar[str] = "float32"
    dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else frozen(bias.to(self.dtype))
        self.packed = torch.ops.mkldnn._reorder_linear_weight(as_dtype(weight, self.dtype), ROWS)
        self.product = scripted(OrderedProduct(self.packed, self.bias))

    @property
    def weight(self) -> Tensor:
        """The stored weights: (out, in)."""
        return self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class BFloat16Linear(OrderedLinear):
    storage = "bfloat16"
    dtype = torch.bfloat16


class OrderedProduct(nn.Module):
    """x W^T + b with ordered weights; a script can ask for the size of x, a trace cannot."""

    def __init__(self, packed: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed, self.bias = packed, bias
        several = packed.dtype == torch.bfloat16 and has_amx() and torch.get_num_threads() > 1
        self.at_once = ROWS_AT_ONCE if several else sys.maxsize

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if rows.size(0) <= self.at_once:
            return onednn(x, self.packed, self.bias)
        parts = [onednn(part, self.packed, self.bias) for part in rows.split(self.at_once)]
        return torch.cat(parts).unflatten(0, x.shape[:-1])


class PlainBFloat16Linear(nn.Module):
    """The weights of `BFloat16Linear` without its kernel: one row as it is, more by parts in fp32.

    A processor without AVX-512 multiplies two bfloat16 matrices forty times slower than float32.
    """

    storage: ClassVar[str] = "bfloat16"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = frozen(as_dtype(weight, torch.bfloat16))
        self.bias = None if bias is None else frozen(bias.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            return F.linear(x, self.weight, self.bias)
        return by_parts(x.float(), self.weight, self.bias).to(x.dtype)


class HalfLinear(nn.Module):
    """Weights in float16, everything else in fp32: the numbers of the file, if it has them so."""

    storage: ClassVar[str] = "float16"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else frozen(bias.float())
        self.packed = torch.ops.quantized.linear_prepack_fp16(as_floats(weight), self.bias)
        self.product = scripted(HalfProduct(self.packed))

    @property
    def weight(self) -> Tensor:
        """The stored weights: (out, in), fp32."""
        return torch.ops.quantized.linear_unpack_fp16(self.packed)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class HalfProduct(nn.Module):
    """x W^T + b with packed weights.

    Torch takes 10 microseconds to find in a Python object the weights that it wraps, for all layers
    a twelfth of a decode step; in a script they are found once.
    """

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class SerialHalfLinear(nn.Module):
    """`HalfLinear` for one thread: its kernel knows no threads, and is handed a tensor at once."""

    storage: ClassVar[str] = "float16"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        self.n_out, self.n_in = weight.shape
        self.bias = None if bias is None else frozen(bias.float())
        self.added = torch.zeros(self.n_out) if self.bias is None else self.bias
        self.packed = torch.fbgemm_pack_gemm_matrix_fp16(as_floats(weight))
        self(torch.zeros(1, self.n_in))  # the kernel's one warning comes here

    @property
    def weight(self) -> Tensor:
        """The stored weights: (out, in), fp32."""
        nothing = torch.zeros(self.n_out)
        return SERIAL_HALF_PRODUCT(torch.eye(self.n_in), self.packed, nothing).t()

    def forward(self, x: Tensor) -> Tensor:
        return SERIAL_HALF_PRODUCT(x, self.packed, self.added)


class PlainHalfLinear(nn.Module):
    """The weights of `HalfLinear` without its kernel: one row as it is, more converted in parts.

    A processor multiplies a float16 matrix by one vector as fast as it reads it, and two matrices
    very slowly. The vector and the product are then rounded to float16, too.
    """

    storage: ClassVar[str] = "float16"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = frozen(to_half(numbers(weight[:])).contiguous())
        self.bias = None if bias is None else frozen(bias.half())

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            return F.linear(to_half(x), self.weight, self.bias).to(x.dtype)
        return by_parts(x, self.weight, self.bias)


class UnpackedHalfLinear(nn.Module):
    """`HalfLinear` until `packing.pack` makes it one, which takes a second for 124 M weights.

    The weights are where the file has them, rounded to float16 as they are read: for the rows of
    one prompt that takes longer, but by far less than to pack them.
    """

    storage: ClassVar[str] = "float16"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        self.source = weight
        self.bias = None if bias is None else frozen(bias.float())

    @property
    def weight(self) -> Tensor:
        """The stored weights: (out, in), fp32."""
        return to_half(self.source[:]).float()

    def forward(self, x: Tensor) -> Tensor:
        return by_parts(x, self.source, self.bias, lambda part: to_half(numbers(part)))


class Int8Linear(nn.Module):
    """Weights in 8 bits, one scale per output; each call quantises its x to 8 bits too.

    The kernel knows one scale for all weights: it is told 1, and what it returns is scaled after.
    Without VNNI a processor sums pairs of products in 16 bits, in which those of 7-bit weights fit.
    """

    storage: ClassVar[str] = "int8"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        values, scale = to_int8(weight, 127 if has_vnni() else 63)
        self.scale = frozen(scale)
        self.bias = None if bias is None else frozen(bias.float())
        self.added = torch.zeros_like(scale) if self.bias is None else self.bias / scale
        self.sums = torch.empty(len(values), dtype=torch.int32)
        for where, part in parts(values, 4):
            torch.sum(part, dim=1, dtype=torch.int32, out=self.sums[where])
        self.packed = torch.fbgemm_pack_quantized_matrix(values)
        self.shape = torch.empty(1, 1, dtype=torch.int8).expand(values.shape)  # all it needs now
        self(torch.zeros(1, weight.shape[1]))  # the kernel's one warning comes here

    @property
    def weight(self) -> Tensor:
        """The weights that the stored integers stand for: (out, in), fp32."""
        one_by_one = self._times(torch.eye(self.shape.shape[1]), torch.zeros_like(self.scale))
        return one_by_one.mul_(self.scale).t()

    def _times(self, x: Tensor, bias: Tensor) -> Tensor:
        return INT8_PRODUCT(x, self.shape, self.packed, self.sums, 1.0, 0, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._times(x, self.added).mul_(self.scale)


class PlainInt8Linear(nn.Module):
    """The weights of `Int8Linear`, multiplied without its kernel: converted, a part at a time."""

    storage: ClassVar[str] = "int8"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        values, scale = to_int8(weight)
        self.values, self.scale = frozen(values), frozen(scale)
        self.bias = None if bias is None else frozen(bias.float())

    @property
    def weight(self) -> Tensor:
        return self.values * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        y = by_parts(x, self.values, None) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class Int4Linear(nn.Module):
    """Weights in 4 bits, with a scale and a minimum for every GROUP of a row; x in bfloat16."""

    storage: ClassVar[str] = "int4"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        values, scale, minimum = to_int4(weight)
        middle = minimum + 8 * scale  # the kernel computes (value - 8) * scale + middle
        self.scales = frozen(torch.stack([scale.t(), middle.t()], dim=-1).bfloat16().contiguous())
        self.packed = frozen(torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1))
        self.bias = None if bias is None else frozen(bias.float())
        self.in_features = weight.shape[1]

    @property
    def weight(self) -> Tensor:
        """The weights that the stored integers stand for: (out, in), as the kernel has them."""
        return self._times(torch.eye(self.in_features, dtype=torch.bfloat16)).t().float()

    def _times(self, rows: Tensor) -> Tensor:
        return INT4_PRODUCT(rows, self.packed, GROUP, self.scales)

    def forward(self, x: Tensor) -> Tensor:
        y = self._times(x.reshape(-1, x.shape[-1]).bfloat16()).view(*x.shape[:-1], -1)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class PlainInt4Linear(nn.Module):
    """The weights of `Int4Linear` without its kernel: two to a byte, converted at each call."""

    storage: ClassVar[str] = "int4"

    def __init__(self, weight: Rows, bias: Tensor | None) -> None:
        super().__init__()
        values, scale, minimum = to_int4(weight)
        self.pairs = frozen((values[:, ::2] << 4 | values[:, 1::2]).to(torch.uint8))
        self.scale, self.minimum = frozen(scale.bfloat16()), frozen(minimum.bfloat16())
        self.bias = None if bias is None else frozen(bias.float())

    @property
    def weight(self) -> Tensor:
        values = torch.stack([self.pairs >> 4, self.pairs & 15], dim=-1)  # (out, in / 2, 2)
        groups = values.view(*self.scale.shape, GROUP)
        return (groups * self.scale[..., None].float() + self.minimum[..., None]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight, self.bias).to(x.dtype)


def by_parts(
    x: Tensor,
    weight: Rows,
    bias: Tensor | None,
    rounded: Callable[[Tensor], Tensor] = lambda w: w,
) -> Tensor:
    """x W^T + b with W (out, in) `rounded` and converted to x's dtype, some rows at a time."""
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    w: Tensor | None = None  # for each part in turn: new memory takes longer than to fill it
    for where, part in parts(weight, x.element_size()):
        if w is None or w.shape != part.shape or torch.is_grad_enabled():
            w = torch.empty_like(part, dtype=x.dtype)
        w.copy_(rounded(part))
        b = None if bias is None else bias[where].to(x.dtype)
        y[..., where] = product(x, w, b, w.numel())
    return y


def scripted(function: Any) -> Any:
    """A function or module as a script. Torch will drop them one day: then it is as it was."""
    with SCRIPTING, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.script(function)
        except (OSError, RuntimeError, TypeError, AttributeError):
            return function


def frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
