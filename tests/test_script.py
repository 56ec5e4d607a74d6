"""The decode step written down: what it computes is bit for bit what the model computes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from test_generation import PROMPT, WILD, run
from test_model import ours

from llmcli.gpt import activation, kernels, linear, packing, step
from llmcli.gpt.script import DecodeStep
from llmcli.gpt.step import decode_step
from llmcli.gpt.weights import load_model

STORAGES = ["float32", "bfloat16", "float16", "int8", "int4"]


def load(save_gpt2, storage):
    folder, _ = save_gpt2()
    model = ours(folder)
    return load_model(folder, model.config, storage)


def filled(model, pads):
    """A cache with four tokens in each row, the first of them padding."""
    pad = torch.tensor(pads) if any(pads) else None
    cache = model.new_cache(len(pads), 20, pad)
    ids = torch.arange(4 * len(pads)).view(len(pads), 4)
    model(ids, cache)
    return cache


def is_written(step):
    return all(isinstance(written, torch.jit.ScriptModule) for written in step.scripts.values())


@pytest.mark.parametrize("pads", [(0,), (0, 0, 0), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("storage", STORAGES)
@torch.inference_mode()
def test_a_step_equals_the_models_to_the_bit(save_gpt2, storage, pads):
    model = load(save_gpt2, storage)
    step, (cache, same) = DecodeStep(model), (filled(model, pads) for _ in range(2))
    for fed in (7, 8, 9, 10, 11):
        ids = torch.full((len(cache.keys[0]), 1), fed)
        assert torch.equal(step(ids, cache), model(ids, same, last_only=True))
        assert cache.length == same.length
        if fed == 9 and len(ids) > 1:  # the batch grows smaller
            cache.drop(1)
            same.drop(1)
    assert is_written(step) == (storage != "bfloat16" or kernels.has_bfloat16_kernel())
    filled_part = slice(0, cache.length)
    assert torch.equal(cache.keys[..., filled_part, :], same.keys[..., filled_part, :])
    assert torch.equal(cache.values[..., filled_part, :], same.values[..., filled_part, :])


@torch.inference_mode()
def test_one_step_serves_batches_with_padding_and_without_of_any_size(save_gpt2, monkeypatch):
    monkeypatch.setattr(activation, "SOME", 1)  # as with many rows of a large model
    model = load(save_gpt2, "float32")
    step = DecodeStep(model)
    for pads in [(0,), (1, 0), (0, 0, 0), (3, 2, 1, 0), (0,)]:
        ids = torch.full((len(pads), 1), 5)
        expected = model(ids, filled(model, pads), last_only=True)
        assert torch.equal(step(ids, filled(model, pads)), expected)
    assert len(step.scripts) == 2


@torch.inference_mode()
def test_a_layer_that_treats_one_row_otherwise_is_not_written_down(save_gpt2, monkeypatch):
    monkeypatch.setattr(packing, "has_fbgemm", lambda: False)
    model = load(save_gpt2, "float16")
    step = DecodeStep(model)
    for pads in [(0,), (0, 0)]:
        ids = torch.full((len(pads), 1), 5)
        expected = model(ids, filled(model, pads), last_only=True)
        assert torch.equal(step(ids, filled(model, pads)), expected)
    assert not is_written(step)


@torch.inference_mode()
def test_where_torch_has_no_scripts_the_model_is_called(save_gpt2, monkeypatch):
    def gone(*_, **__):
        raise RuntimeError("no longer supported")

    monkeypatch.setattr(torch.jit, "trace", gone)
    model = load(save_gpt2, "float32")
    step, ids = DecodeStep(model), torch.tensor([[5]])
    assert torch.equal(step(ids, filled(model, (0,))), model(ids, filled(model, (0,))))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_text_is_the_same_with_a_script_and_without(save_gpt2, monkeypatch, storage):
    model = load(save_gpt2, storage)
    prompts = [[7, 3], PROMPT, [8] * 9]
    told = []
    for worth in (99, 0):
        monkeypatch.setattr(step, "WORTH_A_SCRIPT", worth)
        steps = run(model, prompts, WILD, stop_ids={11, 12})
        told.append([(s.row, s.id, s.facts.chosen.logprob, s.facts.entropy_bits) for s in steps])
    assert told[0] == told[1]
    assert model in step._OF_MODEL


def test_a_model_and_its_entry_are_not_kept_by_its_step(save_gpt2):
    n_known = len(step._OF_MODEL)
    model = load(save_gpt2, "float32")
    with torch.inference_mode():
        decode_step(model, 99)(torch.tensor([[5]]), filled(model, (0,)))
    assert decode_step(model, 99) is decode_step(model, 99)
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None
    assert len(step._OF_MODEL) <= n_known


@torch.inference_mode()
def test_a_large_layer_in_onednn_is_written_down_too(save_gpt2, monkeypatch):
    if not kernels.has_onednn():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(linear, "LARGE", 1)
    monkeypatch.setattr(linear, "mkl_is_at_home", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = load(save_gpt2, "float32")
    step, ids = DecodeStep(model), torch.tensor([[5]])
    assert torch.equal(step(ids, filled(model, (0,))), model(ids, filled(model, (0,))))
    assert is_written(step)
    assert "_linear_pointwise" in str(step.scripts[True].inlined_graph)
