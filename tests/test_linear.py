"""How linear layers store their weights: each is its own weights' product, near the true ones."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from llmcli.config import read_config
from llmcli.errors import IntegrityError
from llmcli.gpt import kernels, linear, packing, rounding
from llmcli.gpt.linear import (
    BFloat16Linear,
    HalfLinear,
    Int4Linear,
    Int8Linear,
    OrderedLinear,
    PlainBFloat16Linear,
    PlainHalfLinear,
    PlainInt4Linear,
    PlainInt8Linear,
    SerialHalfLinear,
    UnpackedHalfLinear,
)
from llmcli.gpt.packing import maker, pack
from llmcli.gpt.place import choose
from llmcli.gpt.weights import load_model

COARSER = 1 if kernels.has_vnni() else 2  # steps of 7 bits are twice as wide as those of 8

# The layer; the largest error of a weight, and of a product, relative to the largest of them.
LAYERS = {
    OrderedLinear: (1e-9, 1e-5),
    BFloat16Linear: (4e-3, 1e-2),
    HalfLinear: (5e-4, 1e-5),
    SerialHalfLinear: (5e-4, 1e-5),
    PlainBFloat16Linear: (4e-3, 1e-2),
    PlainHalfLinear: (5e-4, 1e-3),
    Int8Linear: (5e-3 * COARSER, 3e-2),
    PlainInt8Linear: (5e-3, 1e-5),
    Int4Linear: (8e-2, 2e-2),
    PlainInt4Linear: (8e-2, 1e-5),
}
NEEDS = {
    OrderedLinear: kernels.has_onednn,
    BFloat16Linear: kernels.has_bfloat16_kernel,
    HalfLinear: kernels.has_fbgemm,
    SerialHalfLinear: kernels.has_fbgemm,
    Int8Linear: kernels.has_fbgemm,
    Int4Linear: kernels.has_int4_kernel,
}


def made(kind, n_out=64, n_in=96, bias=True):
    if kind in NEEDS and not NEEDS[kind]():
        pytest.skip(f"{kind.__name__}: this processor has no kernel")
    torch.manual_seed(1)
    weight = torch.randn(n_out, n_in) * torch.rand(n_out, 1)  # rows of different sizes
    with packing.for_fbgemm():
        return kind(weight, torch.randn(n_out) if bias else None), weight


@pytest.mark.parametrize("kind", LAYERS)
def test_stored_weights_are_near_the_true_ones(kind):
    layer, weight = made(kind)
    error = (layer.weight - weight).abs().amax(dim=1) / weight.abs().amax(dim=1)
    assert error.max() > 0 or kind is OrderedLinear
    assert error.max() < LAYERS[kind][0]


@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 3, 96), (2, 150, 96)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_multiplies_by_the_weights_that_it_stores(kind, bias, shape):
    layer, _ = made(kind, bias=bias)
    x = torch.randn(shape).to(
        torch.bfloat16 if kind in (BFloat16Linear, PlainBFloat16Linear) else torch.float32
    )
    bias = None if layer.bias is None else layer.bias.float()
    expected = F.linear(x.float(), layer.weight.float(), bias)
    with torch.inference_mode():
        got = layer(x)
    assert got.dtype == x.dtype
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < LAYERS[kind][1] * expected.abs().max()


@pytest.mark.parametrize("transposed", [False, True], ids=["as it is", "stored (in, out)"])
@pytest.mark.parametrize("shape", [(1, 1, 768), (2, 40, 768)], ids=str)
def test_a_large_plain_layer_is_torchs_and_has_gradients(shape, transposed, monkeypatch):
    if not kernels.has_onednn():
        pytest.skip("this build of torch has no oneDNN")
    onednn = Mock(wraps=linear.onednn)
    monkeypatch.setattr(linear, "mkl_is_at_home", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(linear, "onednn", onednn)
    torch.manual_seed(1)
    layer, x = linear.Linear(768, 512), torch.randn(shape)
    if transposed:
        layer.weight = linear.frozen(layer.weight.detach().t().contiguous().t())
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
    assert onednn.called == (len(shape) > 1)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((512,), x.numel() / 768))


@torch.inference_mode()
def test_a_large_plain_layer_on_an_intel_is_left_to_mkl(monkeypatch):
    monkeypatch.setattr(linear, "mkl_is_at_home", lambda: True)
    monkeypatch.setattr(linear, "onednn", Mock(side_effect=AssertionError))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer, x = linear.Linear(768, 512), torch.randn(2, 40, 768)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("kind", [PlainHalfLinear, PlainBFloat16Linear, PlainInt8Linear])
@pytest.mark.parametrize("transposed", [False, True], ids=["as it is", "stored (in, out)"])
def test_what_is_converted_by_parts_is_multiplied_right_and_has_gradients(kind, transposed):
    torch.manual_seed(1)
    weight = torch.randn(768, 1700).t() if transposed else torch.randn(1700, 768)
    layer, x = kind(weight, None), torch.randn(1, 3, 768, requires_grad=True)  # three parts
    y = layer(x)
    expected = x @ layer.weight.float().t()
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-4)
    y.sum().backward()
    torch.testing.assert_close(x.grad[0, 0], layer.weight.float().sum(dim=0), atol=2e-3, rtol=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, atol=1e-3, rtol=1e-4)


def test_the_parts_of_a_matrix_lie_densely_for_onednn(monkeypatch):
    """With AVX2 alone oneDNN takes 300 times as long for a transposed matrix cut out of another."""
    seen = []
    monkeypatch.setattr(linear, "product", lambda x, w, b, n: seen.append(w) or F.linear(x, w, b))
    x = torch.randn(1, 3, 768)
    with torch.inference_mode():
        linear.by_parts(x, torch.randn(768, 1700).t(), None, lambda part: part.half())
    assert len(seen) == 3
    assert all(w.is_contiguous() or w.t().is_contiguous() for w in seen)


def test_8_bit_weights_are_those_of_torch():
    weight = made(PlainInt8Linear)[1]
    values, scale = rounding.to_int8(weight)
    zero = torch.zeros(len(scale), dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)
    torch.testing.assert_close(values * scale[:, None], theirs)


def test_the_slow_layers_store_what_the_fast_ones_do():
    fast, slow = made(Int8Linear)[0], made(PlainInt8Linear)[0]
    steps = 0 if COARSER == 1 else 0.5 / 63 + 0.5 / 127  # at most, where the fast one has 7 bits
    atol = steps * slow.weight.abs().max().item()
    torch.testing.assert_close(fast.weight, slow.weight, atol=atol + 1e-5, rtol=1e-5)
    if kernels.has_bfloat16_kernel():
        fast, slow = made(BFloat16Linear)[0], made(PlainBFloat16Linear)[0]
        torch.testing.assert_close(fast.weight, slow.weight, atol=0, rtol=0)
    slow = made(PlainHalfLinear)[0].weight.float()
    for kind in (HalfLinear, SerialHalfLinear):
        torch.testing.assert_close(made(kind)[0].weight, slow, atol=0, rtol=0)
    fast, slow = made(Int4Linear)[0], made(PlainInt4Linear)[0]
    torch.testing.assert_close(fast.weight, slow.weight, atol=2e-2, rtol=0)


def test_without_scripts_the_product_is_the_same(monkeypatch):
    x = torch.randn(1, 1, 96)
    expected = made(HalfLinear)[0](x)

    def dropped(_module):
        raise RuntimeError("torch.jit is gone")

    monkeypatch.setattr(torch.jit, "script", dropped)
    torch.testing.assert_close(made(HalfLinear)[0](x), expected, atol=0, rtol=0)


def test_without_vnni_sums_of_8_bit_products_do_not_saturate():
    """All weights and activations at their largest, by the instructions of an older processor."""
    if not kernels.has_fbgemm():
        pytest.skip("this processor has no kernel")
    code = """if True:
        import torch
        from llmcli.gpt import linear
        linear.has_vnni = lambda: False
        x = torch.ones(1, 64)
        x[0, 0] = 0  # the range of 8 bits begins here
        print(linear.Int8Linear(torch.ones(64, 64), None)(x).sum().item())
    """
    env = {**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(64 * 63, rel=1e-4)


def test_one_thread_has_a_kernel_of_its_own():
    if not kernels.has_fbgemm():
        pytest.skip("this processor has no kernel")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert maker("float16", (64, 96)) is SerialHalfLinear
        torch.set_num_threads(2)
        assert maker("float16", (64, 96)) is HalfLinear
    finally:
        torch.set_num_threads(threads)


def test_a_large_matrix_is_converted_in_parts_and_all_of_it_is(monkeypatch):
    layer, weight = made(PlainHalfLinear, n_out=70)
    x = torch.randn(9, 96)
    whole = layer(x)
    monkeypatch.setattr(rounding, "PART_NBYTES", 96 * 4 * 16)
    torch.testing.assert_close(layer(x), whole)
    torch.testing.assert_close(whole, x @ weight.t() + layer.bias, atol=0.1, rtol=0.01)


def test_widths_that_4_bits_do_not_fit_are_stored_in_8():
    assert maker("int4", (64, 96)) in (Int4Linear, PlainInt4Linear)
    assert maker("int4", (64, 80)) in (Int8Linear, PlainInt8Linear)
    assert maker("int4", (50257, 96)) in (Int8Linear, PlainInt8Linear)


# --- whole models --------------------------------------------------------------------------------

TOLERANCE = {
    "float32": 1e-5,
    "float16": 3e-3,
    "bfloat16": 3e-2,
    "int8": 5e-2 * COARSER,
    "int4": 0.5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from conftest import random_gpt2

    path = tmp_path_factory.mktemp("storage")
    random_gpt2(seed=5, n_embd=64, vocab_size=160).save_pretrained(path)
    return path


@pytest.mark.parametrize("storage", TOLERANCE)
def test_each_storage_gives_the_logits_of_transformers_within_its_tolerance(storage, folder):
    from transformers import GPT2LMHeadModel

    ids = torch.randint(0, 160, (1, 20), generator=torch.Generator().manual_seed(2))
    model = load_model(folder, read_config(folder), storage)
    assert model.storage == storage
    with torch.inference_mode():
        theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
        cache = model.new_cache(1, 20)
        steps = [model(ids[:, i : i + 1], cache) for i in range(20)]
        for ours in (model(ids), torch.cat(steps, dim=1)):
            assert (ours.float() - theirs).abs().max() < TOLERANCE[storage] * theirs.abs().max()


def test_float16_of_a_float16_file_is_exact(save_gpt2):
    folder, theirs = save_gpt2(dtype=torch.float16)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        ours, exact = load_model(folder, read_config(folder), "float16")(ids), theirs(ids).logits
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("storage", ["float16", "int8", "int4"])
def test_a_file_in_half_precision_is_stored_in_any_way(storage, folder, tmp_path):
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float16)
    theirs.save_pretrained(tmp_path)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        ours = load_model(tmp_path, read_config(tmp_path), storage)(ids)
        exact = theirs.float().eval()(ids).logits
    assert (ours - exact).abs().max() < TOLERANCE[storage] * exact.abs().max()


@pytest.mark.parametrize("untied", [False, True])
def test_loading_leaves_no_parameter_out(untied, folder, save_gpt2):
    path, _ = save_gpt2(tie_word_embeddings=not untied)
    for storage in TOLERANCE:
        model = load_model(path, read_config(path), storage)
        assert not any(weight.is_meta for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@torch.inference_mode()
def test_unpacked_float16_is_the_same_and_pack_makes_it_what_it_is_to_be(dtype, save_gpt2):
    folder, _ = save_gpt2(dtype=dtype)
    config, ids = read_config(folder), torch.arange(12)[None]
    packed = load_model(folder, config, "float16")
    model = load_model(folder, config, "float16", unpacked=True)
    kind = UnpackedHalfLinear if kernels.has_fbgemm() else PlainHalfLinear
    assert {type(model.get_submodule(name)) for name in ("head", "blocks.1.mlp.up")} == {kind}
    assert model.storage == "float16"
    torch.testing.assert_close(
        model.head.weight.float(), packed.head.weight.float(), atol=0, rtol=0
    )
    torch.testing.assert_close(model(ids), packed(ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(ids[:, :1]), packed(ids[:, :1]), atol=1e-5, rtol=1e-5)
    pack(model)
    assert type(model.head) is type(packed.head)
    torch.testing.assert_close(model(ids), packed(ids), atol=0, rtol=0)


def test_the_second_token_is_what_packs(folder):
    from test_generation import ids, run

    if not kernels.has_fbgemm():
        pytest.skip("this processor has no kernel")
    config = read_config(folder)
    packed = load_model(folder, config, "float16")
    model = load_model(folder, config, "float16", unpacked=True)
    assert ids(run(model, max_new_tokens=1)) == ids(run(packed, max_new_tokens=1))
    assert isinstance(model.head, UnpackedHalfLinear)
    assert ids(run(model, max_new_tokens=20)) == ids(run(packed, max_new_tokens=20))
    assert isinstance(model.head, type(packed.head))


def test_without_cache_the_second_token_packs_too(folder):
    from test_generation import run

    if not kernels.has_fbgemm():
        pytest.skip("this processor has no kernel")
    model = load_model(folder, read_config(folder), "float16", unpacked=True)
    run(model, max_new_tokens=2, use_cache=False)
    assert not any(isinstance(layer, UnpackedHalfLinear) for layer in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [HalfLinear, SerialHalfLinear, PlainHalfLinear])
@pytest.mark.filterwarnings("ignore:FOUND weight out of range")
@torch.inference_mode()
def test_a_weight_too_large_for_float16_is_its_largest(kind, dtype):
    weight = torch.tensor([[1e6, 1.0], [-1e5, 0.5]], dtype=dtype)
    layers = [kind(weight, None), UnpackedHalfLinear(weight, None)]
    for layer in layers:
        assert layer.weight.tolist() == [[65504, 1], [-65504, 0.5]]
        assert layer(torch.tensor([[1.0, 1.0], [0.0, 2.0]])).isfinite().all()
        assert layer(torch.tensor([[0.0, 7e4]]))[0, 1] == pytest.approx(3.5e4, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [UnpackedHalfLinear, PlainHalfLinear, Int8Linear, Int4Linear])
@torch.inference_mode()
def test_what_weights_are_read_from_stays_as_it_is(kind, dtype):
    weight = made(kind)[1].to(dtype)
    weight[3, 5] = 65504  # float16 has no larger one, 8 bits have
    before, x = weight.clone(), torch.ones(1, 2, 96)
    with packing.for_fbgemm():
        for source in (weight, weight.t().contiguous().t()):
            kind(source, None)(x)
            assert torch.equal(source, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_unpacked_weights_that_are_no_numbers_are_not_rounded_away(dtype, value):
    layer = UnpackedHalfLinear(torch.tensor([[1.0, value], [2.0, 3.0]], dtype=dtype), None)
    with pytest.raises(IntegrityError):
        layer(torch.ones(1, 1, 2))
    huge = UnpackedHalfLinear(torch.full((2, 2), 2e38 if dtype != torch.float16 else 6e4), None)
    assert huge(torch.ones(1, 1, 2)).isfinite().all()  # whose sum is not


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", LAYERS)
@torch.inference_mode()
def test_weights_that_are_no_numbers_are_not_rounded_away(kind, value):
    weight = made(kind)[1]
    weight[5, 7] = value
    if kind.storage in ("float32", "bfloat16"):  # which keep them: they show in what is computed
        x = torch.ones(2, 96, dtype=getattr(torch, kind.storage))
        assert not kind(weight, None)(x).isfinite().all()
    else:
        with pytest.raises(IntegrityError):
            kind(weight, None)


@pytest.mark.parametrize("storage", TOLERANCE)
@torch.inference_mode()
def test_a_file_read_in_many_parts_is_loaded_as_in_one(storage, folder, monkeypatch):
    config, ids = read_config(folder), torch.arange(12)[None]
    whole = load_model(folder, config, storage, unpacked=True)(ids)
    monkeypatch.setattr(rounding, "PART_NBYTES", 64 * 4 * 7)  # not a divisor of any width
    torch.testing.assert_close(load_model(folder, config, storage, unpacked=True)(ids), whole)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is open")
@pytest.mark.parametrize("storage", TOLERANCE)
def test_a_model_keeps_few_descriptors_however_many_tensors_it_has(storage, save_gpt2):
    folder, _ = save_gpt2(n_layer=12, shard_size="100KB")
    before = set(os.listdir("/proc/self/fd"))
    model = load_model(folder, read_config(folder), storage)
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 2 * len(
        list(folder.glob("*.safetensors"))
    )
    assert len(list(model.parameters())) > 50 or storage != "float32"


@pytest.mark.parametrize("storage", TOLERANCE)
@torch.inference_mode()
def test_numbers_at_odd_places_of_a_file_are_read(storage, folder, tmp_path):
    """A header of any length is legal, though most are padded to a multiple of 8."""
    path = Path(shutil.copytree(folder, tmp_path / "odd"))
    data = (path / "model.safetensors").read_bytes()
    n = int.from_bytes(data[:8], "little")
    odd = (n + 3).to_bytes(8, "little") + data[8 : 8 + n] + b"   " + data[8 + n :]
    (path / "model.safetensors").write_bytes(odd)
    config, ids = read_config(folder), torch.arange(12)[None]
    expected = load_model(folder, config, storage)(ids)
    torch.testing.assert_close(load_model(path, config, storage)(ids), expected)


@torch.inference_mode()
def test_a_file_that_is_replaced_after_loading_is_still_the_one_that_is_read(folder, tmp_path):
    from conftest import random_gpt2

    path = tmp_path / "model"
    shutil.copytree(folder, path)
    config, ids = read_config(path), torch.arange(12)[None]
    model = load_model(path, config, "float16", unpacked=True)
    expected = model(ids)
    random_gpt2(seed=6, n_embd=64, vocab_size=160).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(path / "model.safetensors")
    torch.testing.assert_close(model(ids), expected, atol=0, rtol=0)
    shutil.rmtree(path)
    pack(model)
    torch.testing.assert_close(model(ids), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for what a process holds")
@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_of_a_large_matrix_only_a_part_is_in_memory_at_once(storage, save_gpt2):
    """A prompt through 100 MB of weights: unpacked, or the quarter of them that 8 bits take."""
    if not kernels.has_fbgemm():
        pytest.skip("this processor has no kernel")
    folder, _ = save_gpt2(vocab_size=50257, n_embd=512, n_layer=1, n_head=4)
    code = f"""if True:
        from pathlib import Path
        import torch
        from llmcli.config import read_config
        from llmcli.gpt.weights import load_model

        def mib(key):
            status = Path("/proc/self/status").read_text()
            return int(status.split(key + ":")[1].split()[0]) >> 10

        torch.set_num_threads(1)
        ids = torch.arange(8)[None]
        torch.nn.Linear(8, 8)(torch.ones(1, 8))
        config = read_config(Path({str(folder)!r}))
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = mib("VmRSS")
        with torch.inference_mode():
            load_model(Path({str(folder)!r}), config, {storage!r}, unpacked=True)(ids)
        print(mib("VmHWM") - before)
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 110  # with torch 2.6, 97: its own code and buffers, too


