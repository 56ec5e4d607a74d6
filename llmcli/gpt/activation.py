"""The activation functions of the feed-forward network, each position and feature by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# gelu_tanh(x) = x (1 + tanh u) / 2 = x sigmoid(2 u), and 2 u = x (SLOPE + CUBE x^2).
SLOPE = 2 * (2 / torch.pi) ** 0.5
CUBE = 0.044715 * SLOPE
SOME = 1 << 15  # values that pay for four operators in place of one
AT_ONCE = 1 << 17  # values: what the processor's caches hold


def gelu_tanh(x: Tensor) -> Tensor:
    """x times the normal distribution's share below x, nearly: arXiv:1606.08415, section 2.

    Torch's own takes a CPU up to four times as long, most of it for the tanh: the many values of a
    prompt (..., T, M) are computed here, in fp32 whatever x is in, to the same 5e-7. One token of
    each row is left to torch, however many rows: as the script of a decode step has it.
    """
    here = x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.jit.is_tracing()
    if not here or x.dim() < 2 or x.shape[-2] == 1 or x.numel() < SOME:
        return F.gelu(x, approximate="tanh")
    slope = torch.tensor(SLOPE)
    flat = x.reshape(-1)
    y = torch.empty_like(flat)
    for given, out in zip(flat.split(AT_ONCE), y.split(AT_ONCE), strict=True):
        part = given.float()
        share = torch.addcmul(slope, part, part, value=CUBE).mul_(part).sigmoid_()
        torch.mul(part, share, out=out)
    return y.view(x.shape)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
