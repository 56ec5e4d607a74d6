"""Tiny random models, made here; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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

    def save(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any):
        model = random_gpt2(seed, **changes)
        shards = (
            {"max_shard_size": changes.pop("max_shard_size")} if "max_shard_size" in changes else {}
        )
        folder = tmp_path / f"model-{seed}-{len(list(tmp_path.iterdir()))}"
        model.to(dtype).save_pretrained(folder, **shards)
        return folder, model.float()

    return save


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object in a file; a value of ... removes the key."""
    raw = json.loads(path.read_text())
    raw.update(changes)
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))
