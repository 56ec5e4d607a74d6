"""The view steer: vectors from examples against plain torch, sweeps against `generate`."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_changes import PROMPT
from test_cli import assert_fails
from test_inspect_changes import views  # noqa: F401
from test_intervention import TEXTS, by_hand, planned
from test_model import ours

from llmcli.inspection import direction
from llmcli.inspection.intervention import vectors_of
from llmcli.inspection.plan import Example
from llmcli.inspection.run import Run
from llmcli.inspection.steer import random_like, vector_view

POSITIVE = ((4, 6), (11, 3, 20), (9, 9, 9, 31))
NEGATIVE = ((7, 8, 9), (2,), (50, 1))


@pytest.fixture
def model(save_gpt2):
    return ours(save_gpt2(n_layer=2)[0])


def examples(**sides):
    return {
        side: [Example(line, str(ids), ids) for line, ids in enumerate(texts, 1)]
        for side, texts in sides.items()
    }


def made(model, method="mean", layer=1, positive=POSITIVE, negative=NEGATIVE, n_prefix=0):
    run = Run(model, (), lambda id: b"%d" % id, n_prefix=n_prefix)
    return vector_view(run, examples(positive=positive, negative=negative), method, layer, None)


def means(model, texts, layer):
    """Each text's mean resid_post, by hand: (N, C)."""
    return torch.stack([by_hand(model, ids)[1][layer, "resid_post"].mean(0) for ids in texts])


# --- a vector from examples ----------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
def test_the_mean_difference_equals_hand_written_torch(model, layer):
    _, vector = made(model, layer=layer)
    expected = means(model, POSITIVE, layer).mean(0) - means(model, NEGATIVE, layer).mean(0)
    torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)


def test_of_one_example_each_it_is_the_difference_of_two_texts(model):
    _, vector = made(model, positive=[TEXTS["love"]], negative=[TEXTS["hate"]])
    (same,) = vectors_of(model, planned(model, steer=['"love" - "hate" @ L1 * 1']))
    torch.testing.assert_close(vector, same, atol=1e-6, rtol=0)
    _, apart = made(model, positive=[TEXTS["love"]], negative=[TEXTS["hate"]], n_prefix=1)
    plan = planned(model, steer=['"love" - "hate" @ L1 * 1'], n_prefix=1)
    torch.testing.assert_close(apart, vectors_of(model, plan)[0], atol=1e-6, rtol=0)


def test_the_first_component_is_the_main_axis_of_the_pairs(model):
    _, vector = made(model, "pca")
    differences = (means(model, POSITIVE, 1) - means(model, NEGATIVE, 1)).double()
    axis = torch.linalg.eigh(differences.T @ differences).eigenvectors[:, -1]
    expected = axis * (axis @ differences.mean(0))
    torch.testing.assert_close(vector.double(), expected, atol=1e-5, rtol=0)
    spread = (differences @ axis).square().sum()
    for other in torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q.T:
        assert spread >= (differences @ other).square().sum()


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_a_vector_points_from_the_negative_to_the_positive(model, method):
    view, vector = made(model, method)
    assert vector @ (means(model, POSITIVE, 1).mean(0) - means(model, NEGATIVE, 1).mean(0)) > 0
    _, opposite = made(model, method, positive=NEGATIVE, negative=POSITIVE)
    torch.testing.assert_close(opposite, -vector, atol=1e-5, rtol=0)
    assert view.norm == pytest.approx(float(vector.norm()), rel=1e-5)
    lengths = [by_hand(model, ids)[1][1, "resid_post"].norm(dim=1).mean()
               for ids in (*POSITIVE, *NEGATIVE)]  # fmt: skip
    assert view.stream_norm == pytest.approx(float(sum(lengths)) / len(lengths), rel=1e-5)


def test_examples_lie_along_the_vector_as_they_are_told_to(model):
    view, vector = made(model)
    positive, negative = means(model, POSITIVE, 1), means(model, NEGATIVE, 1)
    middle = (positive.mean(0) + negative.mean(0)) / 2
    expected = (torch.cat([positive, negative]) - middle) @ vector / vector.norm()
    assert [row.place for row in view.examples] == pytest.approx(expected.tolist(), abs=1e-4)
    assert view.apart == int((expected[:3] > 0).sum() + (expected[3:] < 0).sum())
    assert [row.norm for row in view.layers] == pytest.approx(
        [float(made(model, layer=layer)[1].norm()) for layer in range(2)], rel=1e-5
    )


