"""A model as its files describe it: sizes, parameters, memory, arithmetic. Imports no torch.

Parameters are those of the safetensors header; what a forward costs is derived from the config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar

from llmcli.checkpoint import TensorInfo, read_checkpoint
from llmcli.config import ModelConfig, read_config
from llmcli.inspection.values import View
from llmcli.parameters import match

READING_ORDER = (
    "transformer model wte wpe embed_tokens h layers ln_1 input_layernorm attn self_attn ln_2 "
    "post_attention_layernorm mlp ln_f norm lm_head"
).split()


@dataclass(frozen=True, slots=True)
class Module:
    """A tensor, or a group of them that every layer repeats; `name` is the file's own."""

    name: str  # "h.{}.attn.c_attn.weight": {} is the layer
    depth: int
    shape: tuple[int, ...]  # () for a group
    copies: int  # how many layers have it
    parameters: int  # of all copies
    share: float


@dataclass(frozen=True, slots=True)
class Model(View):
    """What a model is, before any of its numbers is read."""

    name: ClassVar[str] = "model"

    model: str
    folder: str
    family: str
    revision: str  # "" where the folder does not say
    stored_dtype: str
    vocab_size: int
    n_ctx: int
    n_layer: int
    n_head: int
    head_dim: int
    n_embd: int
    mlp_dim: int
    activation: str
    tie_embeddings: bool
    parameters: int
    weights_nbytes: int  # as stored
    fp32_nbytes: int  # as `inspect` loads them
    kv_nbytes_per_token: int  # in fp32
    kv_nbytes_full: int
    flops_first_token: int
    flops_last_token: int  # with the context full
    modules: tuple[Module, ...]
    notes: tuple[str, ...]


def view(folder: Path, name: str, revision: str | None = None) -> Model:
    """The model in `folder`, called `name` by the user; reads two small files and a header."""
    config = read_config(folder)
    infos = [place.info for place in match(folder, read_checkpoint(folder), config).values()]
    total = config.n_parameters
    dtypes = sorted({info.dtype for info in infos})
    kv = config.kv_nbytes(4)
    return Model(
        model=name,
        folder=str(folder),
        family=json.loads((folder / "config.json").read_bytes())["model_type"],
        revision=revision or "",
        stored_dtype=", ".join(dtypes),
        vocab_size=config.vocab_size,
        n_ctx=config.n_ctx,
        n_layer=config.n_layer,
        n_head=config.n_head,
        head_dim=config.head_dim,
        n_embd=config.n_embd,
        mlp_dim=config.mlp_dim,
        activation=config.activation,
        tie_embeddings=config.tie_embeddings,
        parameters=total,
        weights_nbytes=sum(info.nbytes for info in infos),
        fp32_nbytes=4 * total,
        kv_nbytes_per_token=kv,
        kv_nbytes_full=kv * config.n_ctx,
        flops_first_token=flops(config, 1),
        flops_last_token=flops(config, config.n_ctx),
        modules=tuple(_modules(infos, total)),
        notes=_notes(config),
    )


def flops(config: ModelConfig, seen: int) -> int:
    """Floating-point operations of one new token that sees `seen` tokens.

    Two for each weight of a matrix product, two for each number of each key and value seen:
    2 N + 4 L S H D. Norms, softmax and activations, below 1 %, are left out.
    """
    return round(block_flops(config, seen)) + 2 * config.n_embd * config.vocab_size


def block_flops(config: ModelConfig, seen: float) -> float:
    """The same without the output head; `seen` may be a mean."""
    width = config.n_head * config.head_dim
    block = 4 * config.n_embd * width + 2 * config.n_embd * config.mlp_dim
    return config.n_layer * (2 * block + 4 * seen * width)


def text_flops(config: ModelConfig, length: int) -> float:
    """Those of all blocks for a text of `length` tokens, of which each sees those before it."""
    return length * block_flops(config, (length + 1) / 2)


def _modules(infos: Iterable[TensorInfo], total: int) -> list[Module]:
    """The tree of tensors in depth-first order, layers folded into one; groups carry sums."""
    sizes: dict[tuple[str, ...], int] = {}
    copies: dict[tuple[str, ...], set[str]] = {}
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {}
    for info in sorted(infos, key=lambda info: (str(info.file), info.start)):
        layer = re.search(r"(?<=\.)\d+(?=\.)", info.name)
        path = tuple(re.sub(r"(?<=\.)\d+(?=\.)", "{}", info.name, count=1).split("."))
        shapes[path] = info.shape
        for depth in range(1, len(path) + 1):
            sizes[path[:depth]] = sizes.get(path[:depth], 0) + prod(info.shape)
            held = copies.setdefault(path[:depth], set())
            if "{}" in path[:depth] and layer:
                held.add(layer[0])
    root = next(iter(sizes))
    drop = 1 if len(root) == 1 and sizes[root] == total and root not in shapes else 0
    return [
        Module(
            name=".".join(path),
            depth=len(path) - 1 - drop,
            shape=shapes.get(path, ()),
            copies=max(1, len(copies[path])),
            parameters=sizes[path],
            share=sizes[path] / total if total else 0.0,
        )
        for path in _in_order(sizes)
        if len(path) > drop
    ]


def _in_order(paths: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Depth first; siblings as the forward meets them, then as they came."""
    children: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in paths:
        children.setdefault(path[:-1], []).append(path)

    def place(path: tuple[str, ...]) -> int:
        return READING_ORDER.index(path[-1]) if path[-1] in READING_ORDER else 99

    def walk(path: tuple[str, ...]) -> list[tuple[str, ...]]:
        ordered = sorted(children.get(path, []), key=place)
        return [p for child in ordered for p in [child, *walk(child)]]

    return walk(())


def _notes(config: ModelConfig) -> tuple[str, ...]:
    tied = "The output head is the token embedding, counted once. " if config.tie_embeddings else ""
    return (
        f"{tied}Parameters and bytes are measured in the file's header.",
        "derived: the KV cache in float32; FLOPs, 2 per weight of a matrix product and 4 per "
        "dimension of each token attended to.",
    )