@torch.inference_mode()
def test_float32_for_many_rows_is_put_in_order_and_computes_the_same(folder, monkeypatch):
    if not kernels.has_onednn():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    ids = torch.randint(0, 160, (8, 12), generator=torch.Generator().manual_seed(2))
    config = read_config(folder)
    plain, ordered = (load_model(folder, config, rows=rows) for rows in (7, 8))
    kinds = [type(model.blocks[0].mlp.up) for model in (plain, ordered)]
    assert kinds == [linear.Linear, OrderedLinear]
    assert ordered.storage == "float32"
    torch.testing.assert_close(ordered(ids), plain(ids), atol=1e-4, rtol=1e-4)


def test_auto_is_float16_on_a_cpu():
    assert choose("cpu", "auto") == ("cpu", "float16")
    assert choose("cpu", "float32") == ("cpu", "float32")
    assert choose("cpu", "auto", "int4") == ("cpu", "int4")


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_quantize_is_used_and_told(storage, llmcli, model_folder):
    import json

    arguments = ("generate", "Once", "-m", model_folder, "--max-new-tokens", 2, "--json")
    run = llmcli(*arguments, "--quantize", storage)
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["model"]["dtype"] == storage
    check = llmcli("inspect", "Once upon", "-m", model_folder, "--view", "check",
                   "--quantize", storage)  # fmt: skip
    assert check.exit_code == 0, check.stdout
    assert f"{storage} = float32" in check.stdout