@pytest.mark.parametrize("make", direction.METHODS.values())
def test_held_out_examples_are_placed_by_vectors_that_never_saw_them(make):
    torch.manual_seed(0)
    positive, negative = torch.randn(4, 6) + 1, torch.randn(4, 6)
    places = direction.held_out(make, positive, negative)
    assert places is not None
    for i in range(4):
        rest = [torch.cat([x[:i], x[i + 1 :]]) for x in (positive, negative)]
        vector = make(*rest)
        middle = (rest[0].mean(0) + rest[1].mean(0)) / 2
        for found, x in zip(places, (positive, negative), strict=True):
            assert float(found[i]) == pytest.approx(
                float((x[i] - middle) @ vector / vector.norm()), abs=1e-5
            )


def test_held_out_places_say_that_a_vector_of_nothing_holds_for_nothing():
    """Random points in many dimensions: all apart on the vector that they make, half held out."""
    torch.manual_seed(1)
    positive, negative = torch.randn(40, 300), torch.randn(40, 300)
    vector = direction.mean_difference(positive, negative)
    seen = [direction.along(vector, positive, negative, x) for x in (positive, negative)]
    unseen = direction.held_out(direction.mean_difference, positive, negative)
    assert unseen is not None
    assert direction.n_apart(*seen) > 70
    assert 20 < direction.n_apart(*unseen) < 60
    assert direction.held_out(direction.mean_difference, positive[:1], negative) is None


def test_the_nearest_tokens_are_those_of_the_unembedding(model):
    view, vector = made(model)
    read = model.norm_f.weight * (vector - vector.mean())
    cosines = torch.nn.functional.cosine_similarity(model.head.weight, read[None], dim=-1)
    toward, away = (
        [near for near in view.nearest if near.side == side] for side in ("positive", "negative")
    )
    assert [near.token.id for near in toward] == cosines.topk(5).indices.tolist()
    assert [near.token.id for near in away] == (-cosines).topk(5).indices.tolist()
    assert [near.cosine for near in toward] == pytest.approx(cosines.topk(5).values.tolist(), 1e-4)


# --- as users meet it ----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    for name, text in (("A", "She had a red ball.\n\nLily had.\r\n"), ("B", "The end.\nOnce\n")):
        (tmp_path / f"{name}.txt").write_text(text, newline="")
    return ["--positive", tmp_path / "A.txt", "--negative", tmp_path / "B.txt"]


@pytest.fixture
def steer(llmcli, model_folder):
    def run(*arguments):
        return llmcli("inspect", "-m", model_folder, "--view", "steer", *arguments)

    return run


def test_a_kept_vector_steers_as_the_texts_that_it_was_made_from(
    steer, files, llmcli, model_folder, tmp_path
):
    path = tmp_path / "v.safetensors"
    for name, text in (("A", "She had a red ball."), ("B", "The end.")):
        (tmp_path / f"{name}.txt").write_text(text)
    done = steer(*files, "--layer", -2, "--save-vector", path, "--json")
    assert done.exit_code == 0, done.stderr
    view = json.loads(done.stdout)["views"][0]
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["vector"]
        assert file.metadata() | {"model": ""} == {"layer": "1", "method": "mean", "model": ""}
        assert float(file.get_tensor("vector").norm()) == pytest.approx(view["norm"], rel=1e-5)
    texts = [
        llmcli("generate", PROMPT, "-m", model_folder, "--temperature", 0, "--max-new-tokens", 12,
               "--steer", f"{what} @ L1 * 5").stdout
        for what in (path, '"She had a red ball." - "The end."')
    ]  # fmt: skip
    assert texts[0] == texts[1] != ""


def test_lines_are_examples_and_empty_ones_are_none(steer, files):
    view = json.loads(steer(*files, "--layer", 0, "--json").stdout)["views"][0]
    assert [(row["side"], row["line"], row["text"]) for row in view["examples"]] == [
        ("positive", 1, "She had a red ball."), ("positive", 3, "Lily had."),
        ("negative", 1, "The end."), ("negative", 2, "Once"),
    ]  # fmt: skip


