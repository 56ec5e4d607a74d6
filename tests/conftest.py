"""Tiny random models, made here; nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # tiny models; more threads only wait for each other

SHARED = Path(__file__).resolve().parents[2] / "shared"
FABLE = Path(__file__).resolve().parents[1] / "llmcli" / "models" / "fable"

TINY = {
    "vocab_size": 97,
    "n_positions": 48,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def random_gpt2(seed: int = 0, **changes: Any):
    """A `transformers` GPT-2 whose every parameter is random, biases and norms too."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**{**TINY, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.2)
            if ".ln_" in name and name.endswith("weight"):
                weight.add_(1)
    return model


@pytest.fixture
def save_gpt2(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Make a random GPT-2 and save it as `transformers` does: its folder, and the model."""

    def save(seed: int = 0, dtype: torch.dtype = torch.float32, shard_size="1GB", **changes: Any):
        model = random_gpt2(seed, **changes)
        folder = tmp_path / f"model-{seed}-{len(list(tmp_path.iterdir()))}"
        model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
        return folder, model.float()

    return save


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object in a file; a value of ... removes the key."""
    raw = json.loads(path.read_text())
    raw.update(changes)
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def add_token(path: Path, id: int, content: str, special: bool = True) -> None:
    """Add a token to a tokenizer.json, as it comes with those of a training."""
    raw = json.loads(path.read_text())
    raw["added_tokens"].append({"id": id, "content": content, "special": special})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    raw["added_tokens"][-1] |= flags
    path.write_text(json.dumps(raw))


def train_on(folder: Path) -> None:
    """Make every weight of a model a little larger: the names and shapes stay."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    values = torch.frombuffer(data, dtype=torch.float32, offset=start)
    values *= 1.01
    path.write_bytes(data)


STORY = "Once upon a time, there was a little girl named Lily. She had a red ball. The end.\n"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of random weights: config, tokenizer that starts with end-of-text, weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("models") / "random"
    random_gpt2(seed=3, vocab_size=300, n_positions=64).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([STORY] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of `model_folder` to damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


@pytest.fixture
def llmcli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command line in this process: `.exit_code`, `.stdout`, `.stderr`."""
    from typer.testing import CliRunner

    from llmcli.cli import app

    for name in ("LLMCLI_MODEL", "LLMCLI_DEBUG", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object, input: str | bytes | None = None):
        return CliRunner().invoke(app, [str(a) for a in arguments], input=input)

    return run
