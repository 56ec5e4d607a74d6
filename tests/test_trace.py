"""Traces: what a run records, what is computed again from it, and files that are none."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from conftest import FABLE, add_token, edit_json, train_on
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cli import PACKAGE_SCHEMAS, assert_fails

from llmcli.commands.job import Job
from llmcli.commands.recorded import PastRun
from llmcli.commands.replay import continued
from llmcli.config import Sampling, read_config
from llmcli.errors import IntegrityError
from llmcli.gpt.facts import Facts
from llmcli.inspection.replay import compared, verdict
from llmcli.inspection.trace import in_words, view
from llmcli.strict_json import strict
from llmcli.trace import BLOCK_NBYTES, Reader, Writer, records
from llmcli.trace_lines import Begun, Choice, Step, json_text, kl_bits, lens_text, step_line

SCHEMA = json.loads((PACKAGE_SCHEMAS / "trace.schema.json").read_text())
INSPECT = json.loads((PACKAGE_SCHEMAS / "inspect.schema.json").read_text())
N = 12  # steps of most runs here


@pytest.fixture
def traced(llmcli, model_folder, tmp_path):
    """Run `generate "Once" --trace` on the random model: the file."""

    def run(*arguments, name="run.jsonl", prompt=("Once",), seed=1):
        path = tmp_path / name
        done = llmcli("generate", *prompt, "-m", model_folder, "--seed", seed, "--max-new-tokens",
                      N, "--ignore-eos", "--trace", path, *arguments)  # fmt: skip
        assert done.exit_code == 0, done.stderr
        return path

    return run


@pytest.fixture
def shown(llmcli):
    """Run a command with --json: its object, checked against the schema."""

    def run(*arguments, code=0):
        done = llmcli(*arguments, "--json")
        assert done.exit_code == code, done.stderr
        value = json.loads(done.stdout, parse_constant=pytest.fail)
        jsonschema.validate(value, INSPECT)
        return value

    return run


def lines_of(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line, parse_constant=pytest.fail) for line in data.splitlines()]


def steps_of(path, run=0):
    return [line for line in lines_of(path) if "step" in line and line["run"] == run]


def theirs(folder):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder).eval()


# --- what is recorded ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "n_runs"),
    [
        ([], 1),
        (["--num-samples", 3, "--bias", "5=-inf", "--force", "2=40", "--trace-lens"], 3),
        (["--ablate", "L1.H2", "--steer", '"red" - "ball" @ L1 * 2', "--stop", "zzz"], 1),
        (["--top-probs", 9, "--top-k", 20, "--no-cache"], 1),
    ],
)
@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_every_line_is_what_the_schema_says(traced, name, arguments, n_runs):
    lines = lines_of(traced(*arguments, name=name))
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    assert sum("ids" in line for line in lines) == n_runs
    assert sum("step" in line for line in lines) == n_runs * N


def test_recorded_numbers_are_those_of_transformers(traced, model_folder):
    path = traced("--temperature", 0.9, "--top-k", 30, "--top-p", 1, "--dtype", "float32")
    prompt, steps = lines_of(path)[1]["ids"], steps_of(path)
    ids = [*prompt, *(step["id"] for step in steps)]
    with torch.inference_mode():
        logits = theirs(model_folder)(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(dim=-1)
    for i, step in enumerate(steps):
        assert step["step"] == i
        own = logprobs[i]
        kept = logits[i].topk(30).indices
        drawn = (logits[i] / 0.9)[kept].log_softmax(dim=-1)
        drawn_of = dict(zip(kept.tolist(), drawn.tolist(), strict=True))
        assert step["logprob"] == pytest.approx(float(own[step["id"]]), abs=1e-4)
        assert step["drawn_logprob"] == pytest.approx(drawn_of[step["id"]], abs=1e-4)
        assert step["rank"] == int((own > own[step["id"]]).sum())
        entropy = float(-(own.exp() * own).sum() / math.log(2))
        assert step["entropy_bits"] == pytest.approx(entropy, abs=1e-4)
        assert step["kept"] == pytest.approx(float(own.exp()[kept].sum()), abs=1e-5)
        best = own.topk(5)
        assert [entry[0] for entry in step["top"]] == best.indices.tolist()
        for id, _, logprob, drawn_logprob in step["top"]:
            assert logprob == pytest.approx(float(own[id]), abs=1e-4)
            assert drawn_logprob == pytest.approx(drawn_of[id], abs=1e-4)


def test_the_lens_of_each_step_is_that_of_transformers_hidden_states(traced, model_folder):
    """In a batch whose rows end at different steps, so that they change their places."""
    path = traced("--trace-lens", "--num-samples", 4, "--stop", " ", "--temperature", 1.5,
                  "--dtype", "float32")  # fmt: skip
    assert len({len(steps_of(path, run)) for run in range(4)}) > 1
    model = theirs(model_folder)
    for run in range(4):
        prompt, steps = lines_of(path)[1 + run]["ids"], steps_of(path, run)
        ids = [*prompt, *(step["id"] for step in steps)]
        with torch.inference_mode():
            out = model(torch.tensor([ids]), output_hidden_states=True)
            *before, last = out.hidden_states  # the last one has been through the final norm
            each = [model.lm_head(model.transformer.ln_f(x))[0] for x in before]
            each.append(model.lm_head(last)[0])
        own = each[-1].log_softmax(dim=-1)
        for i, step in enumerate(steps):
            place = len(prompt) - 1 + i
            for logits, (top, prob, kl, rank) in zip(each, step["lens"], strict=True):
                here = logits[place].log_softmax(dim=-1)
                assert top == int(here.argmax())
                assert prob == pytest.approx(float(here.exp().max()), abs=1e-4)
                exact = (own[place].exp() * (own[place] - here)).sum() / math.log(2)
                assert kl == pytest.approx(float(exact), rel=1e-3, abs=1e-4)
                assert rank == int((here > here[step["id"]]).sum())


def test_tracing_changes_nothing_that_is_shown(llmcli, model_folder, tmp_path):
    def told(*more):
        done = llmcli("generate", "Once", "-m", model_folder, "--seed", 1, "--max-new-tokens", N,
                      "--num-samples", 2, "--top-probs", 2, "--color", "never", *more)  # fmt: skip
        assert done.exit_code == 0
        return done.stdout

    assert told() == told("--trace", tmp_path / "run.jsonl", "--trace-lens")


def test_prompts_are_recorded_under_their_names(llmcli, traced, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Once upon", "id": "a"}\n{"prompt": "She", "id": "b"}\n')
    path = traced("--prompts", prompts, "--num-samples", 2, prompt=())
    begun = [line for line in lines_of(path) if "ids" in line]
    assert [(line["prompt_id"], line["draw"]) for line in begun] == [
        ("a", [0, 0]), ("a", [0, 1]), ("b", [1, 0]), ("b", [1, 1])
    ]  # fmt: skip
    assert begun[2]["prompt"] == "She"
    assert llmcli("generate", "--replay", path, "--resample").exit_code == 0


def test_a_kill_loses_at_most_the_line_being_written(traced, tmp_path):
    """However much of the file has reached the disk."""
    for name in ("run.jsonl", "run.jsonl.gz"):
        data = traced(name=name).read_bytes()
        whole = lines_of(tmp_path / name)
        cut = tmp_path / f"cut-{name}"
        n_seen = []
        for size in range(len(data) // 2, len(data), 61):
            cut.write_bytes(data[:size])
            reader = Reader(cut)
            read = list(reader)
            assert [json.loads(line_of(each)) for each in read] == whole[1 : 1 + len(read)]
            assert len(reader.damaged) <= 1
            n_seen.append(len(read))
        assert n_seen == sorted(n_seen)
        assert n_seen[-1] >= N  # of N + 1 lines after the header


def test_where_the_model_takes_all_cores_its_own_process_writes(traced, monkeypatch):
    free = steps_of(traced())
    monkeypatch.setattr("llmcli.gpt.place.spares_a_core", lambda _: False)
    monkeypatch.setattr("llmcli.commands.traced.apart", lambda _: pytest.fail("a process"))
    same = steps_of(traced(name="again.jsonl"))
    assert [step | {"time_s": 0} for step in same] == [step | {"time_s": 0} for step in free]


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_a_line_is_in_the_file_once_it_is_written(tmp_path, name):
    path = tmp_path / name
    writer = Writer(path)
    writer.write(json.dumps(header()))
    writer.write(line_of(begun()))
    for i in range(5):
        writer.write(line_of(step(i)))
        assert records(Reader(path))[0].steps[-1] == step(i)  # the writer is still open
    writer.close()
    assert len(records(Reader(path))[0].steps) == 5


def model(**changes):
    return {"name": "fable", "revision": None, "dtype": "float32", "device": "cpu", "files": {},
            "tokenizer_sha256": {}} | changes  # fmt: skip


def header(**changes):
    return {"schema": 1, "model": model(), "options": {}, "seed": 1, "versions": {}} | changes


def begun(run=0):
    return Begun(run, (0, 5), "Once", None, (0, run), 0.0)


def step(index, logprob=-1.25, top=(), run=0):
    chosen = Choice(7, b"\xe2\x80", logprob, -math.inf)
    return Step(run, index, chosen, 3, 2.5, 0.5, tuple(top), False, 0.25, None)


def line_of(step):
    if isinstance(step, Begun):
        return step.line()
    texts = {c.id: c.text for c in (step.chosen, *step.top)}
    known = Facts(step.chosen, step.rank, step.entropy_bits, step.kept, step.top, ())
    return step_line(step.run, step.index, known, step.time_s, step.forced, step.finish_reason,
                     lens_text(step.lens), lambda id: json_text(texts[id]))  # fmt: skip


def test_every_float32_survives_the_file():
    torch.manual_seed(0)
    for value in (-torch.rand(1000) * 10 ** torch.empty(1000).uniform_(-20, 2)).tolist():
        line = json.loads(line_of(step(0, value)))
        assert torch.tensor(line["logprob"]) == torch.tensor(value)


def test_a_line_is_one_for_whoever_splits_lines():
    ends = "a\n\x0b\x0c\r\x1c\x1d\x1e\x85\u2028\u2029b"
    for line in (Begun(0, (1,), ends, ends, (0, 0), 0.5).line(), json_text(ends.encode()),
                 strict({"text": ends})):  # fmt: skip
        assert line.splitlines() == [line]
        value = json.loads(line)
        assert ends == (value if isinstance(value, str) else value.get("text", value.get("prompt")))


# --- a step, computed again ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num-samples", 2, "--temperature", 1.3, "--repetition-penalty", 1.4, "--top-k", 40],
        ["--num-samples", 2, "--ablate", "L1.H2", "--knockout", "* -> 1"],
        ["--num-samples", 2, "--steer", '"red" - "ball" @ L1 * 3', "--bias", "9=2", "--no-cache"],
    ],
)
def test_each_step_comes_out_as_recorded_and_draws_the_same_token(traced, shown, arguments):
    path = traced(*arguments)
    for run, index in ((0, 0), (0, N - 1), (1, 5)):
        value = shown("inspect", "--trace", path, "--run", run, "--step", index, "--view",
                      "sampling")  # fmt: skip
        assert value["trace"]["passed"]
        assert value["trace"]["max_difference"] < 1e-4
        recorded = steps_of(path, run)
        before = [*lines_of(path)[1]["ids"], *(each["id"] for each in recorded[:index])]
        assert value["ids"] == before
        assert value["views"][0]["drawn"]["id"] == recorded[index]["id"]


def test_a_forced_step_says_so(traced, shown, llmcli):
    path = traced("--force", "3=Q", "--temperature", 1.1)
    again = traced("--temperature", 1.1, name="free.jsonl")
    step, free = steps_of(path)[3], steps_of(again)[3]
    asked = ("inspect", "--trace", path, "--step", 3, "--view", "sampling")
    (view,) = shown(*asked)["views"]
    assert (view["forced"]["id"], view["drawn"]["id"]) == (step["id"], free["id"])
    assert math.log(view["forced_model_prob"]) == pytest.approx(step["logprob"], abs=1e-3)
    assert step["id"] in {row["token"]["id"] for row in view["candidates"]}
    done = llmcli(*asked, "--color", "always")
    assert re.search('▶ forced  "Q"', plain(done.stdout))
    assert f'forced: "Q", --token id:{step["id"]}.' in done.stderr
    assert shown("inspect", "--trace", again, "--step", 3, "--view", "sampling")["views"][0][
        "forced"
    ] is None  # fmt: skip


def plain(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def without_samples(path):
    """Make a trace one of those that knew the names and shapes of weights alone."""
    first, *rest = path.read_text().splitlines(keepends=True)
    head = json.loads(first)
    for file in head["model"]["files"].values():
        del file["sampled_sha256"]
    jsonschema.validate(head, SCHEMA)
    path.write_text(json.dumps(head) + "\n" + "".join(rest))
    return path


def test_weights_that_were_trained_on_are_another_model(traced, llmcli, shown, copied):
    path, again = traced(), traced(name="again.jsonl")
    train_on(copied)
    for command in (["generate", "--replay", path], ["inspect", "--trace", path, "--step", 3],
                    ["generate", "--replay", path, "--from-step", 3]):  # fmt: skip
        assert_fails(llmcli(*command, "-m", copied), 5, "another weights file model.safetensors")

    def facts(*files):
        view = shown("inspect", "--trace", files[0], "--diff", files[1])["views"][0]
        return {fact["what"] for fact in view["facts"]}

    assert "weights" not in facts(path, again)
    trained = ("-m", copied, "--trace", again)
    assert llmcli("generate", "Once", "--seed", 1, "-n", N, *trained).exit_code == 0
    assert "weights" in facts(path, again)
    assert "weights" not in facts(without_samples(path), again)


def test_other_weights_are_reported_after_the_view(traced, llmcli, copied):
    path = without_samples(traced())
    assert llmcli("generate", "--replay", path).exit_code == 0
    train_on(copied)
    done = llmcli("inspect", "--trace", path, "--step", 3, "-m", copied, "--json")
    value = json.loads(done.stdout)
    assert not value["trace"]["passed"]
    assert value["trace"]["max_difference"] > value["trace"]["tolerance"]
    assert done.exit_code == 5
    assert "does not come out as it was recorded" in done.stderr
    done = llmcli("generate", "--replay", path, "-m", copied)
    assert done.exit_code == 5
    assert "not the same in 1 of 1 runs" in done.stderr
    # The difference that is told is the one that transformers gives.
    prompt, recorded = lines_of(path)[1]["ids"], steps_of(path)
    ids = [*prompt, *(each["id"] for each in recorded[:3])]
    with torch.inference_mode():
        own = theirs(copied)(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)
    pairs = [(recorded[3]["id"], recorded[3]["logprob"])]
    pairs += [(id, logprob) for id, _, logprob, _ in recorded[3]["top"]]
    apart = max(abs(float(own[id]) - logprob) for id, logprob in pairs)
    assert value["trace"]["max_difference"] == pytest.approx(apart, abs=1e-4)


def test_the_tensors_of_a_step_say_that_it_was_checked(traced, llmcli, tmp_path):
    out = tmp_path / "step.safetensors"
    done = llmcli("inspect", "--trace", traced(), "--step", 3, "--view", "attention", "--tensors",
                  out)  # fmt: skip
    assert done.exit_code == 0, done.output
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["trace"])["passed"]


def test_a_step_that_is_changed_is_not_called_checked(traced, llmcli):
    done = llmcli("inspect", "--trace", traced(), "--step", 3, "--ablate", "L0", "--json")
    assert done.exit_code == 0
    assert "not checked" in done.stderr
    assert "trace" not in json.loads(done.stdout)


def test_every_view_of_a_step_looks_into_the_model_that_made_the_trace(
    traced, shown, llmcli, model_folder
):
    path = traced()
    for name in ("positions", "model", "next"):
        told = shown("inspect", "--trace", path, "--step", 1, "--view", name)
        assert told["model"]["name"] == str(model_folder)
    done = llmcli("inspect", "--trace", path, "--step", 1, "--view", "positions")
    assert done.stderr == ""  # no prompt was computed that could differ from the recorded one


def test_a_run_recorded_with_changes_can_be_set_beside_the_untouched_one(traced, llmcli):
    path = traced("--ablate", "L1.H0")
    done = llmcli("inspect", "--trace", path, "--step", 2, "--view", "lens", "--baseline", "--json")
    assert [view["view"] for view in json.loads(done.stdout)["baseline"]] == ["lens"]
    done = llmcli("generate", "--replay", path, "--from-step", 2, "--baseline", "--json")
    assert "kl_bits" in json.dumps(json.loads(done.stdout))
    plain = traced(name="plain.jsonl")
    done = llmcli("inspect", "--trace", plain, "--step", 2, "--baseline")
    assert_fails(done, 2, "nothing is changed")


def test_a_trace_alone_computes_nothing_and_says_what_it_leaves(traced, llmcli):
    done = llmcli("inspect", "--trace", traced(), "--threads", 3, "--dtype", "float16")
    assert done.stderr == "Not used by --trace: --threads, --dtype.\n"


# --- the overview --------------------------------------------------------------------------------


def test_the_overview_sums_what_the_lines_say(traced, shown):
    path = traced("--num-samples", 3, "--trace-lens", "--temperature", 1.5)
    view = shown("inspect", "--trace", path, "--run", 1)["views"][0]
    steps = [line for line in lines_of(path) if "step" in line]
    assert view["n_tokens"] == len(steps) == 3 * N
    mean = -sum(each["logprob"] for each in steps) / len(steps)
    assert view["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert [row["token"]["id"] for row in view["tokens"]] == [s["id"] for s in steps_of(path, 1)]
    least = sorted(steps, key=lambda s: s["logprob"])[:8]
    assert [row["prob"] for row in view["improbable"]] == pytest.approx(
        [math.exp(each["logprob"]) for each in least], rel=1e-5
    )
    agrees = [sum(s["lens"][i][0] == s["id"] for s in steps) / len(steps) for i in range(4)]
    assert [row["agrees"] for row in view["layers"]] == pytest.approx(agrees, rel=1e-5)
    assert view["total_s"] == pytest.approx(max(each["time_s"] for each in steps))


def test_ten_thousand_steps_open_at_once_in_little_memory_without_torch(tmp_path):
    path = tmp_path / "long.jsonl"
    top = [Choice(i, b" there", -2.5 - i, -2.0 - i) for i in range(5)]
    writer = Writer(path)
    writer.write(json.dumps(header()))
    writer.write(line_of(begun()))
    for i in range(10_000):
        writer.write(line_of(step(i, -1.0 - i % 7, top)))
    writer.close()
    code = (
        "import sys, time\nfrom llmcli.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(time.process_time(), *sorted({m.split('.')[0] for m in sys.modules}),"
        " file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "inspect", "--trace", path, "--color", "always"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    used_s, *modules = run.stderr.split()
    assert float(used_s) < 4  # a second on a slow machine, half of one on others
    assert not {"torch", "numpy", "tiktoken"} & set(modules)
    assert "10,000 tokens" in run.stdout
    tracemalloc.start()
    view(Reader(path))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("width", [80, 120])
def test_pictures_keep_to_the_width(traced, llmcli, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    path = traced("--num-samples", 2, "--trace-lens")
    other = traced("--ablate", "L1", name="other.jsonl")
    for arguments in (["inspect", "--trace", path], ["inspect", "--trace", path, "--diff", other],
                      ["generate", "--replay", path]):  # fmt: skip
        done = llmcli(*arguments, "--color", "always")
        assert done.exit_code == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= width


# --- two traces ----------------------------------------------------------------------------------


def test_two_runs_part_where_their_tokens_do(traced, shown):
    path, other = traced(), traced(name="other.jsonl", seed=2)
    ids = [[each["id"] for each in steps_of(each)] for each in (path, other)]
    parted = next(i for i in range(N) if ids[0][i] != ids[1][i])
    view = shown("inspect", "--trace", path, "--diff", other)["views"][0]
    assert view["first_difference"] == parted
    assert [row["what"] for row in view["facts"]] == ["seed"]
    assert len(view["steps"]) == parted + 1
    assert view["max_kl_bits"] < 1e-6  # the same model after the same tokens
    chosen = [row["token"]["id"] for row in view["candidates"] if row["chosen"]]
    assert chosen == [ids[0][parted]]
    same = shown("inspect", "--trace", path, "--diff", path)["views"][0]
    assert same["first_difference"] is None
    assert same["n_common"] == N
    assert same["facts"] == []


def test_texts_that_are_no_utf_8_do_not_end_a_table(llmcli, tmp_path):
    path = tmp_path / "run.jsonl"
    odd = line_of(begun()).replace('"Once"', r'"\ud800\nx"')
    path.write_text("\n".join([json.dumps(header()), odd, line_of(step(0))]) + "\n")
    done = llmcli("inspect", "--trace", path)
    assert done.exit_code == 0
    assert "?\\nx" in done.stdout


def test_every_option_that_two_runs_differ_in_is_named(traced, shown, tmp_path):
    mean, reference = ["--ablate", "L1.H0:mean"], tmp_path / "my reference.txt"
    reference.write_text("Once upon a time there was a little girl.")
    path = traced(*mean)
    for more, expected in (
        (["--reference", reference],
         {"changes": ("--ablate L1.H0:mean", f"--ablate L1.H0:mean  --reference '{reference}'")}),
        (["--no-cache"], {"--no-cache": ("", "yes")}),
        (["--stop-id", 299, "--keep-stop"],
         {"ends at ids": ("", "299"), "--keep-stop": ("", "yes")}),
        (["--stop-id", 299], {"ends at ids": ("", "299"), "hides ids": ("", "299")}),
    ):  # fmt: skip
        other = traced(*mean, *more, name=f"{len(str(more))}.jsonl")
        facts = shown("inspect", "--trace", path, "--diff", other)["views"][0]["facts"]
        assert {row["what"]: (row["this"], row["other"]) for row in facts} == expected


def test_the_kl_of_two_runs_is_a_lower_bound_of_the_exact_one(traced, shown, model_folder):
    path = traced("--temperature", 0, "--top-probs", 100)
    forced = [f"{each['step']}={each['id']}" for each in steps_of(path)]
    other = traced(
        *(a for entry in forced for a in ("--force", entry)),
        "--ablate", "L1", "--temperature", 0, "--top-probs", 100, name="other.jsonl",
    )  # fmt: skip
    view = shown("inspect", "--trace", path, "--diff", other)["views"][0]
    from llmcli.config import read_config
    from llmcli.gpt.weights import load_model
    from llmcli.inspection.run import Run

    model = load_model(model_folder, read_config(model_folder), "float16")
    ids = [*lines_of(path)[1]["ids"], *(each["id"] for each in steps_of(path))]
    zero = {f"1.{name}": (lambda x, start: torch.zeros_like(x)) for name in ("attn_out", "mlp_out")}
    places = range(len(ids) - 1 - N, len(ids) - 1)
    p, q = (
        Run(model, ids, lambda id: b"", patch).logits(places).log_softmax(dim=-1)
        for patch in ({}, zero)
    )
    exact = ((p.exp() * (p - q)).sum(dim=-1) / math.log(2)).tolist()
    told = [row["kl_bits"] for row in view["steps"]]
    assert max(told) > 0.1
    for mine, bound in zip(told, exact, strict=True):
        assert mine <= bound + 1e-5
    # Written once more, from the whole distributions: the tokens in both lists, and the rest.
    for i in range(N):
        lists = [{*x[i].topk(100).indices.tolist(), ids[places[i] + 1]} for x in (p, q)]
        both = list(lists[0] & lists[1])
        a, b = p[i].exp()[both].double(), q[i].exp()[both].double()
        a, b = torch.cat([a, 1 - a.sum()[None]]), torch.cat([b, 1 - b.sum()[None]])
        assert told[i] == pytest.approx(float((a * (a / b).log2()).sum()), rel=1e-3, abs=1e-5)


def test_a_kl_of_tokens_that_only_one_recorded_is_that_of_all_others():
    one = step(0, -0.5, [Choice(1, b"a", -2.0, -2.0)])
    two = step(0, -0.9, [Choice(2, b"b", -2.0, -2.0)])
    p, q = math.exp(-0.5), math.exp(-0.9)
    exact = p * math.log2(p / q) + (1 - p) * math.log2((1 - p) / (1 - q))
    assert kl_bits(one, two) == pytest.approx(exact)


# --- a run, computed, drawn and continued again --------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--resample"], ["--no-cache"], ["--dtype", "bfloat16"]])
def test_a_replay_says_that_it_is_the_same(traced, shown, arguments):
    path = traced("--ablate", "L1.H2", "--temperature", 0.9)
    view = shown("generate", "--replay", path, *arguments)["views"][0]
    assert view["passed"]
    assert view["n_compared"] == N
    if not arguments:
        assert view["verdict"] == "the same, to the last digit"
        assert view["n_identical"] == N
    if "bfloat16" in arguments:
        assert 1e-4 < view["max_difference"] < view["tolerance"]
        assert [row["what"] for row in view["facts"]] == ["computed"]


def test_a_resampled_run_that_is_not_the_same_says_where(traced, shown):
    path = traced()
    lines = path.read_text().splitlines(keepends=True)
    head = json.loads(lines[0])
    head["seed"] += 1
    path.write_text(json.dumps(head) + "\n" + "".join(lines[1:]))
    view = shown("generate", "--replay", path, "--resample", code=5)["views"][0]
    assert view["verdict"] == "another text in 1 of 1 runs"
    first = view["runs"][0]["first_difference"]
    assert view["worst"][0]["step"] == first
    assert view["worst"][0]["drawn"]["id"] != steps_of(path)[first]["id"]
    assert shown("generate", "--replay", path)["views"][0]["passed"]  # the numbers are the same


def test_a_resampled_run_of_the_same_tokens_is_the_same_text_whatever_its_logprobs():
    ours = compared([(step(0), 0.5, None)], 1, 0, math.inf)
    assert ours.first_difference is None
    said = "the same text, its logprobs beyond what float16 allows"
    assert verdict("resampled", [ours], "float16", 0.02) == said
    assert verdict("resampled", [ours], "int8", 0.5) == "the same text"
    assert compared([(step(0), 0.5, None)], 2, 0, math.inf).first_difference == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop": ["The end", "x"]}, "--stop 'The end' --stop x"),
        ({"stop": ["\n", "a'\tb"]}, r"--stop $'\n' --stop $'a\'\tb'"),
        ({"keep_stop": True, "top_k": 5}, "--keep-stop --top-k 5"),
        ({"bias": [[262, 2.0], [7, None]]}, "--bias id:262=+2 --bias id:7=-inf"),
        ({"bias": [3, [5, 10**400]]}, f"--bias 3 --bias [5, {10**400}]"),
        ({"force": [[0, 5], [1, 6]], "top_p": 1.0}, "--force 2 steps"),
    ],
)
def test_options_are_told_as_they_are_typed(options, words):
    assert in_words(options) == words


def test_a_run_goes_on_from_any_step_as_it_did(traced, llmcli):
    path = traced("--num-samples", 2, "--temperature", 1.1, "--force", "9=50")
    for start in (0, 5, 9):
        again = path.with_name("again.jsonl")
        done = llmcli("generate", "--replay", path, "--run", 1, "--from-step", start, "--trace",
                      again)  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert [s["id"] for s in steps_of(again)] == [s["id"] for s in steps_of(path, 1)]
        assert llmcli("generate", "--replay", again, "--resample").exit_code == 0


def test_files_that_changes_are_read_from_are_those_of_the_run(traced, llmcli, tmp_path):
    vector, reference = tmp_path / "v.safetensors", tmp_path / "ref.txt"
    save_file({"vector": torch.ones(32)}, vector)
    reference.write_text("Once upon a time")
    changes = ["--steer", f"{vector} @ L1 * 2", "--ablate", "L1.H0:mean", "--reference", reference]
    path = traced(*changes)
    first = vector.read_bytes(), reference.read_text()
    replays = (["generate", "--replay", path], ["inspect", "--trace", path, "--step", 3],
               ["generate", "--replay", path, "--from-step", 3])  # fmt: skip
    for file, other in ((vector, b"another"), (reference, b"The end.")):
        file.write_bytes(other)
        for command in replays:
            assert_fails(llmcli(*command), 5, f"was recorded with another {file} than is here")
        vector.write_bytes(first[0])
        reference.write_text(first[1])
    for command in replays:
        assert llmcli(*command).exit_code == 0


def test_a_run_without_a_cache_is_computed_again_without_one(traced, llmcli, monkeypatch):
    from llmcli.gpt import generation

    path, with_cache = traced("--no-cache"), traced(name="other.jsonl")
    real, used = generation.generate, []

    def generate(*arguments, use_cache, **options):
        used.append(use_cache)
        return real(*arguments, use_cache=use_cache, **options)

    monkeypatch.setattr(generation, "generate", generate)
    for file, more in ((path, ()), (with_cache, ()), (with_cache, ("--no-cache",))):
        assert llmcli("generate", "--replay", file, "--resample", *more).exit_code == 0
    assert used == [False, True, False]


def test_a_replay_needs_no_more_memory_than_the_run(traced, llmcli, monkeypatch):
    from llmcli import budget

    real, asked = budget.budget, []

    def spy(*arguments):
        asked.append(arguments[2:])  # rows, and their tokens: all, and how many at once
        return real(*arguments)

    monkeypatch.setattr(budget, "budget", spy)
    for more in (), ("--no-cache",):
        path = traced(*more)
        assert llmcli("generate", "--replay", path).exit_code == 0
        assert llmcli("generate", "--replay", path, "--from-step", 2, "-q").exit_code == 0
    n = len(lines_of(path)[1]["ids"])
    assert asked == 3 * [(1, n + N, n)] + 3 * [(1, n + N, n + N)]


def test_what_ends_a_text_is_as_recorded_but_for_what_is_typed(llmcli, model_folder, tmp_path):
    common = ["generate", "-m", model_folder, "-n", 12, "--seed", 1]
    path = tmp_path / "run.jsonl"
    eos = list(read_config(model_folder).eos_ids)

    def told(*recorded, typed):
        llmcli(*common, "Once", "--trace", path, *recorded)
        done = llmcli("generate", "--replay", path, "--from-step", 0, "--json", *typed)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)["options"]

    assert told(typed=["--stop-id", 299])["stop_ids"] == sorted([*eos, 299])
    assert told("--ignore-eos", typed=["--stop-id", 299])["stop_ids"] == [299]
    assert told("--stop-id", 298, typed=["--ignore-eos"])["stop_ids"] == [298]
    assert told("--temperature", 0, typed=["--top-k", 5])["temperature"] == 0
    own = ["--ignore-eos", "--stop-id", eos[0], "--keep-stop"]
    for typed in ([], ["--stop-id", eos[0]], ["--ignore-eos", "--stop-id", eos[0]]):
        assert told("--ignore-eos", typed=typed)["stop_ids"] == (eos if typed else [])
        assert told(*own, typed=typed)["stop_ids"] == eos


def test_only_what_is_typed_changes_what_ends_a_text_and_is_shown():
    """With two end-of-text ids, one of which alone was named when the run was recorded."""
    tokenizer = SimpleNamespace(vocab_size=20)
    config = SimpleNamespace(eos_ids=(7, 8), vocab_size=20, n_ctx=64)
    opened = SimpleNamespace(config=config, tokenizer=tokenizer, token_bytes=bytes)
    record = SimpleNamespace(begun=begun(), steps=[], ids=[])
    for stop, hidden, keep, typed, own, expected in (
        ({7}, {7}, False, {"seed"}, {}, ({7}, {7})),
        ({7}, set(), True, {"seed"}, {}, ({7}, set())),
        ({7, 8}, {7, 8}, False, {"stop_id"}, {5}, ({5, 7, 8}, {5, 7, 8})),
        ({7, 8, 9}, {7, 8}, True, {"stop_id"}, {5}, ({5, 7, 8}, {7, 8})),
        ({7, 8}, set(), True, {"stop_id"}, {5}, ({5}, set())),
        (set(), set(), False, {"stop_id"}, {7}, ({7}, {7})),
        ({7, 8, 9}, {7, 8, 9}, False, {"ignore_eos"}, {}, ({9}, {9})),
        ({7, 8, 9}, {7, 8, 9}, False, {"ignore_eos", "stop_id"}, {7}, ({7}, {7})),
        ({7, 9}, {7, 9}, False, {"keep_stop"}, {}, ({7, 9}, set())),
    ):
        eos = frozenset() if "ignore_eos" in typed else frozenset(config.eos_ids)
        job = Job(opened, Sampling(), 0, 5, eos, frozenset(own), keep_stop="keep_stop" in typed)
        options = {"stop_ids": sorted(stop), "hidden_ids": sorted(hidden), "keep_stop": keep}
        head = header(options=job.options | options)
        past = PastRun(Path("run.jsonl"), head, {0: record}, opened, False)
        made = continued(past, job, typed, 0)
        assert (made.all_stop_ids, made.hidden_ids) == expected, typed


def test_what_would_end_the_recorded_part_is_refused(traced, llmcli):
    path = traced()
    third = steps_of(path)[3]["id"]
    done = llmcli("generate", "--replay", path, "--from-step", 8, "--stop-id", third)
    assert_fails(done, 2, "what comes before holds what is to end the text")
    assert llmcli("generate", "--replay", path, "--from-step", 3, "--stop-id", third).exit_code == 0


def test_a_run_goes_on_with_a_change_after_the_recorded_tokens(traced, llmcli):
    path, again = traced(), traced(name="again.jsonl")
    recorded = [each["id"] for each in steps_of(path)]
    done = llmcli("generate", "--replay", path, "--from-step", 4, "--force", "4=77", "--trace",
                  again, "--max-new-tokens", 20, "--temperature", 0)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    ids = [each["id"] for each in steps_of(again)]
    assert ids[:5] == [*recorded[:4], 77]
    assert len(ids) == 20
    assert all(each["rank"] == 0 for each in steps_of(again)[5:])  # greedy from there on


# --- bad input -----------------------------------------------------------------------------------


def test_what_a_run_reads_is_not_written_over(llmcli, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts, data = tmp_path / "p.jsonl", tmp_path / "data.jsonl"
    prompts.write_text('{"prompt": "Once"}\n')
    data.write_text('{"my": "data"}\n')
    out = tmp_path / "out.jsonl"
    common = ("generate", "-m", model_folder, "--max-new-tokens", 2)
    for arguments, said in (
        (("--prompts", prompts, "--trace", prompts), "p.jsonl is there already, and no trace"),
        (("Once", "--trace", data), "data.jsonl is there already, and no trace"),
        (("--prompts", prompts, "--out", out, "--trace", out), "is a file that --out writes"),
        (("--prompts", prompts, "--out", prompts), "is a file that this run reads"),
        (("--prompts", prompts, "--out", "out.jsonl", "--trace", out), "that --out writes"),
        (("--prompts", prompts, "--out", model_folder / "config.json"), "that this run reads"),
    ):
        assert_fails(llmcli(*common, *arguments), 2, said)
    assert not out.exists()
    assert prompts.read_text() == '{"prompt": "Once"}\n'
    assert data.read_text() == '{"my": "data"}\n'


def test_a_replay_of_a_run_with_a_hole_is_no_success(traced, llmcli, shown):
    path = traced()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:6], "garbage\n", *lines[7:]]))
    view = shown("generate", "--replay", path, code=5)["views"][0]
    said = "the same, to the last digit, as far as the damaged trace can be read"
    assert (view["passed"], view["n_compared"], view["verdict"]) == (False, 4, said)
    for trace, n in ((path, 1), (traced(name="whole.jsonl"), 0)):
        picture = llmcli("inspect", "--trace", trace, "--color", "always").stdout
        assert picture.count("[…]") == n
    done = llmcli("generate", "--replay", path, "--from-step", 8, "-q")
    assert_fails(done, 5, "no readable step 4 of run 0")
    assert llmcli("generate", "--replay", path, "--from-step", 4).exit_code == 0
    clash = llmcli("generate", "--replay", path, "--resample", "--from-step", 1, "-q")
    assert_fails(clash, 2, "--resample and --from-step do not go together")


def test_a_replay_of_a_trace_that_lost_a_whole_text_is_no_success(traced, shown):
    path = traced("--num-samples", 2)
    lines = path.read_text().splitlines(keepends=True)
    second = next(i for i, line in enumerate(lines) if '"run":1' in line and '"ids"' in line)
    path.write_text("".join([*lines[:second], "garbage\n", *lines[second + 1 :]]))
    assert not shown("generate", "--replay", path, code=5)["views"][0]["passed"]
    assert shown("generate", "--replay", path, "--run", 0)["views"][0]["passed"]
    path.write_text("".join(lines)[:-20])  # as by a kill
    assert shown("generate", "--replay", path)["views"][0]["passed"]


def test_damaged_lines_are_said_and_the_rest_is_read(traced, llmcli):
    path = traced()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = b'{"run": 0, "step": 4, "id": "no"}\n'
    lines[8] = b"\xff\xfe nonsense\n"
    lines[9] = b"[" * 100_000 + b"\n"
    path.write_bytes(b"".join(lines) + b'{"run":0,"st')
    done = llmcli("inspect", "--trace", path, "--json")
    assert done.exit_code == 0
    view = json.loads(done.stdout)["views"][0]
    assert view["n_tokens"] == N - 3
    assert [row["line"] for row in view["damaged"]] == [7, 9, 10, len(lines) + 1]
    assert "cut off" in view["damaged"][-1]["why"]
    assert f"{path}, line 7: " in done.stderr
    assert "1 more damaged line." in done.stderr
    assert llmcli("inspect", "--trace", path, "--step", 3).exit_code == 0
    done = llmcli("inspect", "--trace", path, "--step", 5, "--quiet")
    assert_fails(done, 5, "no readable step 4 of run 0")
    done = llmcli("generate", "--replay", path, "--json")
    assert json.loads(done.stdout)["views"][0]["n_compared"] == 4


def test_steps_that_are_missing_are_said_by_every_reader(traced, llmcli, shown, tmp_path):
    path, whole = traced(), traced(name="whole.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4] + lines[7:10] + lines[11:]))
    view = shown("inspect", "--trace", path)["views"][0]
    damaged = [
        {"line": 5, "why": "steps 2 to 4 of run 0 are missing before it"},
        {"line": 8, "why": "step 8 of run 0 is missing before it"},
    ]
    assert view["damaged"] == damaged
    assert (view["n_tokens"], view["n_finished"], view["tokens_per_s"]) == (N - 4, 0, None)
    assert view["runs"][0]["finish_reason"] is None
    assert shown("inspect", "--trace", path, "--diff", whole)["views"][0]["n_common"] == 2
    assert shown("generate", "--replay", path, code=5)["views"][0]["n_compared"] == 2
    for command in (["inspect", "--trace", path], ["inspect", "--trace", path, "--diff", whole],
                    ["generate", "--replay", path]):  # fmt: skip
        said = f"{path}, line 5: steps 2 to 4 of run 0 are missing before it.\n"
        assert said in llmcli(*command).stderr


def test_gzip_without_its_end_was_cut_off(traced, llmcli):
    path = traced(name="run.jsonl.gz")
    data = path.read_bytes()
    path.write_bytes(data[:-10])  # all lines are whole
    done = llmcli("inspect", "--trace", path, "--json")
    view = json.loads(done.stdout)["views"][0]
    assert view["n_tokens"] == N
    assert view["damaged"] == [{"line": N + 3, "why": "cut off, as by a kill"}]
    assert f"{path}, line {N + 3}: cut off, as by a kill" in done.stderr
    assert llmcli("generate", "--replay", path).exit_code == 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_trace_and_its_run_tell_the_same_pace(n, llmcli, model_folder, shown, tmp_path):
    path = tmp_path / "run.jsonl"
    done = llmcli("generate", "Once", "-m", model_folder, "--seed", 1, "-n", N, "--ignore-eos",
                  "--trace", path, "--json", "--num-samples", n)  # fmt: skip
    told = json.loads(done.stdout)["timings"]["decode_tokens_per_s"]
    view = shown("inspect", "--trace", path)["views"][0]
    assert view["tokens_per_s"] == pytest.approx(told, rel=1e-3)
    assert sum(row["tokens_per_s"] for row in view["runs"]) == pytest.approx(told, rel=1e-3)


def test_gzip_that_ends_in_nonsense_is_read_as_far_as_it_goes(traced, llmcli):
    path = traced(name="run.jsonl.gz")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3] + b"\xff" * 400)
    done = llmcli("inspect", "--trace", path, "--json")
    assert done.exit_code == 0
    view = json.loads(done.stdout)["views"][0]
    assert 0 < view["n_tokens"] < N
    assert view["damaged"]


def test_gzip_that_breaks_anywhere_is_read_up_to_there(traced):
    path = traced(name="run.jsonl.gz")
    data = path.read_bytes()
    header = len(gzip.decompress(data).splitlines(keepends=True)[0])
    for cut in range(len(data)):
        whole = zlib.decompressobj(wbits=31).decompress(data[:cut])
        if len(whole) > header:
            path.write_bytes(data[:cut] + b"\xff" * 400)
            assert len(list(Reader(path))) >= whole.count(b"\n") - 1


def test_a_trace_of_several_gzip_members_is_read_as_one(traced, monkeypatch):
    path = traced(name="run.jsonl.gz")
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(b"".join(gzip.compress(line) for line in lines))
    reader = Reader(path)
    assert len(list(reader)) == len(lines) - 1
    assert not reader.damaged
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(512))  # as a tape fills its blocks
    for block in (BLOCK_NBYTES, len(whole)):
        monkeypatch.setattr("llmcli.trace.BLOCK_NBYTES", block)
        reader = Reader(path)
        assert len(list(reader)) == len(lines) - 1
        assert not reader.damaged


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", 5, "is empty"),
        (b"\x00\x01\x02binary\xff" * 1000, 5, "is no trace"),
        (b"Once upon a time\n", 5, "is no trace"),
        (b'{"schema": true}\n', 5, "is no trace"),
        (b"[" * 100_000, 5, "is no trace"),
        (gzip.compress(b"", mtime=0), 5, "is empty"),
        (json.dumps(header(schema=99)).encode(), 6, "has schema 99; this llmcli reads up to 1"),
        (json.dumps(header(model=[])).encode(), 5, "damaged header"),
        (json.dumps(header(seed="1")).encode(), 5, "damaged header"),
        (json.dumps(header(read={"x": 5})).encode(), 5, "damaged header"),
        (json.dumps(header(model=model(tokenizer_sha256={"x": 5}))).encode(), 5, "damaged header"),
        (json.dumps(header(model=model(files={"x": {"header_sha256": 5}}))).encode(), 5, "damaged"),
        (
            json.dumps(
                header(model=model(files={"x": {"header_sha256": "a", "sampled_sha256": 5}}))
            ).encode(),
            5,
            "damaged",
        ),
        (json.dumps(header(options={"ablate": 5})).encode(), 5, "damaged header"),
        (json.dumps(header(options={"steer": ["a\0.safetensors @ L0"]})).encode(), 5, "damaged"),
        (json.dumps(header(options={"reference": "a\0b"})).encode(), 5, "damaged header"),
        (json.dumps(header()).encode() + b"\n", 2, "has a header and no run"),
    ],
)
def test_what_is_no_trace_is_refused_in_a_sentence(llmcli, tmp_path, content, code, said):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    assert_fails(llmcli("inspect", "--trace", path), code, said)
    assert_fails(llmcli("inspect", "--trace", path, "--step", 0), code, said)
    assert_fails(llmcli("generate", "--replay", path), code, said)


def test_options_that_make_no_sense_are_a_damaged_header(traced, llmcli):
    path = traced()
    lines = path.read_text().splitlines(keepends=True)
    for changes in (
        {"temperature": "hot"}, {"temperature": -1}, {"temperature": 1e-320}, {"top_p": math.nan},
        {"top_k": 2.5}, {"top_k": True}, {"repetition_penalty": 0}, {"max_new_tokens": 30.5},
        {"bias": [1]},
        {"bias": [[10**6, 1]]}, {"bias": [[5, math.inf]]}, {"stop_ids": None}, {"force": [[1]]},
        {"force": [[1, -1]]}, {"force": [[0.5, 1]]},
    ):  # fmt: skip
        head = json.loads(lines[0])
        head["options"].update(changes)
        path.write_text(json.dumps(head) + "\n" + "".join(lines[1:]))
        assert_fails(llmcli("generate", "--replay", path), 5, "damaged header")


def test_another_model_is_named_by_what_differs(traced, llmcli, copied, model_folder):
    path = traced()
    done = llmcli("inspect", "--trace", path, "--step", 1, "-m", FABLE)
    assert_fails(done, 5, "another weights file model.safetensors")
    edit_json(copied / "tokenizer.json", version="2.0")
    done = llmcli("generate", "--replay", path, "-m", copied)
    assert_fails(done, 5, "another tokenizer file tokenizer.json")


def test_options_about_ids_that_only_pad_the_vocabulary_are_damage(llmcli, copied, tmp_path):
    add_token(copied / "tokenizer.json", 319, "<last>")  # those between have no token
    edit_json(copied / "config.json", vocab_size=320)
    weights = load_file(copied / "model.safetensors")
    table = weights["transformer.wte.weight"]
    weights["transformer.wte.weight"] = torch.cat([table, torch.zeros(20, table.shape[1])])
    save_file(weights, copied / "model.safetensors")
    path = tmp_path / "padded.jsonl"
    done = llmcli("generate", "Once", "-m", copied, "--trace", path, "--max-new-tokens", 3)
    assert done.exit_code == 0, done.output
    lines = path.read_text().splitlines(keepends=True)
    for changes in {"bias": [[315, 1.0]]}, {"force": [[1, 315]]}:
        head = json.loads(lines[0])
        head["options"].update(changes)
        path.write_text(json.dumps(head) + "\n" + "".join(lines[1:]))
        assert_fails(llmcli("generate", "--replay", path), 5, "damaged header")


def test_ids_that_the_model_has_not_are_damage(traced, llmcli):
    path = traced()
    path.write_text(path.read_text().replace('"step":3,"id":', '"step":3,"id":9'))
    assert_fails(llmcli("generate", "--replay", path), 5, "is none of the tokenizer's")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inspect", "--step", 3], 2, "--step needs --trace"),
        (["inspect", "--trace", "RUN", "--step", N], 2, "has no step 12 in run 0"),
        (["inspect", "--trace", "RUN", "--run", 1], 2, "has no run 1"),
        (["inspect", "--trace", "RUN", "--step", 1, "--run", 1], 2, "has no run 1"),
        (["inspect", "--trace", "RUN", "--view", "lens"], 2, "is about one step"),
        (["inspect", "Once", "--trace", "RUN"], 2, "do not go together"),
        (["inspect", "--trace", "RUN", "--step", 1, "--diff", "RUN"], 2, "do not go together"),
        (["inspect", "--trace", "missing.jsonl"], 3, "cannot be read"),
        (["inspect", "--trace", "x", "--tensors", "x.safetensors"], 2, "Views of a --step"),
        (["inspect", "--trace", "/usr"], 3, "cannot be read"),
        (["inspect", "--trace", "/"], 2, "--trace is to name a file, and / is a folder"),
        (["generate", "--from-step", 3], 2, "--from-step needs --replay"),
        (["generate", "Once", "--replay", "RUN"], 2, "A prompt and --replay"),
        (["generate", "--replay", "RUN", "--top-k", 3], 2, "--top-k and --replay"),
        (["generate", "--replay", "RUN", "--from-step", 13], 2, "has 12 steps in run 0"),
        (["generate", "--replay", "RUN", "--from-step", 12], 2, "the run ends after 12 tokens"),
        (["generate", "--replay", "RUN", "--from-step", 5, "--force", "3=1"], 2, "before 5"),
        (
            ["generate", "--replay", "RUN", "--from-step", 5, "--trace", "RUN"],
            2,
            "a file that this run reads",
        ),
        (["generate", "Once", "--trace-lens"], 2, "--trace-lens needs --trace"),
        (["generate", "Once", "--trace", "run.txt"], 2, "must end in"),
        (["generate", "Once", "--trace", "/nowhere/run.jsonl"], 3, "cannot be written"),
        (["generate", "Once", "--trace", "x.jsonl", "--dry-run"], 2, "do not go together"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(traced, llmcli, arguments, code, said):
    path = traced()
    assert_fails(llmcli(*(path if a == "RUN" else a for a in arguments)), code, said)


def test_a_trace_that_is_replaced_is_said(llmcli, model_folder, tmp_path):
    path = tmp_path / "run.jsonl"
    once = ["generate", "Once", "-m", model_folder, "-n", 2, "--trace", path]
    assert llmcli(*once).stderr == ""
    assert "run.jsonl is replaced" in llmcli(*once).stderr
    assert llmcli(*once, "-q").stderr == ""


def test_a_trace_is_not_written_over_while_results_are_resumed(
    traced, llmcli, tmp_path, model_folder
):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("Once\nShe\n")
    path = traced("--prompts", prompts, "--out", out, prompt=())
    out.write_text(out.read_text().splitlines(keepends=True)[0])
    before = path.read_bytes()
    done = llmcli("generate", "-m", model_folder, "--seed", 1, "--max-new-tokens", N,
                  "--ignore-eos", "--prompts", prompts, "--out", out, "--trace", path)  # fmt: skip
    assert_fails(done, 2, "is there already")
    assert path.read_bytes() == before


def test_a_reader_passes_over_steps_that_come_twice_or_before_their_text(tmp_path):
    path = tmp_path / "run.jsonl"
    writer = Writer(path)
    for line in (json.dumps(header()), line_of(step(0)), line_of(begun()), line_of(step(0)),
                 line_of(step(0)), line_of(begun()), line_of(step(1))):  # fmt: skip
        writer.write(line)
    writer.close()
    reader = Reader(path)
    assert [each.index for each in records(reader)[0].steps] == [0, 1]
    assert [damage.line for damage in reader.damaged] == [2, 5, 6]


def test_a_file_without_line_ends_is_given_up_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("llmcli.trace.MAX_LINE_NBYTES", 1 << 20)
    path = tmp_path / "zeros.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(IntegrityError, match="is no trace"):
        Reader(path)
