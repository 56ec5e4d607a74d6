"""What a model is and how it likes to be sampled, read from a folder's config files.

`ModelConfig` says what, never who: the families end here, in one small function per `model_type`.
Every key of config.json is used, named as ignored, or refused by name; of generation_config.json
the numbers of `Sampling` and the end-of-text ids are read, and what else it asks for is not done.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcli.errors import IntegrityError, NotFoundError, UnsupportedModelError, shown, shown_path

MAX_CONFIG_BYTES = 4 << 20  # GPT-2's has 665 bytes
MAX_SIZE = 1 << 24  # of any one dimension: ten times the largest vocabulary in use
MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The sizes and choices that describe a decoder-only transformer."""

    vocab_size: int
    n_ctx: int
    n_layer: int
    n_head: int
    n_embd: int
    mlp_dim: int
    activation: str  # a key of gpt.activation.ACTIVATIONS
    norm_eps: float
    tie_embeddings: bool
    scale_by_head_dim: bool  # scores / sqrt(head_dim)
    scale_by_layer: bool  # scores / (layer + 1)
    eos_ids: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_parameters(self) -> int:
        """How many numbers the model has learned; a tied head counts once."""
        C, M = self.n_embd, self.mlp_dim
        attention = 3 * C * C + 3 * C + C * C + C
        mlp = C * M + M + M * C + C
        heads = 1 if self.tie_embeddings else 2
        outside = heads * self.vocab_size * C + self.n_ctx * C + 2 * C
        return self.n_layer * (attention + mlp + 4 * C) + outside

    def kv_nbytes(self, itemsize: int) -> int:
        """Bytes of keys and values that one token adds to the cache."""
        return 2 * self.n_layer * self.n_embd * itemsize

    def attn_scale(self, layer: int) -> float:
        """What q.k is multiplied by in `layer`."""
        scale = 1 / math.sqrt(self.head_dim) if self.scale_by_head_dim else 1.0
        return scale / (layer + 1) if self.scale_by_layer else scale

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """The config that a Hugging Face config.json describes.

        Raises UnsupportedModelError naming the key that is not handled, IntegrityError naming the
        one that is missing or makes no sense.
        """
        family = raw.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise UnsupportedModelError(
                f"config.json: model_type {_shown(family)} is not supported.",
                f"Supported: {', '.join(sorted(FAMILIES))}.",
            )
        return FAMILIES[family](raw)


