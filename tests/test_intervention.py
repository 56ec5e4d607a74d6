"""Changed forwards, held against changed weights and against hand-written torch."""

from __future__ import annotations

import math
import time

import pytest
import torch
from conftest import FABLE
from safetensors.torch import save_file
from test_model import ours

from llmcli.config import Sampling
from llmcli.errors import IntegrityError, NotFoundError, UsageError
from llmcli.gpt.cache import KVCache
from llmcli.gpt.generation import generate
from llmcli.gpt.sampling import generator_for
from llmcli.gpt.tap import Probe
from llmcli.inspection.grammar import Entry, Place
from llmcli.inspection.intervention import patches
from llmcli.inspection.plan import Prompt, plan, positions, read
from llmcli.tokenizer import Tokenizer

IDS = [5, 17, 33, 8, 60, 2, 71]
OTHER = [9, 44, 12, 80, 3, 3, 21, 50]
TEXTS = {"other": OTHER, "love": [4, 6], "hate": [7, 8, 9], "same": IDS}


@pytest.fixture
def model(save_gpt2):
    return ours(save_gpt2(n_layer=2)[0])


def planned(model, ids=IDS, reference=(), n_prefix=0, steer_prompt=False, **options):
    prompt = Prompt(ids, TEXTS.__getitem__, lambda id: b"<%d>" % id, n_prefix, reference)
    return plan(read(model.config, steer_prompt=steer_prompt, **options), prompt, model.config)


def made(model, ids=IDS, **options):
    return patches(model, planned(model, ids, **options), ids)


@torch.inference_mode()
def logits(model, ids=IDS, **options):
    """The logits (T, V) of `ids` with the changes in force."""
    probe = Probe(model.config.n_layer, patch=made(model, ids, **options))
    return model(torch.tensor([ids]), tap=probe)[0]


@torch.inference_mode()
def by_hand(model, ids=IDS, **changes):
    """The forward written out once more; a change maps (layer, value) to the value to go on with.

    Also what was there: `seen`, by layer and point.
    """

    def at(name, layer, value):
        value = changes[name](layer, value) if name in changes else value
        seen[layer, name] = value
        return value

    seen = {}
    T, H, D = len(ids), model.config.n_head, model.config.head_dim
    x = model.token_embedding.weight[list(ids)]
    x = x + at("pos_embed", None, model.position_embedding.weight[:T])
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for layer, block in enumerate(model.blocks):
        qkv = block.attn.qkv(block.norm_1(x))
        q, k, v = (part.view(T, H, D).transpose(0, 1) for part in qkv.split(H * D, dim=-1))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(D)).masked_fill(future, -math.inf)
        z = at("z", layer, at("scores", layer, scores).softmax(-1) @ v)
        out = block.attn.out(z.transpose(0, 1).reshape(T, H * D))
        x = at("resid_mid", layer, x + at("attn_out", layer, out))
        post = at("mlp_post", layer, block.mlp.activation(block.mlp.up(block.norm_2(x))))
        x = at("resid_post", layer, x + at("mlp_out", layer, block.mlp.down(post)))
    return model.head(model.norm_f(x)), seen


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol * float(theirs.abs().max()), rtol=0)


def only(layer, function):
    return lambda here, value: function(value.clone()) if here == layer else value


def setting(index, fill):
    def function(value):
        value[index] = fill
        return value

    return function


# --- ablation ------------------------------------------------------------------------------------


def test_hand_written_torch_is_the_model(model):
    with torch.inference_mode():
        close(model(torch.tensor([IDS]))[0], by_hand(model)[0])


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 3)])
def test_ablating_a_head_equals_zeroing_its_rows_of_w_o(save_gpt2, tmp_path, layer, head):
    folder, theirs = save_gpt2(n_layer=2)
    expected = logits(ours(folder), ablate=[f"L{layer}.H{head}"])
    rows = slice(8 * head, 8 * head + 8)
    with torch.no_grad():
        theirs.transformer.h[layer].attn.c_proj.weight[rows] = 0  # Conv1D: (in, out)
    theirs.save_pretrained(tmp_path / "changed")
    with torch.inference_mode():
        close(expected, ours(tmp_path / "changed")(torch.tensor([IDS]))[0])
        close(expected, theirs(torch.tensor([IDS])).logits[0])


def test_ablating_all_heads_leaves_the_projections_bias(model):
    bias = model.blocks[0].attn.out.bias
    by_bias = by_hand(model, attn_out=only(0, bias.expand_as))[0]
    close(logits(model, ablate=["L0.H*"]), by_bias)
    close(logits(model, ablate=["L0.attn"]), by_hand(model, attn_out=only(0, torch.zeros_like))[0])