@pytest.mark.parametrize("draw", [(), ("--seed", 5), ("--temperature", 1.5)], ids=str)
def test_a_sweeps_texts_and_figures_are_those_of_generate(draw, views, llmcli, model_folder):  # noqa: F811
    spec = '"ball" - "girl" @ L1 *'
    more = ["--ablate", "L2.H0", "--max-new-tokens", 9, *draw]
    view = views("--view", "steer", "--steer", f"{spec} 2", "--sweep", "0,1,-3", *more)["views"][0]
    assert view["greedy"] == (not draw)
    assert [trial["strength"] for trial in view["trials"]] == [0, 2, -6]
    for trial in view["trials"]:
        how = draw or ("--temperature", 0)
        how = how if "--seed" in how else (*how, "--seed", 0)
        done = llmcli("generate", PROMPT, "-m", model_folder, "--json", "--baseline", *more[:4],
                      "--dtype", "float32", *how,
                      "--steer", f"{spec} {trial['strength']}")  # fmt: skip
        value = json.loads(done.stdout)
        told = value["comparisons"][0]
        assert trial["text"] == value["samples"][0]["text"]
        assert view["untouched_text"] == value["baseline"]["samples"][0]["text"]
        kl = told["kl_bits"]
        assert trial["kl_bits"] == pytest.approx(sum(kl) / len(kl), abs=1e-5)
        assert trial["perplexity"] == pytest.approx(told["perplexity"], rel=1e-5)
        assert view["untouched_perplexity"] == pytest.approx(told["baseline_perplexity"], rel=1e-5)
        assert trial["norm"] == pytest.approx(abs(trial["strength"]) * view["norm"], rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        ["--steer", '"ball" @ L1 * 5'],  # held against the prompt, as a mean is taken over it
        ["--steer", '"ball" - "girl" @ L1 * 0.000001', "--ablate", "L1:mean"],
    ],
    ids=" ".join,
)
def test_a_sweep_of_a_recorded_step_takes_means_over_its_prompt(
    changes, steer, llmcli, model_folder, tmp_path
):
    trace = tmp_path / "run.jsonl"
    llmcli("generate", PROMPT, "-m", model_folder, "--max-new-tokens", 9, "--seed", 1, "--trace",
           trace)  # fmt: skip
    step = ["--trace", trace, "--step", 8, "--json", "--dtype", "float32", *changes,
            "--steer-prompt"]  # fmt: skip
    tried = steer(*step, "--sweep", "1", "--max-new-tokens", 1, "--temperature", 0)
    (trial,) = json.loads(tried.stdout)["views"][0]["trials"]
    change = llmcli("inspect", "-m", model_folder, "--view", "change", *step)
    expected = json.loads(change.stdout)["views"][0]["kl_bits"]
    assert expected > 0.01
    assert trial["kl_bits"] == pytest.approx(expected, rel=1e-3)


def test_strength_0_is_the_untouched_text_for_the_control_too(views):  # noqa: F811
    view = views("--view", "steer", "--steer", '"ball" @ L1 * 1', "--sweep", "0,50")["views"][0]
    none, strong = view["trials"]
    assert none["text"] == none["control_text"] == view["untouched_text"]
    assert max(none["kl_bits"], none["control_kl_bits"]) < 1e-5
    assert none["perplexity"] == view["untouched_perplexity"]
    assert min(strong["kl_bits"], strong["control_kl_bits"]) > 0.1


def test_the_control_is_as_long_as_the_vector_and_points_elsewhere():
    torch.manual_seed(0)
    vector = 7 * torch.randn(500)
    control = random_like(vector, 3)
    assert float(control.norm()) == pytest.approx(float(vector.norm()), rel=1e-5)
    assert abs(float(torch.cosine_similarity(vector, control, dim=0))) < 0.2
    assert torch.equal(control, random_like(vector, 3))
    assert len(random_like(vector, 10**30)) == 500  # a seed may be any number
    assert not torch.equal(control, random_like(vector, 4))


