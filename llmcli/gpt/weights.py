"""Checkpoint names -> our names, one table per family; weights are mapped, not copied.

Every tensor in the file is used or named as ignored, every parameter is filled, or one error lists
what does not fit. Pickle is never loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from llmcli.checkpoint import TensorInfo, read_checkpoint
from llmcli.config import ModelConfig
from llmcli.errors import IntegrityError, UnsupportedModelError
from llmcli.gpt.model import GPT


class Source(NamedTuple):
    """Where a tensor of a file goes: our parameter, and whether it is stored (in, out)."""

    name: str
    transposed: bool = False


# GPT-2 as Hugging Face stores it; `{}` is the layer. None: known and ignored.
GPT2: dict[str, Source | None] = {
    "wte.weight": Source("token_embedding.weight"),
    "wpe.weight": Source("position_embedding.weight"),
    "h.{}.ln_1.weight": Source("blocks.{}.norm_1.weight"),
    "h.{}.ln_1.bias": Source("blocks.{}.norm_1.bias"),
    "h.{}.attn.c_attn.weight": Source("blocks.{}.attn.qkv.weight", transposed=True),
    "h.{}.attn.c_attn.bias": Source("blocks.{}.attn.qkv.bias"),
    "h.{}.attn.c_proj.weight": Source("blocks.{}.attn.out.weight", transposed=True),
    "h.{}.attn.c_proj.bias": Source("blocks.{}.attn.out.bias"),
    "h.{}.ln_2.weight": Source("blocks.{}.norm_2.weight"),
    "h.{}.ln_2.bias": Source("blocks.{}.norm_2.bias"),
    "h.{}.mlp.c_fc.weight": Source("blocks.{}.mlp.up.weight", transposed=True),
    "h.{}.mlp.c_fc.bias": Source("blocks.{}.mlp.up.bias"),
    "h.{}.mlp.c_proj.weight": Source("blocks.{}.mlp.down.weight", transposed=True),
    "h.{}.mlp.c_proj.bias": Source("blocks.{}.mlp.down.bias"),
    "ln_f.weight": Source("norm_f.weight"),
    "ln_f.bias": Source("norm_f.bias"),
    "lm_head.weight": Source("head.weight"),
    "h.{}.attn.bias": None,  # the causal mask, stored by old versions
    "h.{}.attn.masked_bias": None,
}


def to_checkpoint(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters under the names, and in the layout, of a Hugging Face GPT-2 file."""
    theirs = {source.name: (name, source) for name, source in GPT2.items() if source}
    out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer = re.search(r"\.(\d+)\.", name)
        pattern = name.replace(layer[0], ".{}.") if layer else name
        their_name, source = theirs[pattern]
        prefix = "" if pattern == "head.weight" else "transformer."
        key = prefix + their_name.format(layer[1] if layer else "")
        out[key] = weight.t() if source.transposed else weight
    return out