@pytest.mark.parametrize(
    ("entry", "point", "layer", "index"),
    [
        ("L0.H1", "z", 0, 1),
        ("L1.H*", "z", 1, slice(None)),
        ("L1.N9", "mlp_post", 1, (..., 9)),
        ("L0.attn", "attn_out", 0, ...),
        ("L1.mlp", "mlp_out", 1, ...),
        ("pos_embed", "pos_embed", None, ...),
    ],
)
def test_zero_and_mean_equal_hand_written_torch(model, entry, point, layer, index):
    value = by_hand(model)[1][layer, point]
    mean = value.mean(dim=-2, keepdim=True).expand_as(value)[index]
    for fill, name in ((0, ""), (mean, ":mean")):
        expected = by_hand(model, **{point: only(layer, setting(index, fill))})[0]
        close(logits(model, ablate=[entry + name]), expected)


def test_a_mean_over_a_reference_is_over_all_its_pieces(model):
    pieces = (tuple(OTHER), (1, 2, 3))
    values = [by_hand(model, ids)[1][1, "mlp_out"] for ids in pieces]
    mean = torch.cat(values).mean(dim=0)
    expected = by_hand(model, mlp_out=only(1, setting(..., mean)))[0]
    close(logits(model, ablate=["L1.mlp:mean"], reference=pieces), expected)


def test_ablating_a_layer_leaves_the_stream_as_it_came(model):
    probe = Probe(2, record=["1.resid_pre", "1.resid_post"], patch=made(model, ablate=["L1"]))
    with torch.inference_mode():
        model(torch.tensor([IDS]), tap=probe)
    assert torch.equal(probe.values["1.resid_post"], probe.values["1.resid_pre"])


# --- knock-out -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "layers", "heads", "edges"),
    [
        ("L1.H2: 5 -> 2", [1], [2], [(5, 2)]),
        ("5 -> 2", [0, 1], range(4), [(5, 2)]),
        ("L0: * -> 3", [0], range(4), [(q, 3) for q in (4, 5, 6)]),
        ("L0.H1: 4 -> *", [0], [1], [(4, k) for k in range(4)]),
        ("L1: * -> *", [1], range(4), [(q, k) for q in range(7) for k in range(q)]),
        ('"<60>" -> "<17>"', [0, 1], range(4), [(4, 1)]),
        ("L0: 4 -> 4", [0], range(4), [(4, 4)]),
    ],
)
def test_a_knock_out_equals_hand_written_torch(model, entry, layers, heads, edges):
    def blocked(layer, scores):
        scores = scores.clone()
        for head in heads if layer in layers else ():
            for query, key in edges:
                scores[head, query, key] = -math.inf
        return scores

    expected, seen = by_hand(model, scores=blocked)
    close(logits(model, knockout=[entry]), expected)
    probe = Probe(2, record=["*.pattern"], patch=made(model, knockout=[entry]))
    with torch.inference_mode():
        model(torch.tensor([IDS]), tap=probe)
    for layer in range(2):
        pattern = probe.values[f"{layer}.pattern"][0]
        close(pattern, seen[layer, "scores"].softmax(-1))
        close(pattern.sum(-1), torch.ones(4, 7))  # renormalised


# --- steering ------------------------------------------------------------------------------------


def mean_of(model, text, layer):
    return by_hand(model, TEXTS[text])[1][layer, "resid_post"].mean(dim=0)


@pytest.mark.parametrize("steer_prompt", [False, True])
def test_steering_equals_hand_written_torch(model, steer_prompt):
    vector = mean_of(model, "love", 0) - mean_of(model, "hate", 0)
    places = torch.ones(7, 1) if steer_prompt else torch.eye(7)[-1][:, None]
    expected = by_hand(model, resid_post=only(0, lambda x: x + places * 3.5 * vector))[0]
    entry = '"love" - "hate" @ L0 * 3.5'
    close(logits(model, steer=[entry], steer_prompt=steer_prompt), expected)


def test_one_text_is_held_against_the_prompt_or_the_reference(model):
    for reference, others in (((), IDS), ((tuple(OTHER),), OTHER)):
        TEXTS["others"] = others
        vector = mean_of(model, "love", 1) - mean_of(model, "others", 1)
        expected = by_hand(model, resid_post=only(1, lambda x, v=vector: x + 2 * v))[0]
        options = {"steer": ['"love" @ L1 * 2'], "steer_prompt": True, "reference": reference}
        close(logits(model, **options), expected)


def test_what_the_tokenizer_puts_before_a_text_is_no_part_of_its_mean(model):
    value = by_hand(model, TEXTS["hate"])[1][1, "resid_post"][1:].mean(dim=0)
    value = value - by_hand(model, TEXTS["love"])[1][1, "resid_post"][1:].mean(dim=0)
    expected = by_hand(model, resid_post=only(1, lambda x: x + value))[0]
    steer = ['"hate" - "love" @ L1 * 1']
    close(logits(model, steer=steer, steer_prompt=True, n_prefix=1), expected)


