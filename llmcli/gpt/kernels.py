"""What this processor and this build of torch multiply fast with. Knows no layers."""

from __future__ import annotations

import os
import sys
from functools import cache

import torch


def has_fbgemm() -> bool:
    """Whether this processor and build of torch have the fast products with packed weights."""
    return "fbgemm" in torch.backends.quantized.supported_engines


@cache
def has_onednn() -> bool:
    """Whether this build of torch has oneDNN, and lets it be called by name."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def mkl_is_at_home() -> bool:
    """Whether torch multiplies with MKL, and on an Intel: on other processors that is slow."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            told = file.read(256)
    except OSError:  # not Linux
        told = os.environ.get("PROCESSOR_IDENTIFIER", "")  # as Windows has it
    return torch.backends.mkl.is_available() and "GenuineIntel" in told


@cache
def has_bfloat16_kernel() -> bool:
    """Whether oneDNN multiplies bfloat16 here, for which it wants AVX-512."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return has_onednn() and supported is not None and bool(supported())


@cache
def has_amx() -> bool:
    """Whether the processor has a unit for products of bfloat16 matrices."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def has_int4_kernel() -> bool:
    """Whether they multiply 4-bit weights at a speed worth having: written for AVX-512 and AVX2."""
    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX") and sys.platform != "win32"
    return fast and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")


def has_vnni() -> bool:
    """Whether 8-bit products are summed without saturation; else weights get 7 bits."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())
