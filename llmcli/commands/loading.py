"""From a model's name to a model: what every command that computes does first.

`open_model` reads what is small and needs no torch, so that a mistake is told at once; `load`
brings in torch and the weights, after it has looked whether they fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.checkpoint import read_checkpoint
from llmcli.commands.options import Compute, Drawing
from llmcli.commands.say import say
from llmcli.commands.token_names import token_named
from llmcli.config import (
    MIN_TEMPERATURE,
    SENSIBLE,
    ModelConfig,
    Sampling,
    read_config,
    read_sampling,
)
from llmcli.errors import IntegrityError, UsageError, shown, shown_path
from llmcli.tokenizer import Tokenizer
from llmcli.tokenizer_file import read_recipe

if TYPE_CHECKING:
    from llmcli.gpt.model import GPT
    from llmcli.gpt.sampling import Drawable


MAX_BIAS = 1e6
SMALL_FILES = (  # of a model's folder
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "encoder.json",
    "vocab.bpe", "model.safetensors.index.json",
)  # fmt: skip
CUTS = {"top_k", "top_p", "min_p", "typical_p"}


@dataclass(frozen=True)
class Opened:
    """A model's folder and all of it but the weights."""

    name: str
    folder: Path
    revision: str | None
    config: ModelConfig
    tokenizer: Tokenizer
    beyond: tuple[str, ...] = ()  # added tokens that no text may hold: the model has no such id

    @property
    def files(self) -> list[Path]:
        """What is read of it."""
        weights = {info.file for info in read_checkpoint(self.folder).values()}
        return [*(self.folder / name for name in SMALL_FILES), *sorted(weights)]

    def token_bytes(self, id: int) -> bytes:
        """The bytes of a token; none for an id of the model's that has no token."""
        return self.tokenizer.bytes_of.get(id, b"")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Raises UsageError where a token in it is none of the model's."""
        if found := next((token for token in self.beyond if token in text), None):
            raise UsageError(
                f"{shown(repr(found))} is a token of the tokenizer, but none of the model's "
                f"{self.config.vocab_size}.",
                "Leave it out of the text.",
            )
        return self.tokenizer.encode(text)

    @cached_property
    def drawable(self) -> Drawable:
        """The ids that have a token: others pad the vocabulary, and are never drawn."""
        n_ids = self.tokenizer.vocab_size
        if len(self.tokenizer) == n_ids:
            return slice(n_ids)
        import numpy as np

        return np.array(sorted(self.tokenizer.bytes_of))


def open_model(name: str) -> Opened:
    """The model called `name`. Raises IntegrityError where its tokenizer is another's."""
    from llmcli import hub

    folder = hub.resolve(name)
    return Opened(name, folder, hub.revision_of(folder), *fitting(folder))


def fitting(folder: Path) -> tuple[ModelConfig, Tokenizer, tuple[str, ...]]:
    """A model's config and tokenizer, and the added tokens that no text may hold.

    Padding tokens are often added without a row of the model's: the tokenizer comes without them,
    and a text may hold them where they are special, plain text as ever. Raises IntegrityError where
    other ids are beyond the model.
    """
    config, recipe = read_config(folder), read_recipe(folder)
    top = max(*recipe.vocab.values(), *recipe.prefix_ids, *recipe.suffix_ids)
    if top >= config.vocab_size:
        raise IntegrityError(
            f"In {shown_path(folder)} the tokenizer has ids up to {top}, the model's end at "
            f"{config.vocab_size - 1}: they belong to different models.",
            "Get the model again, or another.",
        )
    known = tuple(token for token in recipe.added if token.id < config.vocab_size)
    beyond = (token for token in recipe.added if token.id >= config.vocab_size)
    found = tuple(token.content for token in beyond if not token.special)
    return config, Tokenizer(replace(recipe, added=known)), found


def sampling_from(opened: Opened, drawing: Drawing, default: Sampling | None = None) -> Sampling:
    """The options given, over `default`: by default what generation_config.json says."""
    vocab_size = opened.config.vocab_size
    given = {name: value for name, value in asdict(drawing).items() if value is not None}
    for name, value in given.items():
        if isinstance(value, float) and not abs(value) < float("inf"):
            raise UsageError(
                f"--{name.replace('_', '-')} must be a number, not {value}.", "Leave it out."
            )
    if 0 < given.get("temperature", 0) < MIN_TEMPERATURE:
        raise UsageError(
            f"--temperature must be 0, which is greedy, or at least {MIN_TEMPERATURE}.",
            "For example: --temperature 0.8",
        )
    if given.get("top_k", 0) > vocab_size:
        raise UsageError(
            f"--top-k {given['top_k']} is more than the {vocab_size} tokens that there are.",
            "0 draws from all of them.",
        )
    recorded = default is not None
    default = default or read_sampling(opened.folder)
    default = replace(default, top_k=min(default.top_k, vocab_size))
    if bias := given.pop("bias", None):
        given["bias"] = tuple(_bias(opened.tokenizer, entry) for entry in bias)
        if len({id for id, _ in given["bias"]}) < len(bias):
            raise UsageError("--bias gives the same token twice.", "Leave one of them out.")
    greedy = not default.temperature and "temperature" not in given
    if greedy and given.keys() & CUTS and not recorded:
        given["temperature"] = SENSIBLE.temperature  # who asks for a cut does not ask for greedy
    return replace(default, **given)


def _bias(tokenizer: Tokenizer, entry: str) -> tuple[int, float]:
    """An id and what to add to its logit, from "TOKEN=N"."""
    token, equals, number = entry.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        equals = ""
    if not equals or not token or not (abs(value) <= MAX_BIAS or value == float("-inf")):
        raise UsageError(
            f"--bias {entry!r} is not TOKEN=NUMBER, with at most {MAX_BIAS:.0f} or -inf.",
            'For example --bias " king=+2".',
        )
    return token_named("--bias", token, tokenizer, digits=True), value


def load(
    opened: Opened,
    compute: Compute,
    batch: int = 1,
    n_tokens: int | None = None,
    unpacked: bool = False,
    quiet: bool = False,
    at_once: int | None = None,
) -> GPT:
    """The model with its weights; `n_tokens` a row, of `batch` rows, are what it must hold.

    Of these at most `at_once` are computed in one pass, by default all.

    Raises ResourceError, before anything is loaded, where memory would not suffice.
    """
    from llmcli.budget import budget, check_fits
    from llmcli.gpt import gpu, packing
    from llmcli.gpt.place import choose, use_threads
    from llmcli.gpt.weights import load_model

    device, storage = choose(compute.device, compute.dtype, compute.quantize)
    missing = None
    if device == "cpu":
        check_fits(budget(opened.config, storage, batch, n_tokens, at_once))
        missing = packing.missing_kernel(storage)
    if device == "cuda":
        missing = gpu.missing_kernel(opened.config, storage)
    if missing and not quiet:
        say(missing)
    use_threads(opened.config, compute.threads)
    return load_model(opened.folder, opened.config, storage, device, batch, unpacked)


def model_json(opened: Opened, model: GPT) -> dict[str, Any]:
    """What JSON says of a model that computes."""
    return {
        "name": opened.name,
        "revision": opened.revision,
        "dtype": model.storage,
        "device": str(model.device),
    }


def as_options(sampling: Sampling) -> Mapping[str, Any]:
    """The filters in force, as JSON has them: bias as a list of pairs."""
    return {name: getattr(sampling, name) for name in sampling.__slots__ if name != "bias"} | {
        "bias": [list(pair) for pair in sampling.bias]
    }
