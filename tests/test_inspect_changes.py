"""`inspect` of a changed run: every view shows it, and its sums still close."""

from __future__ import annotations

import json
import re

import inspect_schema
import jsonschema
import pytest
import torch
from test_changes import CHANGES, PROMPT
from test_cli import assert_fails

from llmcli.inspection.catalogue import VIEWS

NEEDY = ("patching", "head", "circuits")  # a second prompt, or to know which head
COMPUTED = [name for name in VIEWS if name not in ("model", *NEEDY)]
EVERYWHERE = [
    *CHANGES,
    ["--ablate", "L0", "--ablate", "L2.attn:mean"],
    ["--patch", 'L0.resid_pre@2 from "Tom had a"', "--patch", 'L2.resid_post@2 from "A red ball"'],
    ["--patch", 'embed@1 from "Tom had a"', "--knockout", "L1.H0: * -> *"],
]  # fmt: skip


@pytest.fixture
def views(llmcli, model_folder):
    """Run `inspect --json` on the random model; its object, checked against the schema."""

    def run(*arguments, prompt=PROMPT):
        done = llmcli("inspect", prompt, "-m", model_folder, "--json", "--quiet", *arguments)
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        jsonschema.validate(document, inspect_schema.schema())
        return document

    return run


def all_views():
    return [part for name in COMPUTED for part in ("--view", name)]


def test_every_view_shows_the_changed_run_and_closes_its_sums(views):
    """`check` and `attribution` fail by themselves where anything does not add up."""
    plain = views(*all_views())
    assert "changes" not in plain
    for change in EVERYWHERE:
        changed = views(*all_views(), *change)
        entries = zip(change[::2], change[1::2], strict=False)
        assert changed["changes"] == [f"{option} {entry}" for option, entry in entries]
        for here, there in zip(changed["views"], plain["views"], strict=True):
            assert here != there, here["view"]
        by_name = {view["view"]: view for view in changed["views"]}
        assert by_name["check"]["passed"]
        assert by_name["change"]["kl_bits"] > 0


def test_the_next_token_is_what_generate_would_say(views, llmcli, model_folder):
    for change in EVERYWHERE[1:5]:
        inspected = views(*change)["views"][0]["candidates"][0]
        done = llmcli("generate", PROMPT, "-m", model_folder, "--temperature", 0, "--json",
                      "--max-new-tokens", 1, *change)  # fmt: skip
        assert json.loads(done.stdout)["samples"][0]["tokens"][0]["id"] == inspected["token"]["id"]


def test_replaced_outputs_and_what_was_put_in_are_parts_of_the_logit(views):
    change = ["--ablate", "L1.attn", "--steer", '"ball" - "girl" @ L2 * 3']
    parts = {part["part"]: part["value"]
             for part in views("--view", "attribution", *change)["views"][0]["parts"]}  # fmt: skip
    assert parts["L1.attn"] == 0
    assert parts["L2.resid_post"] != 0
    assert "L1.H0" not in parts
    assert "L1.attn.bias" not in parts
    assert "L0.H0" in parts


def test_change_tells_how_far_the_stream_moved(views):
    view = views("--view", "change", "--ablate", "L1.mlp")["views"][0]
    shares = [row["share"] for row in view["layers"]]
    assert shares[:2] == [0, 0]
    assert min(shares[2:]) > 0
    assert [row["kl_bits"] for row in view["places"]][view["position"]] == view["kl_bits"]
    for row in view["candidates"]:
        assert row["difference"] == pytest.approx(row["changed_logit"] - row["logit"], abs=1e-4)


def test_a_change_without_effect_differs_in_nothing(views):
    view = views("--view", "change", "--steer", '"ball" @ L1 * 0')["views"][0]
    assert max(row["kl_bits"] for row in view["places"]) < 1e-6
    assert {row["moved"] for row in view["layers"]} == {0}


def test_baseline_adds_the_untouched_views_and_what_changed(views, llmcli, model_folder):
    change = ["--view", "tokens", "--view", "lens", "--ablate", "L1.H2"]
    both, alone, plain = views(*change, "--baseline"), views(*change), views(*change[:4])
    assert [view["view"] for view in both["views"]] == ["tokens", "lens", "change"]
    assert both["views"][:2] == alone["views"]
    assert both["baseline"] == plain["views"]
    tsv = llmcli("inspect", PROMPT, "-m", model_folder, *change, "--baseline").stdout
    assert re.findall("^# (untouched|view) (.*)$", tsv, re.MULTILINE) == [
        ("untouched", "tokens"), ("untouched", "lens"), ("view", "tokens"), ("view", "lens"),
        ("view", "change"),
    ]  # fmt: skip


def test_tensors_of_a_change_are_both_logits(views, tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "all.safetensors"
    document = views("--view", "change", "--ablate", "L0", "--tensors", path)
    held = load_file(path)
    assert held["change.logits"].shape == (len(document["ids"]), 300)
    assert not torch.equal(held["change.logits"], held["change.untouched_logits"])


def test_mistakes_are_told_before_the_model_is_loaded(llmcli, model_folder, monkeypatch):
    monkeypatch.setattr("llmcli.gpt.weights.load_model", pytest.fail)
    common = ["inspect", PROMPT, "-m", model_folder]
    done = llmcli(*common, "--knockout", "L1: 99 -> 2")
    assert done.exit_code == 2
    assert "^ the prompt has" in done.stderr
    assert_fails(llmcli(*common, "--baseline"), 2, "nothing is changed")
    done = llmcli(*common, "--view", "model", "--ablate", "L0")
    assert "Not used by --view model: the prompt, --ablate" in done.stderr
    long = llmcli("inspect", "xyz " * 40, "-m", model_folder, "--view", "tokens", "--ablate", "L0")
    assert_fails(long, 2, "a change is about one")
