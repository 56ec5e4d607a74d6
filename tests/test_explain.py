"""The guided walk: its figures against plain torch, its pages as users meet them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import FABLE, edit_json, random_gpt2
from test_inspection_views import IDS, pair, run_of  # noqa: F401

from llmcli.config import read_config
from llmcli.gpt.weights import load_model
from llmcli.inspection import explain
from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run
from llmcli.inspection.walk.topics import TOPICS
from llmcli.render.subject import Subject
from llmcli.render.walk.layout import nums, pct


def facts(run):
    made = explain.view(run, Ask(position=len(run.ids) - 1))
    return {page.topic: page.facts for page in made.pages}


def test_every_topic_has_a_page():
    assert tuple(explain.PAGES) == TOPICS


def test_the_figures_equal_plain_torch(pair):  # noqa: F811
    run, out, theirs = pair
    f, logits = facts(run), out.logits[0]
    probs = logits[-1].softmax(-1)
    for guess in f["prediction"].guesses:
        assert guess.prob == pytest.approx(float(probs[guess.token.id]), abs=1e-4)
    for row in f["logits"].rows:
        assert row.best_logit == pytest.approx(float(logits[row.position].max()), abs=1e-3)
    for example in f["softmax"].examples:
        assert [round(p, 2) for p in example.probs] == [0.09, 0.24, 0.67]
    layer, head = f["scores"].layer, f["scores"].head
    pattern = out.attentions[layer][0, head]
    for row in f["scores"].rows:
        assert row.weight == pytest.approx(float(pattern[-1, row.position]), abs=1e-4)
    for row in f["mask"].rows:
        expected = pattern[row.position, : len(row.weights)]
        torch.testing.assert_close(torch.tensor(row.weights), expected, atol=1e-4, rtol=0)
    for topic in ("lookup", "embedding", "norm", "context", "heads", "cache"):
        assert f[topic].max_difference < 1e-3, topic
    for row in f["unembed"].rows:
        assert row.dot == pytest.approx(row.logit, abs=1e-3)
    assert f["parameters"].total == theirs.num_parameters()


@pytest.mark.parametrize("n", [1, 2, 48])
def test_a_prompt_of_any_length_has_all_pages(n, pair):  # noqa: F811
    assert len(facts(run_of(pair[0].model, (IDS * 5)[:n]))) == len(TOPICS)


def test_a_page_that_is_asked_for_is_one_of_the_walk(llmcli):
    shown = llmcli("inspect", "Once upon a time", "--page", 3)
    assert shown.stdout.startswith("explain  3 of 25")
    assert not shown.stderr
    assert llmcli("inspect", "Once", "--all").stdout.count("explain  ") == 25


def test_the_head_that_is_followed_can_be_chosen(llmcli):
    common = ["inspect", "Once upon a time", "--page", 11]
    free, one = (json.loads(llmcli(*common, *more, "--json").stdout)["views"][0]["pages"][0]
                 for more in ([], ["--layer", 1, "--head", -1]))  # fmt: skip
    assert (one["facts"]["layer"], one["facts"]["head"]) == (1, 3)
    assert (free["facts"]["asked"], one["facts"]["asked"]) == (False, True)
    assert "--page 12 --layer 1 --head 3\n" in llmcli(*common, "--layer", 1, "--head", -1).stdout
    in_layer = json.loads(llmcli(*common, "--layer", 5, "--json").stdout)["views"][0]["pages"][0]
    assert in_layer["facts"]["layer"] == 5


def test_a_change_leaves_the_walk_as_it_is_and_untitled(llmcli):
    plain = llmcli("inspect", "Once", "--page", 2, "--color", "always")
    changed = llmcli("inspect", "Once", "--page", 2, "--color", "always", "--ablate", "L3.H1")
    assert changed.stdout == plain.stdout
    assert changed.stderr == "Not used by --view explain: --ablate.\n"
    both = llmcli("inspect", "Once", "--page", 2, "--color", "always", "--ablate", "L3.H1",
                  "--baseline")  # fmt: skip
    assert both.stdout.startswith(plain.stdout)
    note = "  The walk is through the model as it is: the run's changes are left out."
    assert note in both.stdout
    assert both.stdout.count("explain") == plain.stdout.count("explain")


def test_a_prompt_too_long_for_one_line_is_repeated_on_two(llmcli):
    prompt = "Maria lost her keys. Her brother"
    shown = llmcli("inspect", prompt, "--page", 12).stdout
    assert f"deeper: llmcli inspect '{prompt}' \\\n            --view head" in shown
    assert (
        f"llmcli inspect '{prompt * 3}' \\\n" in llmcli("inspect", prompt * 3, "--page", 12).stdout
    )
    long = llmcli("inspect", prompt * 20, "--page", 12).stdout
    assert "deeper: llmcli inspect - --view head " in long
    assert " < your-prompt.txt\n" in long


def test_commands_that_are_shown_keep_the_options_and_find_a_prompt_with_a_dash():
    subject = Subject("-5 °", (), ("--quantize", "int8"), ("--ablate", "L1"))
    assert subject.command("inspect {} --view lens", 80) == (
        "llmcli inspect --quantize int8 --ablate L1 --view lens -- '-5 °'"
    )
    assert subject.command("inspect --view model", 80) == (
        "llmcli inspect --view model --quantize int8"
    )
    dash = replace(subject, text="-", model=(), changes=())
    assert dash.command("inspect {} --view lens", 80) == (
        "llmcli inspect - --view lens < your-prompt.txt"
    )
    step = replace(dash, step=("--trace", "a b.jsonl", "--step", "3"))
    assert step.command("inspect {} --page 2", 80) == (
        "llmcli inspect --trace 'a b.jsonl' --step 3 --page 2"
    )


def test_a_command_that_is_shown_names_the_prompt_as_bash_reads_it(llmcli):
    prompt = 'It\'s "so":\n🎉👩\u200d👧 \\n'
    shown = llmcli("inspect", prompt, "--page", 2).stdout
    line = re.search("deeper: (llmcli inspect .*) --view tokens", shown)[1]
    told = subprocess.run(
        ["bash", "-c", f"llmcli() {{ printf %s \"$2\"; }}; {line}"],
        capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert told.stdout.decode() == prompt


def test_pages_fit_a_screen(llmcli):
    shown = llmcli("inspect", "Once upon a time", "--view", "explain").stdout
    pages = re.split(r"\n(?=explain  )", shown)
    assert len(pages) == len(TOPICS)
    assert max(len(page.splitlines()) for page in pages) <= 24


def test_one_is_singular_and_large_numbers_have_separators(llmcli):
    shown = llmcli("inspect", "a", "--view", "explain").stdout
    one = llmcli("inspect", "", "--view", "explain", "--page", 3).stdout
    assert "The 1 byte of your text makes 1 id," in " ".join(shown.split())
    assert "The 1 token gives a matrix of 1 × 4096" in " ".join(one.split())
    assert "7,498,240 numbers" in shown
    assert not re.search(r"\b1 (bytes|ids|tokens|others)\b|\d{5}(?!\d* tokens)", shown)


def test_a_model_of_one_layer_and_head_is_spoken_of_in_the_singular(llmcli, copied):
    tokenizer = (copied / "tokenizer.json").read_bytes()
    random_gpt2(1, vocab_size=300, n_layer=1, n_head=1).save_pretrained(copied)
    (copied / "tokenizer.json").write_bytes(tokenizer)
    edit_json(copied / "config.json", scale_attn_weights=False)
    walk = llmcli("inspect", "Once", "--view", "explain", "-m", copied).stdout
    model = llmcli("inspect", "-m", copied, "--color", "always").stdout
    assert not re.search(r"\b1 (blocks|heads|layers)\b", walk + model)
    assert "this model does not scale it" in " ".join(walk.split())
    assert "0 … 0" not in model


def test_what_is_a_little_is_not_written_as_nothing():
    assert [pct(share) for share in (0.0, 1e-9, 4.9e-5, 6e-5, 1.0)] == [
        "  0.00 %", " <0.01 %", " <0.01 %", "  0.01 %", "100.00 %",
    ]  # fmt: skip
    assert nums([-0.0001, 0.25]) == "   0.000    0.250"


def test_the_walk_says_what_its_numbers_were_computed_in(llmcli):
    shown = llmcli("inspect", "Once", "--page", 1, "--quantize", "int4", "--color", "always").stdout
    assert "weights are kept in int4" in shown


def test_a_page_that_does_not_exist_is_named(llmcli):
    for page in (0, 26):
        result = llmcli("inspect", "x", "--view", "explain", "--page", page)
        assert result.exit_code == 2
        assert "It goes from 1 to 25" in result.stderr


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_parameters_are_counted_by_what_they_are_for_however_they_are_stored(storage):
    from safetensors.torch import load_file

    counts = Counter()
    for name, values in load_file(FABLE / "model.safetensors").items():
        kinds = {"attn": "attention", "mlp": "feed-forward", "ln_": "layer norms",
                 "wte": "token embedding", "wpe": "position embedding"}  # fmt: skip
        counts[next(kind for part, kind in kinds.items() if f".{part}" in name)] += values.numel()
    ids = [0, 423, 438]
    run = Run(load_model(FABLE, read_config(FABLE), storage), ids, lambda id: b"", n_prefix=1)
    pages = {page.topic: page.facts for page in explain.view(run, Ask(position=2)).pages}
    found = pages["parameters"]
    assert {group.name: group.count for group in found.groups} == counts
    assert found.total == sum(counts.values())
    assert sum(group.share for group in found.groups) == pytest.approx(1)
