"""Views of the stream and of neurons, held against hooks on `transformers` and plain torch."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import FABLE
from test_inspection_views import run_of
from test_model import ours

from llmcli.config import read_config
from llmcli.gpt.weights import load_model
from llmcli.inspection import attribution, mlp, residual
from llmcli.inspection.ask import Ask

TOLERANCE = 1e-4
PROMPT = "Once upon a time, there was a little girl"


def equal(found, expected, tolerance=TOLERANCE):
    return found == pytest.approx(expected, abs=tolerance, rel=tolerance)


def seen_in(theirs, ids):
    """What each module of `transformers` made of `ids`, by its name: (T, ...), logits by ""."""
    values = {}

    def keep(name):
        def hook(module, arguments, output):
            out = output[0] if isinstance(output, tuple) else output
            values[name] = getattr(out, "logits", out)[0]

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in theirs.named_modules()]
    with torch.inference_mode():
        theirs(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return values


def random_pair(save_gpt2):
    folder, theirs = save_gpt2(seed=6, activation_function="gelu_new", n_inner=40)
    return run_of(ours(folder)), theirs


def fable_pair(_):
    from transformers import GPT2LMHeadModel

    ids = list(range(100, 112))
    theirs = GPT2LMHeadModel.from_pretrained(FABLE, dtype=torch.float32).eval()
    return run_of(load_model(FABLE, read_config(FABLE)), ids), theirs


@pytest.fixture(params=[random_pair, fable_pair], ids=["random", "fable"])
def pair(request, save_gpt2):
    """A run of ours; the same model in `transformers`, and all that its modules make of the ids."""
    run, theirs = request.param(save_gpt2)
    return run, theirs, seen_in(theirs, run.ids)


# --- residual ------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 7])
def test_the_stream_is_what_transformers_adds_up(pair, position):
    run, theirs, seen = pair
    made = residual.view(run, Ask(position=position))
    stream = torch.zeros(run.config.n_embd)
    expected = []
    names = {"embed": "transformer.wte", "pos_embed": "transformer.wpe"}
    for layer in range(run.config.n_layer):
        names[f"L{layer}.attn"] = f"transformer.h.{layer}.attn"
        names[f"L{layer}.mlp"] = f"transformer.h.{layer}.mlp"
    for part, name in names.items():
        stream = stream + seen[name][position]
        expected.append((part, seen[name][position], stream))
    final = stream
    with torch.inference_mode():
        logits = theirs.lm_head(theirs.transformer.ln_f(final))
    torch.testing.assert_close(logits, seen[""][position], atol=1e-3, rtol=0)  # it is the final one
    assert [row.part for row in made.additions] == list(names)
    for row, (_, added, stream) in zip(made.additions, expected, strict=True):
        assert equal([row.added_norm, row.norm], [float(added.norm()), float(stream.norm())])
        assert equal(row.added_cosine, float(torch.cosine_similarity(added, final, dim=0)))
        assert equal(row.cosine, float(torch.cosine_similarity(stream, final, dim=0)))
    assert equal(made.additions[-1].cosine, 1.0)


def test_the_stream_after_each_layer_is_a_hidden_state(pair):
    run, theirs, _ = pair
    with torch.inference_mode():
        hidden = theirs(torch.tensor([list(run.ids)]), output_hidden_states=True).hidden_states
    made = residual.view(run, Ask(position=5))
    after = {row.part: row.norm for row in made.additions}
    parts = ["pos_embed", *(f"L{layer}.mlp" for layer in range(run.config.n_layer - 1))]
    assert equal([after[part] for part in parts], [float(h[0, 5].norm()) for h in hidden[:-1]])


def test_means_and_variances_are_those_around_each_layer_norm(pair):
    run, theirs, seen = pair
    made = residual.view(run, Ask(position=3))
    before = {}
    norms = {f"h.{n}.ln_{i}": f"L{n}.norm_{i}" for n in range(run.config.n_layer) for i in (1, 2)}
    for name, module in theirs.transformer.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(
                lambda _, arguments, name=name: before.__setitem__(name, arguments[0][0])
            )
    with torch.inference_mode():
        theirs(torch.tensor([list(run.ids)]))
    norms["ln_f"] = "norm_f"
    assert [row.norm for row in made.norms] == list(norms.values())
    for row, name in zip(made.norms, norms, strict=True):
        x, y = before[name][3], seen[f"transformer.{name}"][3]
        assert equal([row.mean_before, row.mean_after], [float(x.mean()), float(y.mean())])
        for variance, vector in ((row.variance_before, x), (row.variance_after, y)):
            assert equal(variance, float((vector - vector.mean()).square().mean()))


def test_what_is_put_into_the_stream_is_an_addition_and_all_add_up(save_gpt2):
    run = random_pair(save_gpt2)[0]
    patch = {
        "0.resid_pre": lambda x, start: x + 1,
        "1.resid_mid": lambda x, start: -x,
        "1.mlp_out": lambda x, start: 0 * x,
        "2.resid_post": lambda x, start: x.flip(-1),
    }
    changed = run_of(run.model, patch=patch)
    values = residual.tensors(changed, Ask(position=4))
    seen = {name: value[4] for name, value in values.items()}
    rows = list(residual.additions(changed, seen))
    put_in = [part for part, _, _ in rows if "resid" in part]
    assert put_in == ["L0.resid_pre", "L1.resid_mid", "L2.resid_post"]
    total = torch.zeros(run.config.n_embd)
    for _, added, stream in rows:
        total = total + added
        torch.testing.assert_close(stream, total, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(total, changed.final[4], atol=TOLERANCE, rtol=0)
    assert equal(float(rows[2][1].norm()), run.config.n_embd**0.5)


# --- mlp -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, -1])
def test_neurons_are_those_of_transformers(pair, layer):
    run, theirs, seen = pair
    layer %= run.config.n_layer
    M = run.config.mlp_dim
    made = mlp.view(run, Ask(position=6, layer=layer, rows=M, token=20))
    block = f"transformer.h.{layer}.mlp"
    pre, post = seen[f"{block}.c_fc"][6], seen[f"{block}.act"][6]
    down = theirs.transformer.h[layer].mlp.c_proj.weight.detach()  # (M, C)
    norms = (down * post[:, None]).norm(dim=-1)
    assert sorted(row.neuron for row in made.neurons) == list(range(M))
    assert [row.norm for row in made.neurons] == sorted(
        (r.norm for r in made.neurons), reverse=True
    )
    for row in made.neurons:
        n = row.neuron
        assert row.part == f"L{layer}.N{n}"
        assert equal([row.before, row.after, row.norm],
                     [float(pre[n]), float(post[n]), float(norms[n])])  # fmt: skip
    assert (made.n_neurons, made.n_rest, made.rest) == (M, 0, 0)
    assert made.n_positive == int((pre > 0).sum())
    assert equal(made.norm, float(seen[block][6].norm()))
    assert made.token.id == 20


@pytest.mark.parametrize("versus", [None, 44])
def test_a_neurons_effect_is_what_the_logit_loses_without_its_vector(pair, versus):
    """Taken off the final stream, at the scale that the final norm has with it."""
    run, theirs, seen = pair
    made = mlp.view(run, Ask(position=6, layer=1, rows=12, token=20, versus=versus))
    final = run.final[6].double()
    scale = (final.var(unbiased=False) + run.config.norm_eps).sqrt()
    norm, head = theirs.transformer.ln_f, theirs.lm_head.weight.detach().double()
    gain = norm.weight.detach().double()
    post = seen["transformer.h.1.mlp.act"][6].double()
    down = theirs.transformer.h[1].mlp.c_proj.weight.detach().double()

    def logits(x):
        return (x - x.mean()) / scale * gain @ head.T  # (V,), but for the norm's bias

    for row in made.neurons:
        added = logits(final) - logits(final - post[row.neuron] * down[row.neuron])
        expected = added[20] - (0 if versus is None else added[versus])
        assert equal(row.effect, float(expected))
        for side, order in (("for", added.argsort(descending=True)), ("against", added.argsort())):
            found = [p for p in made.promotions if p.neuron == row.neuron and p.side == side]
            assert [p.token.id for p in found] == order[: mlp.TOP].tolist()
            assert equal([p.logit for p in found], added[order[: mlp.TOP]].tolist())


@pytest.mark.parametrize("versus", [None, 44])
def test_neurons_shown_the_rest_and_the_bias_are_what_attribution_gives_the_mlp(pair, versus):
    run = pair[0]
    ask = Ask(position=6, layer=1, token=20, versus=versus)
    made = mlp.view(run, ask)
    parts = {part.part: part.value for part in attribution.view(run, ask).parts}
    neurons = sum(row.effect for row in made.neurons) + made.rest
    assert len(made.neurons) + made.n_rest == run.config.mlp_dim
    assert len(made.neurons) == mlp.ROWS
    assert equal(neurons, parts["L1.mlp"])
    assert equal(made.bias, parts["L1.mlp.bias"])
    assert equal(made.effect, neurons + made.bias)


def test_without_words_it_is_the_last_layer_and_the_likeliest_token(pair):
    run, _, seen = pair
    made = mlp.view(run, Ask(position=2))
    assert made.layer == run.config.n_layer - 1
    assert made.token.id == int(seen[""][2].argmax())


def test_an_ablated_neuron_writes_nothing(llmcli, model_folder):
    common = ["inspect", PROMPT, "-m", model_folder, "--view", "mlp", "--layer", 1, "--json"]
    plain = json.loads(llmcli(*common).stdout)["views"][0]
    strongest = plain["neurons"][0]
    done = llmcli(*common, "--rows", 500, "--ablate", strongest["part"])
    changed = json.loads(done.stdout)["views"][0]
    (same,) = (row for row in changed["neurons"] if row["neuron"] == strongest["neuron"])
    assert same["before"] == strongest["before"]
    assert same["after"] == same["norm"] == same["effect"] == 0


def test_an_mlp_that_was_replaced_is_said_to_be(llmcli, model_folder):
    common = ["inspect", PROMPT, "-m", model_folder, "--view", "mlp", "--layer", 1, "--json"]
    for change, replaced in (("L1.mlp", True), ("L0.mlp", False)):
        view = json.loads(llmcli(*common, "--ablate", change).stdout)["views"][0]
        assert any("is replaced by a change" in note for note in view["notes"]) == replaced
        assert (view["norm"] == view["effect"] == 0) == replaced


def test_tensors_are_whole(llmcli, model_folder, tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "all.safetensors"
    done = llmcli("inspect", PROMPT, "-m", model_folder, "--tensors", path, "--json", "--view",
                  "mlp", "--view", "residual", "--view", "embed")  # fmt: skip
    T = len(json.loads(done.stdout)["ids"])
    held = load_file(path)
    assert held["mlp.2.mlp_pre"].shape == held["mlp.2.mlp_post"].shape == (T, 128)
    assert held["residual.1.attn_out"].shape == held["residual.norm_f"].shape == (T, 32)
    total = held["embed.embed"] + held["embed.pos_embed"]
    assert torch.equal(held["embed.sum"], total)
    assert torch.equal(held["residual.0.resid_pre"], total)
