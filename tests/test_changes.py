"""--ablate, --knockout, --steer and --patch as their users meet them."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import torch
from safetensors.torch import save_file
from test_cli import PACKAGE_SCHEMAS, assert_fails, in_terminal

SCHEMA = json.loads((PACKAGE_SCHEMAS / "generate.schema.json").read_text())
PROMPT = "Once upon a time, there was a little girl named Lily. She had"
CHANGES = [
    ["--ablate", "L1.H2"],
    ["--ablate", "L1.mlp:mean", "--ablate", "pos_embed"],
    ["--knockout", '* -> "Lily"'],
    ["--steer", '"ball" - "girl" @ L1 * 3', "--steer-prompt"],
    ["--patch", 'L1.resid_mid@-2 from "Once upon a time, there was a red ball named Lily. He had"'],
]


@pytest.fixture
def generate(llmcli, model_folder):
    def run(*arguments, prompt=(PROMPT,)):
        return llmcli("generate", *prompt, "-m", model_folder, "--seed", 1, "--max-new-tokens", 8,
                      *arguments)  # fmt: skip

    return run


@pytest.fixture
def result(generate):
    def run(*arguments):
        done = generate("--json", *arguments)
        assert done.exit_code == 0, done.stderr
        value = json.loads(done.stdout)
        jsonschema.validate(value, SCHEMA)
        return value

    return run


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0] + change[1])
def test_a_change_changes_the_text_and_is_told(change, generate, result):
    value = result(*change)
    assert value["options"][change[0][2:]] == change[1::2][: 2 if len(change) == 4 else 1]
    assert generate(*change).stdout == value["samples"][0]["text"]
    assert generate(*change, "--no-cache").stdout == value["samples"][0]["text"]
    plain = result()
    assert (
        value["samples"][0]["tokens"][0]["logprob"] != plain["samples"][0]["tokens"][0]["logprob"]
    )
    assert "ablate" not in plain["options"]


def test_baseline_is_the_untouched_run_beside_the_changed_one(result):
    change = CHANGES[0]
    both, alone, plain = result(*change, "--baseline"), result(*change), result()
    assert both["samples"][0]["text"] == alone["samples"][0]["text"]
    assert both["baseline"]["samples"][0]["text"] == plain["samples"][0]["text"]
    told = both["comparisons"][0]
    ids = [[token["id"] for token in run["samples"][0]["tokens"]] for run in (alone, plain)]
    assert told["first_difference"] == next(
        i for i, (a, b) in enumerate(zip(*ids, strict=True)) if a != b
    )
    assert len(told["kl_bits"]) == 8
    assert max(told["kl_bits"]) > 0
    logprobs = [token["logprob"] for token in plain["samples"][0]["tokens"]]
    expected = torch.tensor(logprobs).mean().neg().exp()
    assert told["baseline_perplexity"] == pytest.approx(float(expected), rel=1e-4)


def test_each_sample_has_its_own_baseline(result):
    both = result(*CHANGES[0], "--baseline", "--num-samples", 2)
    assert len(both["samples"]) == len(both["baseline"]["samples"]) == len(both["comparisons"]) == 2


def test_baseline_tells_of_both_runs_as_they_happen(generate, result):
    """The changed run's lines are those without --baseline; the rest is what --json holds."""
    # In float16 a run alone has other last digits: its prompt is multiplied before it is packed.
    change = [*CHANGES[0], "--num-samples", 2, "--top-probs", 2, "--dtype", "float32"]
    events = [json.loads(line) for line in
              generate(*change, "--baseline", "--jsonl").stdout.splitlines()]  # fmt: skip
    for event in events:
        jsonschema.validate(event, {**SCHEMA["$defs"]["event"], "$defs": SCHEMA["$defs"]})
    runs = {flag: [e for e in events if e.get("baseline") is flag] for flag in (False, True)}
    alone = [json.loads(line) for line in generate(*change, "--jsonl").stdout.splitlines()]
    timeless = [
        [{key: v for key, v in e.items() if key not in ("time_s", "baseline")} for e in run]
        for run in (runs[False], alone[1:-1])
    ]
    assert timeless[0] == timeless[1]
    both = result(*change, "--baseline")
    texts = [e["text"] for e in runs[True] if e["event"] == "end"]
    assert texts == [sample["text"] for sample in both["baseline"]["samples"]]
    told = [e for e in events if e["event"] == "comparison"]
    expected = [{"sample": row, **c} for row, c in enumerate(both["comparisons"])]
    assert [{k: v for k, v in e.items() if k not in ("schema", "event")} for e in told] == expected
    order = [e["event"] for e in events]
    assert order[0] == "start"
    assert order[-3:] == ["comparison", "comparison", "done"]
    assert events.index(runs[False][-1]) < events.index(runs[True][0])


