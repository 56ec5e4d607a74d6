"""The models that the benchmarks run: one set of seeded weights, in each engine's own format.

A Hugging Face folder is written first; GGUF (llama.cpp) and ctranslate2's format are made from it.
What is there already is used again. Weights are random as GPT-2 starts its training (2019), but for
biases and norms, which are random too, so that an engine that drops one gives other text.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, architecture `gpt2`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

FABLE = Path(__file__).resolve().parents[1] / "llmcli" / "models" / "fable"


class Shape(NamedTuple):
    n_layer: int
    n_head: int
    n_embd: int


SHAPES = {"124m": Shape(12, 12, 768), "774m": Shape(36, 20, 1280), "1558m": Shape(48, 25, 1600)}
VOCAB_SIZE, N_CTX = 50257, 1024
EOT = "<|endoftext|>"
GGUF_KINDS = ("f16", "q8_0", "q4_0")

# A tensor of a Hugging Face GPT-2 without `transformer.` -> its name in a GGUF file.
GGUF_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "h.{}.ln_1": "blk.{}.attn_norm",
    "h.{}.attn.c_attn": "blk.{}.attn_qkv",
    "h.{}.attn.c_proj": "blk.{}.attn_output",
    "h.{}.ln_2": "blk.{}.ffn_norm",
    "h.{}.mlp.c_fc": "blk.{}.ffn_up",
    "h.{}.mlp.c_proj": "blk.{}.ffn_down",
}
WEIGHTS = "model.safetensors"
STORED_IN_OUT = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (in, out); GGUF: (out, in)


def gguf_name(name: str) -> str:
    """`transformer.h.3.attn.c_attn.bias` -> `blk.3.attn_qkv.bias`. KeyError: an unknown tensor."""
    stem, kind = name.removeprefix("transformer.").rsplit(".", 1)
    layer = re.match(r"h\.(\d+)\.", stem)
    if layer:
        stem = "h.{}." + stem[layer.end() :]
    return f"{GGUF_NAMES[stem].format(layer[1] if layer else '')}.{kind}"


def models_folder(given: Path | None) -> Path:
    """Where written models lie between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return given or cache / "llmcli-bench"


def hf_folder(shape: str, models: Path, seed: int = 0) -> Path:
    """The folder of a model: fable's own, or one of seeded random weights, written if missing."""
    if shape == "fable":
        return FABLE
    return made(models / f"gpt2-{shape}-{seed}", lambda out: write_hf(out, SHAPES[shape], seed))


def gguf_file(folder: Path, models: Path, kind: str) -> Path:
    """The model in `folder` as GGUF, `kind` one of GGUF_KINDS; written if missing or older."""
    path = models / f"{folder.name}-{kind}.gguf"
    return made(path, lambda out: write_gguf(folder, out, kind), folder / WEIGHTS)


def ctranslate2_folder(folder: Path, models: Path) -> Path:
    """The model in `folder` in ctranslate2's format, int8; written if missing or older."""
    path = models / f"{folder.name}-ct2-int8"
    return made(path, lambda out: write_ctranslate2(folder, out), folder / WEIGHTS)


def made(path: Path, write: Callable[[Path], object], source: Path | None = None) -> Path:
    """`path`, written under another name first: what is there is whole, and newer than `source`."""
    if path.exists() and source and path.stat().st_mtime < source.stat().st_mtime:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.rename(path)
    return path


# --- Hugging Face --------------------------------------------------------------------------------


def write_hf(out: Path, shape: Shape, seed: int) -> None:
    """A GPT-2 of seeded random weights in float32, with a tokenizer, as a Hugging Face folder."""
    from safetensors.torch import save_file

    out.mkdir(parents=True)
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": VOCAB_SIZE,
        "n_positions": N_CTX,
        "n_embd": shape.n_embd,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": VOCAB_SIZE - 1,
        "eos_token_id": VOCAB_SIZE - 1,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (out / "config.json").write_text(json.dumps(config))
    (out / "tokenizer.json").write_text(json.dumps(dummy_tokenizer()))
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}
    named |= {f"{kind}_token": EOT for kind in ("bos", "eos", "unk")}
    (out / "tokenizer_config.json").write_text(json.dumps(named))
    save_file(dict(random_weights(shape, seed)), out / "model.safetensors", {"format": "pt"})


def random_weights(shape: Shape, seed: int) -> Iterator[tuple[str, Any]]:
    """Each tensor of a GPT-2 by its Hugging Face name, from one generator."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    C = shape.n_embd
    residual = 0.02 / (2 * shape.n_layer) ** 0.5  # GPT-2 scales what is added to the stream so

    def normal(*size: int, std: float = 0.02, mean: float = 0.0) -> torch.Tensor:
        return torch.empty(size).normal_(mean, std, generator=generator)

    yield "transformer.wte.weight", normal(VOCAB_SIZE, C)
    yield "transformer.wpe.weight", normal(N_CTX, C)
    for layer in range(shape.n_layer):
        block = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            yield f"{block}.{norm}.weight", normal(C, mean=1.0)
            yield f"{block}.{norm}.bias", normal(C)
        for linear, size, std in (
            ("attn.c_attn", (C, 3 * C), 0.02),
            ("attn.c_proj", (C, C), residual),
            ("mlp.c_fc", (C, 4 * C), 0.02),
            ("mlp.c_proj", (4 * C, C), residual),
        ):
            yield f"{block}.{linear}.weight", normal(*size, std=std)
            yield f"{block}.{linear}.bias", normal(size[1])
    yield "transformer.ln_f.weight", normal(C, mean=1.0)
    yield "transformer.ln_f.bias", normal(C)


def dummy_tokenizer() -> dict[str, Any]:
    """A byte-level BPE of GPT-2's size: the bytes, 50,000 pairs of bytes, end-of-text."""
    letters = byte_letters()
    pairs = list(itertools.islice(itertools.product(letters, letters), VOCAB_SIZE - 257))
    tokens = [*letters, *(a + b for a, b in pairs), EOT]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": VOCAB_SIZE - 1, "content": EOT, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [list(pair) for pair in pairs],
        },
    }  # fmt: skip


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary, in the order of bytes.

    A printable byte stands for itself, each other one for the next letter from U+0100 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


# --- GGUF and ctranslate2 ------------------------------------------------------------------------


def write_gguf(folder: Path, out: Path, kind: str) -> None:
    """The GPT-2 in `folder` as a GGUF file: matrices as `kind`, vectors and positions float32."""
    import gguf
    import numpy as np
    from safetensors import safe_open

    kind_of = getattr(gguf.GGMLQuantizationType, kind.upper())
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    file_types = {"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(getattr(gguf.LlamaFileType, file_types[kind]))
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), config)
    with safe_open(folder / "model.safetensors", framework="np") as stored:
        for name in sorted(stored.keys()):
            if name == "lm_head.weight":
                continue  # tied
            weight = stored.get_tensor(name).astype(np.float32)
            if name.endswith(STORED_IN_OUT):
                weight = np.ascontiguousarray(weight.T)
            kept = weight.ndim == 1 or name.endswith("wpe.weight")
            as_kind = gguf.GGMLQuantizationType.F32 if kept else kind_of
            writer.add_tensor(gguf_name(name), gguf.quantize(weight, as_kind), raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """What llama.cpp wants to know of a byte-level BPE before it loads a model."""
    import gguf

    special = {added["content"] for added in tokenizer["added_tokens"]}
    vocab = tokenizer["model"]["vocab"]
    vocab |= {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = (gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens)
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def write_ctranslate2(folder: Path, out: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(out), quantization="int8")
