"""The decode kernel of a GPU beside the model's own forward, and beside transformers."""

import pytest
import torch

from llmcli.config import GREEDY, ModelConfig, read_config
from llmcli.gpt.generation import generate
from llmcli.gpt.gpu import DecodeKernel, missing_kernel
from llmcli.gpt.model import GPT
from llmcli.gpt.sampling import generator_for
from llmcli.gpt.step import decode_step
from llmcli.gpt.weights import load_model

if not torch.cuda.is_available():
    pytest.skip("no GPU here", allow_module_level=True)

SIZES = [
    (2, 4, 256, 1024), (2, 12, 768, 3072), (1, 5, 320, 640), (2, 2, 256, 1024), (1, 9, 288, 1152),
    (1, 18, 1152, 4608), (1, 25, 1600, 6400),
]  # fmt: skip
TOLERANCES = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def model_of(n_layer=2, n_head=4, n_embd=256, mlp_dim=1024, activation="gelu_new", **others):
    config = ModelConfig.from_hf(
        {
            "model_type": "gpt2", "vocab_size": 1001, "n_positions": 1024, "n_embd": n_embd,
            "n_layer": n_layer, "n_head": n_head, "n_inner": mlp_dim,
            "activation_function": activation, "layer_norm_epsilon": 1e-5, **others,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT(config)
    for name, weight in model.named_parameters():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(weight, mean, 0.1)
    return model.eval().requires_grad_(False)


def error(ours, theirs):
    return ((ours.float().cpu() - theirs.float().cpu()).norm() / theirs.float().cpu().norm()).item()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_kernel_gives_the_logits_of_the_model(size, dtype):
    true = model_of(*size).to(dtype).double()
    model = model_of(*size).to("cuda", dtype)
    kernel = DecodeKernel(model)
    for n in (1, 3, 64, 200, 777):
        ids = torch.randint(1001, (1, n + 5))
        cache = model.new_cache(1, n + 7)
        model(ids[:, :n].cuda(), cache)
        for i in range(n, n + 5):
            logits = kernel(ids[:, i : i + 1].cuda(), cache)
        assert error(logits[0], true(ids)[0, -1:]) < TOLERANCES[dtype]


@torch.inference_mode()
@pytest.mark.parametrize(
    "asked",
    [{"activation": name} for name in ("gelu", "relu", "silu")]
    + [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}],
    ids=str,
)
def test_what_a_config_asks_for(asked):
    model = model_of(**asked).cuda()
    kernel, ids = DecodeKernel(model), torch.randint(1001, (1, 90)).cuda()
    caches = [model.new_cache(1, 90) for _ in range(2)]
    for cache in caches:
        model(ids[:, :89], cache)
    assert error(kernel(ids[:, 89:], caches[0]), model(ids[:, 89:], caches[1])) < 2e-6
    assert error(caches[0].keys, caches[1].keys) < 2e-6


@torch.inference_mode()
def test_the_same_step_gives_the_same_bits():
    model = model_of().cuda()
    kernel, ids = DecodeKernel(model), torch.randint(1001, (1, 300)).cuda()
    cache = model.new_cache(1, 300)
    model(ids[:, :299], cache)
    seen = set()
    for _ in range(50):
        cache.length = 299
        seen.add(kernel(ids[:, 299:], cache).numpy().tobytes())
    assert len(seen) == 1


def test_generate_takes_it_and_gives_the_same_ids():
    model = model_of(n_layer=8).cuda()
    with_kernel = ids_of(model, [[5, 6, 7]], 300)
    assert isinstance(decode_step(model, 300), DecodeKernel)
    assert with_kernel == ids_of(model, [[5, 6, 7]], 300, use_cache=False)
    ragged = ids_of(model, [[5, 6, 7], [9]], 300)  # several rows go the usual way
    assert ragged[0] == with_kernel[0]


def ids_of(model, prompts, n, **options):
    rows = [[] for _ in prompts]
    generators = [generator_for(0, place) for place in range(len(prompts))]
    for step in generate(model, prompts, GREEDY, generators, max_new_tokens=n, **options):
        rows[step.row].append(step.id)
    return rows


@torch.inference_mode()
@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_a_loaded_checkpoint_gives_the_logits_of_transformers(storage, save_gpt2):
    folder, theirs = save_gpt2(n_embd=256, n_head=4, n_layer=2)
    model = load_model(folder, read_config(folder), storage, "cuda")
    ids, cache = torch.arange(1, 21)[None], model.new_cache(1, 20)
    model(ids[:, :19].cuda(), cache)
    logits = DecodeKernel(model)(ids[:, 19:].cuda(), cache)
    assert error(logits[0], theirs(ids).logits[0, -1:]) < TOLERANCES[model.dtype]


@pytest.mark.parametrize("wrong", [{"n_head": 3, "n_embd": 240}, {"n_head": 1, "n_embd": 512}])
def test_what_it_is_not_made_for_is_said_and_goes_the_usual_way(wrong):
    model = model_of(**wrong, n_layer=1).cuda()
    assert "heads of" in missing_kernel(model.config, model.storage)
    assert decode_step(model, 9999) is model