def test_baseline_beside_a_sweep_is_in_it_already(views):  # noqa: F811
    document = views("--view", "steer", "--steer", '"ball" @ L1 * 1', "--sweep", "1",
                     "--max-new-tokens", 3, "--baseline")  # fmt: skip
    assert [view["view"] for view in document["views"]] == ["steer", "change"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_pictures_fit(columns, steer, files, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    (tmp_path / "A.txt").write_text("She had \x1b[31m a 大きな ball. " + "\nLily\n")
    for options, said in (
        ([*files, "--layer", 1], "nearest tokens"),
        ([PROMPT, "--steer", '"ball" @ L1 * 1', "--max-new-tokens", 9], "random, 2"),
    ):
        done = steer(*options, "--color", "always", "--save", tmp_path / "x.svg")
        assert done.exit_code == 0, done.stderr
        plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
        assert said in plain
        assert max(map(len, plain.splitlines())) <= columns
        assert "\x1b" not in plain
        assert "\x1b" not in steer(*options).stdout
        assert "steer" in (tmp_path / "x.svg").read_text()


SPEC = ["--steer", '"ball" @ L1 * 1']


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([PROMPT], "needs one --steer, and has 0"),
        ([PROMPT, *SPEC, *SPEC], "has 2"),
        ([PROMPT, *SPEC, "--sweep", "1,two"], "'two' is not a strength"),
        ([PROMPT, *SPEC, "--sweep", ""], "'' is not a strength"),
        ([PROMPT, *SPEC, "--sweep", "nan"], "not a strength"),
        ([PROMPT, *SPEC, "--sweep", "1e7"], "at most 1000000"),
        ([PROMPT, *SPEC, "--sweep", "1," * 200 + "1"], "at most 100 strengths"),
        ([PROMPT, *SPEC, "--method", "pca"], "--method needs --positive"),
        ([PROMPT, *SPEC, "--save-vector", "x.safetensors"], "--save-vector needs --positive"),
        (["FILES"], "--positive needs --layer"),
        (["FILES", "--layer", 3], "--layer 3 does not exist.*3 layers.*\n.*from 0 to 2"),
        (["FILES", "--layer", 0, PROMPT], "needs no prompt"),
        (["FILES", "--layer", 0, "--view", "lens"], "stands alone"),
        (["FILES", "--layer", 0, *SPEC], "--steer is for one"),
        (["FILES", "--layer", 0, "--sweep", "1"], "--sweep is for one"),
        (["FILES", "--layer", 0, "--save-vector", "x.txt"], "must end in .safetensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_the_model_is_loaded(
    options, said, steer, files, monkeypatch
):
    monkeypatch.setattr("llmcli.gpt.weights.load_model", pytest.fail)
    given = [part for o in options for part in (files if o == "FILES" else [o])]
    assert_fails(steer(*given), 2, said)


@pytest.mark.parametrize(
    ("data", "more", "code", "said"),
    [
        (None, [], 3, "cannot be read"),
        (b" \n\n", [], 2, "is empty"),
        (b"a\n\xff", [], 2, "not UTF-8: byte 0xff at offset 2"),
        (b"a\n" + b"xyz " * 60, [], 2, "--positive: line 2 has .* tokens; the context holds 64"),
        (b"a\nb\nc\n", ["--method", "pca"], 2, "3 positive examples and 2 negative"),
        (b"The end.\nOnce\n", [], 2, "nothing to steer by"),
    ],
)
def test_examples_that_make_no_vector_are_refused(data, more, code, said, steer, files):
    if data is None:
        files[1].unlink()
    else:
        files[1].write_bytes(data)
    assert_fails(steer(*files, "--layer", 0, *more), code, said)


def test_examples_that_give_no_numbers_are_no_vector(steer, files, copied):
    weights = load_file(copied / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.bias"][0] = float("nan")
    save_file(weights, copied / "model.safetensors")
    assert_fails(steer(*files, "--layer", 0, "-m", copied), 5, "not numbers")


def test_one_example_each_makes_a_vector_without_a_held_out_score(steer, files):
    files[1].write_text("She had a red ball.")
    files[3].write_text("The end.")
    view = json.loads(steer(*files, "--layer", 0, "--json").stdout)["views"][0]
    assert view["held_out_apart"] is None
    assert view["apart"] == 2
    assert steer(*files, "--layer", 0, "--color", "always").exit_code == 0


def test_a_vector_of_16_bits_says_so_and_is_close(steer, files):
    both = [json.loads(steer(*files, "--layer", 1, "--json", "--dtype", dtype).stdout)["views"][0]
             for dtype in ("float32", "bfloat16")]  # fmt: skip
    assert "computed in bfloat16" in both[1]["notes"][-1]
    assert both[1]["norm"] == pytest.approx(both[0]["norm"], rel=0.05)