def test_baseline_in_a_pipe_is_one_text_after_the_other(generate):
    text = generate(*CHANGES[0], "--baseline").stdout
    plain, changed = generate().stdout, generate(*CHANGES[0]).stdout
    facts = re.findall(r"^# (.*)$", text, re.MULTILINE)
    assert [line.split("\t")[0] for line in facts] == ["untouched", "--ablate L1.H2"]
    assert f"\n{plain}\n# " in text
    assert text.endswith(f"\n{changed}\n")


def test_baseline_on_a_terminal_has_two_columns(generate, model_folder):
    arguments = ["generate", PROMPT, "-m", model_folder, "--seed", 1, "--max-new-tokens", 20,
                 *CHANGES[0], "--baseline"]  # fmt: skip
    shown, code = in_terminal(arguments, env={"NO_COLOR": "1"})
    assert code == 0
    assert re.search(r"^untouched +--ablate L1.H2", shown)
    assert shown.count("▶") == 3  # one in each text, one in the line below
    assert re.search(r"KL\(untouched ‖ changed\) per step: mean [\d.e-]+ bits, most", shown)
    assert max(map(len, shown.splitlines())) <= 80
    several = generate(*CHANGES[0], "--baseline", "--color", "always", "--num-samples", 2).stdout
    assert several.index("── sample 0 of 2 ──") < several.index("── sample 1 of 2 ──")
    assert "── sample" not in shown


def test_echo_tells_what_the_changed_model_thinks(result):
    changed, plain = (result("--echo", *more)["prompt"] for more in (["--ablate", "L0"], []))
    assert changed["perplexity"] != plain["perplexity"]
    assert changed["ids"] == plain["ids"]


def test_a_mean_over_a_reference(generate, tmp_path):
    path = tmp_path / "reference.txt"
    path.write_text("Once upon a time, there was a little girl named Lily. " * 9)  # > the context
    prompt = generate("--ablate", "L0.attn:mean", "--json")
    other = generate("--ablate", "L0.attn:mean", "--reference", path, "--json")
    first = [json.loads(run.stdout)["samples"][0]["tokens"][0] for run in (prompt, other)]
    assert first[0]["logprob"] != first[1]["logprob"]
    assert_fails(generate("--ablate", "L0", "--reference", path), 2, "there are none")
    mean = ["--ablate", "L0:mean", "--reference"]
    assert_fails(generate(*mean, tmp_path / "none.txt"), 3, "cannot be read")
    for data, said in ((b"", "is empty"), (b"\xff", "not UTF-8")):
        path.write_bytes(data)
        assert_fails(generate(*mean, path), 2, said)


def test_a_reference_ends_before_its_last_line_end(generate, tmp_path):
    path, made = tmp_path / "reference.txt", []
    for end in "", "\n", "\r\n":
        path.write_bytes(f"Lily saw a{end}".encode())
        done = generate("--ablate", "L0.attn:mean", "--reference", path, "--json")
        tokens = json.loads(done.stdout)["samples"][0]["tokens"]
        made.append([token["logprob"] for token in tokens])
    assert made[0] == made[1] == made[2]