def test_a_vector_from_a_file(model, tmp_path):
    vector = torch.randn(32)
    save_file({"v": vector}, tmp_path / "v.safetensors")
    expected = by_hand(model, resid_post=only(0, lambda x: x - 2 * vector))[0]
    steer = [f"{tmp_path}/v.safetensors @ L0 * -2"]
    close(logits(model, steer=steer, steer_prompt=True), expected)


def test_a_vector_that_does_not_fit_is_refused(model, tmp_path):
    path = tmp_path / "v.safetensors"
    steer = [f"{path} @ L0 * 1"]
    with pytest.raises(NotFoundError):
        made(model, steer=steer)
    save_file({"v": torch.ones(31)}, path)
    with pytest.raises(UsageError, match=r"\[31\].*\[32\]"):
        made(model, steer=steer)
    save_file({"v": torch.ones(32), "w": torch.ones(32)}, path)
    with pytest.raises(UsageError, match="one vector"):
        made(model, steer=steer)
    save_file({"v": torch.full((32,), math.nan)}, path)
    with pytest.raises(IntegrityError, match="NaN"):
        made(model, steer=steer)
    path.write_bytes(b"no such thing")
    with pytest.raises(IntegrityError):
        made(model, steer=steer)


@pytest.mark.parametrize(
    "options",
    [
        {"steer": ['"love" - "hate" @ L0 * 2']},
        {"steer": ['"same" @ L0 * 2'], "reference": ((4, 6),)},
        {"ablate": ["L1.mlp:mean"], "reference": ((4, 6),)},
        {"patch": ['L0.resid_mid@1 from "love"']},
    ],
    ids=str,
)
def test_another_text_that_gives_no_numbers_is_refused_before_the_prompt_is_read(model, options):
    with torch.no_grad():
        model.token_embedding.weight[TEXTS["love"][0]] = math.nan
    with pytest.raises(IntegrityError, match="not numbers"):
        made(model, **options)


# --- patching ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "name", "layer"),
    [
        ("L0.resid_mid", "resid_mid", 0),
        ("L1.mlp_out", "mlp_out", 1),
        ("pos_embed", "pos_embed", None),
    ],
)  # fmt: skip
def test_a_patch_equals_hand_written_torch(model, point, name, layer):
    value = by_hand(model, OTHER)[1][layer, name]
    expected = by_hand(model, **{name: only(layer, setting(5, value[5]))})[0]
    close(logits(model, patch=[f'{point}@5 from "other"']), expected)
    expected = by_hand(model, **{name: only(layer, setting(..., value[:7]))})[0]
    close(logits(model, patch=[f'{point}@* from "other"']), expected)


def test_a_head_is_patched_alone(model):
    value = by_hand(model, OTHER)[1][1, "z"]
    expected = by_hand(model, z=only(1, setting((2, 5), value[2, 5])))[0]
    close(logits(model, patch=['L1.H2@5 from "other"']), expected)
    expected = by_hand(model, z=only(1, setting((slice(None), 5), value[:, 5])))[0]
    close(logits(model, patch=['L1.z@-2 from "other"']), expected)


# --- nothing, together, cached -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"steer": ['"love" - "hate" @ L0 * 0'], "steer_prompt": True},
        {"steer": ['"love" @ L1 * 0']},
        {"patch": ['L0.resid_mid@* from "same"', 'L1.H2@3 from "same"']},
        {"patch": ['embed@2 from "same"', 'L1.q@4 from "same"', 'L1.mlp_post@0 from "same"']},
    ],
    ids=str,
)
def test_steering_by_nothing_and_patching_with_itself_change_no_bit(model, options):
    with torch.inference_mode():
        assert torch.equal(logits(model, **options), model(torch.tensor([IDS]))[0])


def test_nothing_changes_no_logit_where_attention_is_explicit_either(model):
    """Whether somebody looks at the scores, or a knock-out has them made."""
    patch = made(model, steer=['"love" @ L1 * 0'], patch=['L0.H2@* from "same"'])
    probe = Probe(2, record=["*.scores"], patch=patch)
    with torch.inference_mode():
        close(model(torch.tensor([IDS]), tap=probe)[0], model(torch.tensor([IDS]))[0])
        both = logits(model, knockout=["5 -> 2"], steer=['"love" @ L1 * 0'])
        assert torch.equal(both, logits(model, knockout=["5 -> 2"]))


