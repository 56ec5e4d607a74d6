"""The table of names and shapes, held against the model itself and against `transformers`."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcli.checkpoint import read_checkpoint
from llmcli.config import read_config
from llmcli.gpt.model import GPT
from llmcli.gpt.weights import load_model
from llmcli.inspection import model as model_view
from llmcli.parameters import match


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_of_the_model_has_its_shape(tied, save_gpt2):
    folder, _ = save_gpt2(tie_word_embeddings=tied, n_inner=50)
    config = read_config(folder)
    found = match(folder, read_checkpoint(folder), config)
    with torch.device("meta"):
        model = GPT(config)
    assert {
        name: info.shape[::-1] if transposed else info.shape
        for name, (info, transposed) in found.items()
    } == {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert sum(weight.numel() for weight in model.parameters()) == config.n_parameters


@pytest.mark.parametrize("prefix", ["", "transformer."])
@torch.inference_mode()
def test_a_tied_tensor_may_have_either_of_its_names(prefix, save_gpt2):
    """`safetensors.torch.save_model` keeps one, and says so in the metadata."""
    from transformers import GPT2LMHeadModel

    folder, _ = save_gpt2()
    path, embedding = folder / "model.safetensors", f"{prefix}wte.weight"
    weights = {
        name.replace("transformer.", prefix): weight for name, weight in load_file(path).items()
    }
    weights["lm_head.weight"] = weights.pop(embedding)
    save_file(weights, path, {"format": "pt", embedding: "lm_head.weight"})
    theirs, ids = GPT2LMHeadModel.from_pretrained(folder).eval(), torch.arange(12)[None]
    config = read_config(folder)
    for storage in ("float32", "int8"):
        model = load_model(folder, config, storage)
        assert not any(weight.is_meta for weight in model.parameters())
    model = load_model(folder, config)
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    assert model_view.view(folder, "tied").parameters == config.n_parameters