# The order in which the filters of `Sampling` apply; gpt.sampling.in_force holds them.
ORDER = (
    "bias", "repetition_penalty", "presence_penalty", "frequency_penalty", "temperature", "top_k",
    "top_p", "min_p", "typical_p",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; these defaults leave the model's distribution as it is."""

    bias: tuple[tuple[int, float], ...] = ()  # (id, what is added to its logit)
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0  # ids, the prompt's too, that the penalties look back on; 0 is all
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0

    @property
    def penalises(self) -> bool:
        """Whether it matters which ids came before."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


# The least and the most of each number; whole ones where these are.
RANGES: dict[str, tuple[float, float]] = {
    "repetition_penalty": (1e-3, 1e3),
    "presence_penalty": (-1e3, 1e3),
    "frequency_penalty": (-1e3, 1e3),
    "penalty_window": (0, math.inf),
    "temperature": (0.0, 1e3),
    "top_k": (0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
}
MIN_TEMPERATURE = 0.001  # but for 0: less divides logits by nothing
SENSIBLE = Sampling(temperature=0.8, top_p=0.95)
GREEDY = Sampling(temperature=0.0)


def read_config(folder: Path) -> ModelConfig:
    """The model in `folder`; end-of-text ids from generation_config.json have precedence."""
    with _in(folder):
        config = ModelConfig.from_hf(_read_object(folder / "config.json"))
        generation = folder / "generation_config.json"
        if not os.path.lexists(generation):
            return config
        eos_ids = _eos_ids(_read_object(generation), config.vocab_size, generation.name)
    return replace(config, eos_ids=eos_ids) if eos_ids else config


def read_sampling(folder: Path) -> Sampling:
    """How the model in `folder` wants to be sampled: generation_config.json over what is sensible.

    A file that says `do_sample: false`, or a temperature too low to divide by, asks for greedy: the
    filters that cut mean nothing then.
    """
    path = folder / "generation_config.json"
    raw = _read_object(path) if os.path.lexists(path) else {}
    ranges = {**RANGES, "top_k": (-1, MAX_SIZE)}  # some write -1 for off

    def number(name: str) -> Any:
        return _number(raw, name, getattr(SENSIBLE, name), *ranges[name], file=path.name)

    with _in(folder):
        penalty = number("repetition_penalty")
        if raw.get("do_sample") is False or number("temperature") < MIN_TEMPERATURE:
            return replace(GREEDY, repetition_penalty=penalty)
        return Sampling(
            repetition_penalty=penalty,
            temperature=number("temperature"),
            top_k=max(0, int(number("top_k"))),
            **{name: number(name) for name in ("top_p", "min_p", "typical_p")},
        )


# --- GPT-2 ---------------------------------------------------------------------------------------

GPT2_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
GPT2_USED = {
    "model_type", "vocab_size", "n_positions", "n_layer", "n_head", "n_embd", "n_inner",
    "activation_function", "layer_norm_epsilon", "tie_word_embeddings", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "eos_token_id",
}  # fmt: skip
IGNORED = {
    # names and bookkeeping
    "architectures", "transformers_version", "torch_dtype", "dtype", "finetuning_task", "id2label",
    "label2id", "num_labels", "problem_type", "tokenizer_class", "prefix", "bos_token_id",
    "pad_token_id", "sep_token_id", "decoder_start_token_id", "task_specific_params", "auto_map",
    "predict_special_tokens", "n_ctx",
    # training only
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "gradient_checkpointing",
    "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels",
    # how another library runs it; the numbers are the same
    "use_cache", "reorder_and_upcast_attn", "output_attentions", "output_hidden_states",
    "output_past", "return_dict", "use_return_dict", "torchscript", "tf_legacy_loss",
    "use_bfloat16", "is_decoder", "chunk_size_feed_forward",
    # old homes of sampling options; generation_config.json is theirs today
    "do_sample", "max_length", "min_length", "temperature", "top_k", "top_p", "typical_p",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens",
}  # fmt: skip


def _gpt2(raw: Mapping[str, Any]) -> ModelConfig:
    _refuse_unknown(raw, GPT2_USED | IGNORED)
    activation = raw.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in GPT2_ACTIVATIONS:
        raise UnsupportedModelError(
            f"config.json: activation_function {_shown(activation)} is not supported.",
            f"Supported: {', '.join(sorted(GPT2_ACTIVATIONS))}.",
        )
    n_embd, n_head = _size(raw, "n_embd"), _size(raw, "n_head")
    if n_embd % n_head:
        raise IntegrityError(f"config.json: n_embd {n_embd} is not a multiple of n_head {n_head}.")
    vocab_size = _size(raw, "vocab_size")
    return ModelConfig(
        vocab_size=vocab_size,
        n_ctx=_size(raw, "n_positions" if "n_positions" in raw else "n_ctx"),
        n_layer=_size(raw, "n_layer", MAX_LAYERS),
        n_head=n_head,
        n_embd=n_embd,
        mlp_dim=4 * n_embd if raw.get("n_inner") is None else _size(raw, "n_inner"),
        activation=GPT2_ACTIVATIONS[activation],
        norm_eps=_number(raw, "layer_norm_epsilon", 1e-5, 0.0, 1.0),
        tie_embeddings=_flag(raw, "tie_word_embeddings", True),
        scale_by_head_dim=_flag(raw, "scale_attn_weights", True),
        scale_by_layer=_flag(raw, "scale_attn_by_inverse_layer_idx", False),
        eos_ids=_eos_ids(raw, vocab_size, "config.json"),
    )


FAMILIES: dict[str, Callable[[Mapping[str, Any]], ModelConfig]] = {"gpt2": _gpt2}


# --- reading values that a stranger wrote --------------------------------------------------------


@contextmanager
def _in(folder: Path) -> Iterator[None]:
    """What is wrong with a file, with the folder it lies in and something to do about it."""
    try:
        yield
    except (IntegrityError, UnsupportedModelError) as error:
        where = shown_path(folder)
        fact = error.fact if f"{where}/" in error.fact else f"In {where}, {error.fact}"
        raise type(error)(fact, error.remedy or "Get the model again, or another.") from error


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises NotFoundError or IntegrityError with the file's name."""
    try:
        if path.exists() and not path.is_file():  # to read a device or a FIFO may never end
            raise NotFoundError(f"{shown_path(path)} is not a regular file.")
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise NotFoundError(
            f"{shown_path(path)} cannot be read ({error.strerror}).",
            "A model folder holds config.json, tokenizer.json and model.safetensors.",
        ) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise IntegrityError(f"{shown_path(path)} is larger than {MAX_CONFIG_BYTES >> 20} MiB.")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{shown_path(path)} is not valid JSON ({type(error).__name__}).",
            "Get the model again.",
        ) from error
    if not isinstance(raw, dict):
        raise IntegrityError(f"{shown_path(path)} is not a JSON object.", "Get the model again.")
    return raw


def _refuse_unknown(raw: Mapping[str, Any], known: set[str]) -> None:
    """Refuse keys that nobody here has read about; unset ones, and private ones, change nothing."""
    unset: tuple[object, ...] = (None, False, [], {})
    for key in sorted(raw):
        if key not in known and not key.startswith("_") and raw[key] not in unset:
            raise UnsupportedModelError(
                f"config.json: {_shown(key)} = {_shown(raw[key])} is not supported."
            )


def _size(raw: Mapping[str, Any], key: str, largest: int = MAX_SIZE) -> int:
    if key not in raw:
        raise IntegrityError(f"config.json lacks {key!r}.", "Get the model again.")
    value = raw[key]
    if type(value) is not int or not 1 <= value <= largest:
        raise IntegrityError(
            f"config.json: {key} must be a whole number from 1 to {largest}, not {_shown(value)}."
        )
    return value


def _number(
    raw: Mapping[str, Any], key: str, default: float, low: float, high: float,
    file: str = "config.json",
) -> float:  # fmt: skip
    value = raw.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not low <= value <= high:
        raise IntegrityError(
            f"{file}: {key} must be a number from {low} to {high}, not {_shown(value)}."
        )
    return value


def _flag(raw: Mapping[str, Any], key: str, default: bool) -> bool:
    value = raw.get(key, default)
    if type(value) is not bool:
        raise IntegrityError(f"config.json: {key} must be true or false, not {_shown(value)}.")
    return value


def _eos_ids(raw: Mapping[str, Any], vocab_size: int, file: str) -> tuple[int, ...]:
    """The ids that end a text, without those that no model of this vocabulary can draw."""
    value = raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(id) is int for id in ids):
        raise IntegrityError(f"{file}: eos_token_id must be an id, not {_shown(value)}.")
    return tuple(id for id in ids if 0 <= id < vocab_size)


def _shown(value: object) -> str:
    return shown(repr(value), 60)