def test_the_order_is_patch_ablate_knock_out_steer(model):
    """At resid_post steering comes on top of a patch, at z an ablation on top of one."""
    other = by_hand(model, OTHER)[1]
    vector = mean_of(model, "love", 0) - mean_of(model, "hate", 0)

    def z(value):
        value[:, 5] = other[0, "z"][:, 5]
        value[1] = 0
        return value

    def resid_post(value):
        value[5] = other[0, "resid_post"][5]
        return value + vector

    expected = by_hand(model, z=only(0, z), resid_post=only(0, resid_post))[0]
    options = {
        "steer": ['"love" - "hate" @ L0 * 1'],
        "ablate": ["L0.H1"],
        "patch": ['L0.resid_post@5 from "other"', 'L0.z@5 from "other"'],
    }
    close(logits(model, **options, steer_prompt=True), expected)


EVERYTHING = [
    {"ablate": ["L0.H1", "L1.mlp:mean"]},
    {"ablate": ["pos_embed", "L1.N3"]},
    {"knockout": ["L0.H1: 5 -> 2", '* -> "<17>"', "L1: 6 -> *", "L1.H0: * -> *"]},
    {"steer": ['"love" - "hate" @ L0 * 2']},
    {"steer": ['"love" @ L0 * 2'], "steer_prompt": True},
    {"patch": ['L0.resid_mid@5 from "other"', 'L1.H2@* from "other"', 'L1.v@6 from "other"']},
]


@pytest.mark.parametrize("options", EVERYTHING, ids=str)
@pytest.mark.parametrize("cut", [1, 4, 6])
@torch.inference_mode()
def test_cached_and_uncached_agree(model, options, cut):
    """Prefilled in two parts, then token by token beyond the prompt, and in one forward."""
    ids = [*IDS, 30, 31, 32]
    patch = made(model, **options)
    full = model(torch.tensor([ids]), tap=Probe(2, patch=patch))[0]
    plain = model(torch.tensor([ids]))[0]
    assert not torch.allclose(full[-1], plain[-1], atol=1e-4)
    cache, rows = KVCache(model.config, 1, 10), []
    for part in (ids[:cut], ids[cut:7], *([id] for id in ids[7:])):
        rows.append(model(torch.tensor([part]), cache, Probe(2, patch=patch))[0])
    close(torch.cat(rows), full)


@pytest.mark.parametrize("options", EVERYTHING, ids=str)
def test_generated_texts_agree_with_and_without_cache_and_in_batches(model, options):
    def texts(n, **more):
        tap = Probe(2, patch=made(model, **options))
        draws = [generator_for(1, row) for row in range(n)]
        steps = generate(model, [IDS] * n, Sampling(), draws, max_new_tokens=8, tap=tap, **more)
        rows = [[] for _ in range(n)]
        for step in steps:
            rows[step.row].append(step.id)
        return rows

    assert texts(3) == texts(3, use_cache=False)
    assert texts(3)[0] == texts(1)[0]


def test_nothing_stays_on_the_model(model):
    with torch.inference_mode():
        before = model(torch.tensor([IDS]))
        logits(model, ablate=["L0"], steer=['"love" @ L1 * 5'])
        assert torch.equal(model(torch.tensor([IDS])), before)


def test_a_text_that_stands_everywhere_is_knocked_out_in_a_moment(model):
    """All pairs of 400 places: what is asked of each must not be asked of each pair of them."""
    ids = [1] + [5] * 400
    start = time.perf_counter()
    made_plan = planned(model, ids, knockout=['"<5>" -> "<5>"'])
    hidden = patches(model, made_plan, ids)["0.scores"](torch.zeros(1, 4, 401, 401), 0).isinf()
    assert time.perf_counter() - start < 5
    assert torch.equal(hidden[0, 0, 1:, 1:], torch.ones(400, 400, dtype=torch.bool).tril())
    assert not hidden[..., 0].any()


def test_a_word_is_found_where_it_stands_alone_in_any_script():
    tokenizer = Tokenizer.from_folder(FABLE)

    def where(text, word):
        ids = tokenizer.encode(text)
        prompt = Prompt(ids, tokenizer.encode, tokenizer.token_bytes)
        found = positions(Place(word, 0), Entry("--knockout", word), prompt)
        return b"".join(tokenizer.token_bytes(ids[i]) for i in found).decode()

    assert where("un ami né de sa fiancée", "de").strip() == "de"
    assert "né" in where("un ami né de sa fiancée", "né")
    assert where("कि क", "क").strip() == "क"
    for text, word in (("Er ist müde.", "de"), ("une fiancée née", "e"), ("bear", "ear"),
                       ("cafe\u0301", "cafe"), ("कीमत", "की")):  # fmt: skip
        with pytest.raises(UsageError, match="does not hold this text"):
            where(text, word)
