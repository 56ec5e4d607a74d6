"""The forward pass, held against `transformers` on random models."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from conftest import FABLE, edit_json
from safetensors.torch import load_file, save_file

from llmcli.config import read_config
from llmcli.gpt import model as gpt
from llmcli.gpt.cache import KVCache
from llmcli.gpt.model import GPT
from llmcli.gpt.tap import Probe
from llmcli.gpt.weights import load_model

VARIANTS = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "narrow mlp": {"n_inner": 40},
    "gelu": {"activation_function": "gelu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "unscaled": {"scale_attn_weights": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "one head": {"n_head": 1, "n_layer": 1},
    "all at once": {
        "tie_word_embeddings": False,
        "n_inner": 24,
        "activation_function": "silu",
        "layer_norm_epsilon": 1e-3,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "n_head": 8,
    },
}


def ours(folder) -> GPT:
    return load_model(folder, read_config(folder))


def random_ids(config, batch: int = 2, length: int = 21) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def assert_equals_theirs(model: GPT, theirs) -> None:
    """One forward, prefill + cached steps, and prefill in two chunks give their logits."""
    ids = random_ids(model.config)
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)

        cache = KVCache(model.config, batch=2, capacity=21)
        steps = [model(ids[:, :5], cache)]
        steps += [model(ids[:, i : i + 1], cache) for i in range(5, 21)]
        torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-4, rtol=0)

        cache = KVCache(model.config, batch=2, capacity=21)
        chunks = [model(ids[:, :8], cache), model(ids[:, 8:], cache)]
        torch.testing.assert_close(torch.cat(chunks, dim=1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name, save_gpt2):
    folder, theirs = save_gpt2(seed=len(name), **VARIANTS[name])
    assert_equals_theirs(ours(folder), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_computed_in_fp32(dtype, save_gpt2):
    folder, theirs = save_gpt2(dtype=dtype)
    assert_equals_theirs(ours(folder), theirs)


def test_shards_equal_one_file(save_gpt2):
    folder, theirs = save_gpt2(shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_equals_theirs(ours(folder), theirs)


def test_names_without_prefix_and_old_mask_buffers_load(save_gpt2):
    folder, theirs = save_gpt2()
    path = folder / "model.safetensors"
    weights = {name.removeprefix("transformer."): w for name, w in load_file(path).items()}
    for layer in range(3):
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, path)
    edit_json(folder / "config.json", n_ctx=48, summary_type="cls_index")
    assert_equals_theirs(ours(folder), theirs)


def test_fable_opens_in_transformers_with_the_same_logits():
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(FABLE, dtype=torch.float32).eval()
    assert_equals_theirs(ours(FABLE), theirs)


def test_last_only_is_the_last_row(save_gpt2):
    model = ours(save_gpt2()[0])
    ids = random_ids(model.config)
    with torch.inference_mode():
        last = model(ids, last_only=True)
        torch.testing.assert_close(last, model(ids)[:, -1:], atol=1e-5, rtol=0)


def test_padded_rows_equal_their_single_runs(save_gpt2):
    model = ours(save_gpt2()[0])
    ids = random_ids(model.config, batch=3)
    pad = torch.tensor([0, 4, 11])
    with torch.inference_mode():
        cache = KVCache(model.config, batch=3, capacity=21, pad=pad)
        logits = [model(ids[:, :15], cache)]
        logits += [model(ids[:, i : i + 1], cache) for i in range(15, 21)]
        batched = torch.cat(logits, dim=1)
        for row, n in enumerate(pad.tolist()):
            alone = model(ids[row : row + 1, n:])[0]
            torch.testing.assert_close(batched[row, n:], alone, atol=1e-4, rtol=0)


def test_fused_and_explicit_attention_agree(save_gpt2):
    model = ours(save_gpt2()[0])
    ids = random_ids(model.config)
    probe = Probe(model.config.n_layer, record=["*.pattern"])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids, tap=probe), model(ids), atol=1e-5, rtol=0)
    assert set(probe.values) == {"0.pattern", "1.pattern", "2.pattern"}


@pytest.mark.parametrize("T", [65, 128, 191, 200])
def test_a_long_prompt_is_attended_to_in_blocks_and_equals_transformers(T, save_gpt2, monkeypatch):
    folder, theirs = save_gpt2(n_positions=256)
    model, blocks = ours(folder), Mock(wraps=gpt.attention_in_blocks)
    monkeypatch.setattr(gpt, "attention_in_blocks", blocks)
    ids = random_ids(model.config, batch=2, length=T)
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)
        cache = KVCache(model.config, batch=2, capacity=T + 3)  # whose rows do not lie together
        torch.testing.assert_close(model(ids, cache), expected, atol=1e-4, rtol=0)
    assert blocks.call_count == 2 * model.config.n_layer


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize(("storage", "tolerance"), [("bfloat16", 3e-2), ("int8", 6e-2)])
def test_a_long_coarse_prompt_is_attended_to_in_what_is_faster(
    amx, storage, tolerance, save_gpt2, monkeypatch
):
    folder, theirs = save_gpt2(n_positions=256)
    model = load_model(folder, read_config(folder), storage)
    ids = random_ids(model.config, batch=2, length=100)
    blocks = Mock(wraps=gpt.attention_in_blocks)
    fused = Mock(wraps=torch.nn.functional.scaled_dot_product_attention)
    with torch.inference_mode():
        expected = theirs(ids).logits
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
        monkeypatch.setattr(gpt, "attention_in_blocks", blocks)
        monkeypatch.setattr(gpt, "has_amx", lambda: amx)
        for logits in (model(ids, model.new_cache(2, 100)), model(ids)):
            assert (logits - expected).abs().max() < tolerance * expected.abs().max()
    used, other, dtype = (fused, blocks, torch.bfloat16) if amx else (blocks, fused, torch.float32)
    assert [call.args[1].dtype for call in used.call_args_list] == [dtype] * 6
    assert not other.called


def test_a_long_text_has_gradients(save_gpt2):
    model = ours(save_gpt2(n_positions=128)[0]).requires_grad_(True)
    model(random_ids(model.config, length=100)).square().mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_patterns_equal_transformers(save_gpt2):
    folder, theirs = save_gpt2(attn_implementation="eager")
    model = ours(folder)
    theirs.set_attn_implementation("eager")
    ids = random_ids(model.config)
    probe = Probe(model.config.n_layer, record=["*.pattern", "*.resid_pre"])
    with torch.inference_mode():
        model(ids, tap=probe)
        out = theirs(ids, output_attentions=True, output_hidden_states=True)
    for layer in range(model.config.n_layer):
        pattern, stream = probe.values[f"{layer}.pattern"], probe.values[f"{layer}.resid_pre"]
        torch.testing.assert_close(pattern, out.attentions[layer], atol=1e-5, rtol=0)
        torch.testing.assert_close(stream, out.hidden_states[layer], atol=1e-4, rtol=0)