def test_many_prompts_share_what_is_about_none_of_them(generate, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Once upon\nLily had a\nThe end\n")
    many = ["--prompts", file, "--quiet"]
    for change in ([], ["--ablate", "L1.H2"], ["--steer", '"a" - "b" @ L0 * 2', "--steer-prompt"]):
        done = generate(*many, *change, prompt=())
        records = [json.loads(line) for line in done.stdout.splitlines()]
        alone = generate(*change, prompt=("Once upon",)).stdout  # draws as the first of many does
        assert records[0]["text"] == alone
        assert len(records) == 3
    for change, said in (
        (["--knockout", "2 -> 1"], "no one prompt"),
        (["--steer", '"a" - "b" @ L0 * 2'], "--steer-prompt"),
        (["--ablate", "L0:mean"], "needs --reference"),
    ):
        done = generate(*many, *change, prompt=())
        assert done.exit_code == 2
        assert said in done.stderr


def test_results_of_another_change_are_not_taken_for_done(generate, tmp_path):
    file, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    file.write_text("Once upon\n")
    many = ["--prompts", file, "--out", out]
    assert generate(*many, "--ablate", "L1.H2", prompt=()).exit_code == 0
    before = out.read_text()
    assert generate(*many, "--ablate", "L1.H2", prompt=()).exit_code == 0
    assert out.read_text() == before
    other = generate(*many, "--ablate", "L1.H3", prompt=())
    assert_fails(other, 5, "line 1, is the result of another prompt, model, seed")
    assert out.read_text() == before


def test_a_mistake_is_told_before_the_model_is_loaded(generate, monkeypatch):
    monkeypatch.setattr("llmcli.gpt.weights.load_model", pytest.fail)
    done = generate("--ablate", "L3.H0")
    assert done.exit_code == 2
    assert done.stderr == (
        "llmcli: --ablate: there is no layer 3.\n  L3.H0\n   ^ layers go from 0 to 2\n"
    )
    done = generate("--knockout", "L1: 99 -> 2")
    assert done.stderr.splitlines()[2].startswith("      ^ the prompt has")


def test_a_vector_of_another_model_is_refused(generate, tmp_path):
    path = tmp_path / "v.safetensors"
    steer = ["--steer", f"{path} @ L0 * 1"]
    assert_fails(generate(*steer), 3)
    save_file({"v": torch.ones(33)}, path)
    assert_fails(generate(*steer), 2, r"holds \[33\]; .* \[32\]")
    save_file({"v": torch.full((32,), float("inf"))}, path)
    assert_fails(generate(*steer), 5, "infinite", "Make it again")
    path.write_bytes(b"no vector at all")
    assert_fails(generate(*steer), 5, "is damaged", "Make it again")


def test_a_strength_that_yields_noise_works_and_the_perplexity_says_so(result):
    value = result("--steer", '"a" - "b" @ L0 * 1e6', "--baseline")
    told = value["comparisons"][0]
    assert told["perplexity"] > 2 * told["baseline_perplexity"]


def test_vectors_that_drown_the_stream_are_said(generate, llmcli, model_folder):
    one, two = '"ball" - "girl" @ L1 * 50', '"red" - "girl" @ L1 * 50'
    said = r"has the length (\d+) and drowns a stream of (\d+): .* (\S+) of the strength is gentler"
    norm, length, share = map(float, re.search(said, generate("--steer", one).stderr).groups())
    assert share == pytest.approx(0.7 * length / norm, rel=0.5)
    assert generate("--steer", f'"ball" - "girl" @ L1 * {50 * share}').stderr == ""
    assert generate("--steer", one, "-q").stderr == ""
    looked = ["inspect", PROMPT, "-m", model_folder, "--steer", one]
    assert re.search(said, llmcli(*looked).stderr)
    tried = llmcli(*looked, "--view", "steer", "--sweep", "0.01", "--max-new-tokens", 2)
    assert tried.stderr == ""  # the strengths are those of the sweep
    both = generate("--steer", one, "--steer", two).stderr
    assert both.count("drowns") == 1  # they are one vector in the end
    assert float(re.search(said, both)[1]) != norm


@pytest.mark.parametrize(
    "options",
    [
        ["--baseline"],
        ["--baseline", "--color-probs", "--ablate", "L0"],
        ["--baseline", "--top-probs", "3", "--ablate", "L0"],
        ["--ablate", "L0", "--dry-run"],
        ["--steer-prompt"],
        ["--ablate", "L0", "--ablate", "L0.mlp"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_refused(options, generate):
    done = generate(*options)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert options[0] in done.stderr
