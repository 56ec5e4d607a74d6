"""Checkpoint names -> our names, one table per family; weights are mapped, not copied.

Every tensor in the file is used or named as ignored, every parameter is filled, or one error lists
what does not fit. Pickle is never loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from llmcli.checkpoint import TensorInfo, read_checkpoint
from llmcli.config import ModelConfig
from llmcli.errors import IntegrityError, UnsupportedModelError, shown, shown_path
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
THEIRS = {source.name: name for name, source in GPT2.items() if source}
PREFIX = "transformer."  # with it or without: both are in use


DTYPES = ("F32", "F16", "BF16")


def load_model(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> GPT:
    """The model in `folder`, weights in `dtype`; those that the file has so stay memory-mapped.

    Raises IntegrityError where the file and the config contradict each other.
    """
    with torch.device("meta"):
        model = GPT(config)
    sources = _match(folder, read_checkpoint(folder), model)
    files: dict[Path, list[tuple[str, TensorInfo, bool]]] = {}
    for name, (info, transposed) in sources.items():
        files.setdefault(info.file, []).append((name, info, transposed))
    weights: dict[str, Tensor] = {}
    for file, entries in files.items():
        with safe_open(file, framework="pt") as stored:
            for name, info, transposed in entries:
                weight = stored.get_tensor(info.name).to(device, dtype)
                weights[name] = weight.t() if transposed else weight
    model.load_state_dict(weights, strict=False, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.token_embedding.weight
    return model.eval().requires_grad_(False)


def _match(
    folder: Path, infos: Mapping[str, TensorInfo], model: GPT
) -> dict[str, tuple[TensorInfo, bool]]:
    """Which tensor fills which parameter of ours; all that does not fit goes into one error."""
    expected = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    found: dict[str, tuple[TensorInfo, bool]] = {}
    wrong: list[str] = []
    for their_name, info in infos.items():
        told = shown(their_name)
        known, source = _source(their_name)
        if not known:
            wrong.append(f"unknown {told}")
        if source is None or (source.name == "head.weight" and model.config.tie_embeddings):
            continue
        shape = info.shape[::-1] if source.transposed else info.shape
        if source.name not in expected:
            wrong.append(f"{told} is beyond the config's {model.config.n_layer} layers")
        elif source.name in found:
            wrong.append(f"{told} comes twice")
        elif shape != expected[source.name]:
            want = expected[source.name][::-1] if source.transposed else expected[source.name]
            wrong.append(f"{told} is {list(info.shape)}, the config says {list(want)}")
        elif info.dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{told} is stored as {info.dtype}.", f"Supported: {', '.join(DTYPES)}."
            )
        else:
            found[source.name] = (info, source.transposed)
    missing = {_their_name(name) for name in expected} - {
        i.name.removeprefix(PREFIX) for i in infos.values()
    }
    wrong += [f"missing {name}" for name in sorted(missing)]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise IntegrityError(
            f"The weights in {shown_path(folder)} do not fit its config.json: "
            f"{'; '.join(wrong[:8])}{more}.",
            "Get the model again, or correct config.json.",
        )
    return found


def to_checkpoint(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters under the names, and in the layout, of a Hugging Face GPT-2 file."""
    out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        their_name = _their_name(name)
        prefix = "" if name == "head.weight" else PREFIX
        source = GPT2[_pattern(their_name)[0]]
        out[prefix + their_name] = weight.t() if source and source.transposed else weight
    return out


def _source(their_name: str) -> tuple[bool, Source | None]:
    """Whether the name is known, and where its tensor goes (None: ignored)."""
    pattern, layer = _pattern(their_name.removeprefix(PREFIX))
    source = GPT2.get(pattern)
    if source is not None:
        source = Source(source.name.format(layer), source.transposed)
    return pattern in GPT2, source


def _pattern(name: str) -> tuple[str, str]:
    """A name with `{}` for its layer, and the layer: "h.3.ln_1.bias" -> "h.{}.ln_1.bias", "3"."""
    layer = re.search(r"(?<=\.)(0|[1-9]\d*)(?=\.)", name)
    return (name[: layer.start()] + "{}" + name[layer.end() :], layer[0]) if layer else (name, "")


def _their_name(name: str) -> str:
    pattern, layer = _pattern(name)
    return THEIRS[pattern].format(layer)
