"""Which tensor of a checkpoint is which parameter of ours, one table per family; no torch.

Every tensor in the file is used or named as ignored, every parameter is there in its shape, or one
error lists what does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llmcli.checkpoint import TensorInfo
from llmcli.config import ModelConfig
from llmcli.errors import IntegrityError, UnsupportedModelError, shown, shown_path

DTYPES = ("F32", "F16", "BF16")  # as a parameter may be stored


class Source(NamedTuple):
    """Where a tensor of a file goes: our parameter; the shape it has there, stored (in, out)?"""

    name: str
    shape: str  # of `sizes`
    transposed: bool = False


class Place(NamedTuple):
    """Where a parameter lies, and whether as (in, out)."""

    info: TensorInfo
    transposed: bool


# GPT-2 as Hugging Face stores it; `{}` is the layer. None: known and ignored.
GPT2: dict[str, Source | None] = {
    "wte.weight": Source("token_embedding.weight", "V C"),
    "wpe.weight": Source("position_embedding.weight", "n_ctx C"),
    "h.{}.ln_1.weight": Source("blocks.{}.norm_1.weight", "C"),
    "h.{}.ln_1.bias": Source("blocks.{}.norm_1.bias", "C"),
    "h.{}.attn.c_attn.weight": Source("blocks.{}.attn.qkv.weight", "C 3C", transposed=True),
    "h.{}.attn.c_attn.bias": Source("blocks.{}.attn.qkv.bias", "3C"),
    "h.{}.attn.c_proj.weight": Source("blocks.{}.attn.out.weight", "C C", transposed=True),
    "h.{}.attn.c_proj.bias": Source("blocks.{}.attn.out.bias", "C"),
    "h.{}.ln_2.weight": Source("blocks.{}.norm_2.weight", "C"),
    "h.{}.ln_2.bias": Source("blocks.{}.norm_2.bias", "C"),
    "h.{}.mlp.c_fc.weight": Source("blocks.{}.mlp.up.weight", "C M", transposed=True),
    "h.{}.mlp.c_fc.bias": Source("blocks.{}.mlp.up.bias", "M"),
    "h.{}.mlp.c_proj.weight": Source("blocks.{}.mlp.down.weight", "M C", transposed=True),
    "h.{}.mlp.c_proj.bias": Source("blocks.{}.mlp.down.bias", "C"),
    "ln_f.weight": Source("norm_f.weight", "C"),
    "ln_f.bias": Source("norm_f.bias", "C"),
    "lm_head.weight": Source("head.weight", "V C"),
    "h.{}.attn.bias": None,  # the causal mask, stored by old versions
    "h.{}.attn.masked_bias": None,
}
EMBEDDING, HEAD = "wte.weight", "lm_head.weight"
PREFIX = "transformer."  # with it or without: both are in use


def match(folder: Path, infos: Mapping[str, TensorInfo], config: ModelConfig) -> dict[str, Place]:
    """Where each parameter of ours lies, by its name; all that does not fit goes into one error."""
    shapes = _shapes(config)
    found: dict[str, Place] = {}
    wrong: list[str] = []
    named = [(info.name.removeprefix(PREFIX), info) for info in infos.values()]
    if config.tie_embeddings:
        named = _tied(named)
    for name, info in named:
        told = shown(info.name)
        pattern, layer = pattern_of(name)
        source = GPT2.get(pattern)
        if source is None:
            wrong += [] if pattern in GPT2 else [f"unknown {told}"]
        elif name not in shapes:
            wrong.append(f"{told} is beyond the config's {config.n_layer} layers")
        elif (ours := source.name.format(layer)) in found:
            wrong.append(f"{told} comes twice")
        elif info.shape != shapes[name]:
            wrong.append(f"{told} is {list(info.shape)}, the config says {list(shapes[name])}")
        elif info.dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{told} is stored as {info.dtype}.", f"Supported: {', '.join(DTYPES)}."
            )
        else:
            found[ours] = Place(info, source.transposed)
    wrong += [f"missing {name}" for name in sorted(shapes.keys() - {name for name, _ in named})]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise IntegrityError(
            f"The weights in {shown_path(folder)} do not fit its config.json: "
            f"{'; '.join(wrong[:8])}{more}.",
            "Get the model again, or correct config.json.",
        )
    return found


def _tied(named: list[tuple[str, TensorInfo]]) -> list[tuple[str, TensorInfo]]:
    """The same with one tensor for embedding and head: a file holds both, or either."""
    if any(name == EMBEDDING for name, _ in named):
        return [(name, info) for name, info in named if name != HEAD]
    return [(EMBEDDING if name == HEAD else name, info) for name, info in named]


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that the model has, by its name in the file."""
    C = config.n_embd
    sizes = {"V": config.vocab_size, "n_ctx": config.n_ctx, "C": C, "3C": 3 * C,
             "M": config.mlp_dim}  # fmt: skip
    return {
        pattern.format(layer): tuple(sizes[size] for size in source.shape.split())
        for pattern, source in GPT2.items()
        if source and not (config.tie_embeddings and pattern == HEAD)
        for layer in range(config.n_layer if "{}" in pattern else 1)
    }


def pattern_of(name: str) -> tuple[str, str]:
    """A name with `{}` for its layer, and the layer: "h.3.ln_1.bias" -> "h.{}.ln_1.bias", "3"."""
    layer = re.search(r"(?<=\.)(0|[1-9]\d*)(?=\.)", name)
    return (name[: layer.start()] + "{}" + name[layer.end() :], layer[0]) if layer else (name, "")
