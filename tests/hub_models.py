"""Tiny random models as repositories of the hub hold them: names to bytes."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from safetensors.numpy import save

from llmcli.tokenizer_file import ALPHABET


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".h5", ".msgpack", ".onnx"))


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def byte_tokenizer() -> bytes:
    """A tokenizer.json of the 256 bytes and <|endoftext|>, without a merge."""
    vocab = {char: i for i, char in enumerate(ALPHABET)} | {"<|endoftext|>": 256}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {"id": 256, "content": "<|endoftext|>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [special | flags],
        "pre_tokenizer": level,
        "decoder": level,
        "model": model,
    }
    return json.dumps(tokenizer).encode()


def tensors(n_layer: int = 2, n_embd: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """A random GPT-2's weights, in the layout of its checkpoints."""
    draw = np.random.default_rng(seed)
    shapes = {"wte.weight": (257, n_embd), "wpe.weight": (32, n_embd)}
    for i in range(n_layer):
        widths = {"attn.c_attn": 3, "attn.c_proj": 1, "mlp.c_fc": 4, "mlp.c_proj": 1}
        for part, width in widths.items():
            rows = 4 * n_embd if part == "mlp.c_proj" else n_embd
            shapes[f"h.{i}.{part}.weight"] = (rows, width * n_embd)
            shapes[f"h.{i}.{part}.bias"] = (width * n_embd,)
    norms = ["ln_f", *(f"h.{i}.ln_{j}" for i in range(n_layer) for j in (1, 2))]
    shapes |= {f"{norm}.{kind}": (n_embd,) for norm in norms for kind in ("weight", "bias")}
    return {name: draw.normal(0, 0.2, s).astype(np.float32) for name, s in shapes.items()}


def tiny_model(seed: int = 0, n_shards: int = 1, **sizes: int) -> dict[str, bytes]:
    """The files of a repository that holds a random GPT-2, and much that nobody needs."""
    weights = tensors(seed=seed, **sizes)
    config = {
        "model_type": "gpt2",
        "vocab_size": 257,
        "n_positions": 32,
        "n_embd": sizes.get("n_embd", 16),
        "n_layer": sizes.get("n_layer", 2),
        "n_head": 2,
        "eos_token_id": 256,
    }
    files = {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"do_sample": true, "temperature": 0.9}',
        "tokenizer.json": byte_tokenizer(),
        "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
        "README.md": b"# a model card",
        "pytorch_model.bin": b"\x80pickle" * 99,
        "flax_model.msgpack": b"flax" * 99,
        "tf_model.h5": b"tf" * 99,
        "onnx/decoder.onnx": b"onnx" * 99,
    }
    if n_shards == 1:
        return files | {"model.safetensors": save(weights)}
    names = sorted(weights)
    weight_map = {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        part = {name: weights[name] for name in names[i::n_shards]}
        weight_map |= dict.fromkeys(part, shard)
        files[shard] = save(part)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}