def test_a_model_some_of_whose_shapes_do_not_take_4_bits_is_replayed_as_it_was(
    llmcli, copied, tmp_path
):
    import json

    from conftest import random_gpt2

    random_gpt2(seed=3, vocab_size=300, n_positions=64, n_embd=48).save_pretrained(copied)
    block = load_model(copied, read_config(copied), "int4").block(0)
    assert {block.mlp.up.storage, block.mlp.down.storage} == {"int8", "int4"}
    trace = tmp_path / "run.jsonl"
    run = llmcli("generate", "Once", "-m", copied, "-n", 8, "--quantize", "int4", "--ignore-eos",
                 "--json", "--trace", trace)  # fmt: skip
    assert json.loads(run.stdout)["model"]["dtype"] == "int4"
    view = json.loads(llmcli("generate", "--replay", trace, "--json").stdout)["views"][0]
    assert (view["dtype"], view["passed"]) == ("int4", True)
    assert view["max_difference"] < 1e-4


def test_quantize_and_another_dtype_contradict_each_other(llmcli, model_folder):
    run = llmcli("generate", "Once", "-m", model_folder, "--quantize", "int8",
                 "--dtype", "bfloat16")  # fmt: skip
    assert run.exit_code == 2
    assert "Choose one of --quantize and --dtype." in run.stderr


def test_a_missing_kernel_is_said_and_the_text_still_comes(llmcli, model_folder, monkeypatch):
    arguments = ("generate", "Once", "-m", model_folder, "--max-new-tokens", 4, "--seed", 1,
                 "--quantize", "int8", "--json")  # fmt: skip
    monkeypatch.setattr(packing, "has_fbgemm", lambda: False)
    run = llmcli(*arguments)
    assert run.exit_code == 0, run.stderr
    assert "no kernel for int8" in run.stderr
