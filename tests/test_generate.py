"""`llmcli generate`: every control, every probability, and what is told of them."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from unittest.mock import Mock

import jsonschema
import pytest
import torch
from conftest import add_token, edit_json, random_gpt2
from test_cli import PACKAGE_SCHEMAS, assert_fails, in_terminal, make_it_say

from llmcli.commands.job import Job
from llmcli.commands.single import Echo
from llmcli.commands.writers import TintWriter
from llmcli.gpt.facts import Choice, Facts
from llmcli.gpt.generation import Step
from llmcli.streaming import Piece

SCHEMA = json.loads((PACKAGE_SCHEMAS / "generate.schema.json").read_text())


def schema_of(name):
    return {**SCHEMA["$defs"][name], "$defs": SCHEMA["$defs"]}


@pytest.fixture
def generate(llmcli, model_folder):
    """Run `generate "Once"` on the random model, seeded; its result."""

    def run(*arguments, model=model_folder, prompt=("Once",), input=None):
        return llmcli("generate", *prompt, "-m", model, "--seed", 1, "--max-new-tokens", 12,
                      *arguments, input=input)  # fmt: skip

    return run


@pytest.fixture
def result(generate):
    """The object that `--json` prints, checked against the schema."""

    def run(*arguments, **options):
        done = generate("--json", *arguments, **options)
        assert done.exit_code == 0, done.stderr
        assert done.stderr == ""
        value = json.loads(done.stdout, parse_constant=pytest.fail)
        jsonschema.validate(value, SCHEMA)
        return value

    return run


def ids(result, sample=0):
    return [token["id"] for token in result["samples"][sample]["tokens"]]


# --- JSON ----------------------------------------------------------------------------------------


def test_json_tells_the_same_story_as_the_text(generate, result):
    value = result("--top-probs", 3, "--top-k", 5)
    text = generate("--top-k", 5).stdout
    assert value["samples"][0]["text"] == text
    assert value["prompt"]["text"] == "Once"
    for token in value["samples"][0]["tokens"]:
        assert [c["logprob"] for c in token["top"]] == sorted(
            (c["logprob"] for c in token["top"]), reverse=True
        )
        assert sum(math.exp(c["drawn_logprob"]) for c in token["drawn_top"]) <= 1 + 1e-6
        assert token["logprob"] <= token["drawn_logprob"]


def test_what_the_filters_cut_is_null_not_infinity(result):
    value = result("--top-probs", 5, "--top-k", 2)
    cut = [c for t in value["samples"][0]["tokens"] for c in t["top"][2:]]
    assert {c["drawn_logprob"] for c in cut} == {None}


def test_a_token_that_is_not_utf8_by_itself_has_its_bytes(result):
    tokens = [t for s in range(6) for t in result("--seed", s, "--temperature", 3)["samples"][0]
              ["tokens"]]  # fmt: skip
    assert any("bytes" in token for token in tokens)
    for token in tokens:
        if "bytes" in token:
            assert bytes(token["bytes"]).decode("utf-8", "replace") == token["text"]


def test_jsonl_events_validate_and_add_up_to_the_json(generate, result):
    lines = [
        json.loads(line) for line in generate("--jsonl", "--num-samples", 2).stdout.splitlines()
    ]
    for line in lines:
        jsonschema.validate(line, schema_of("event"))
    value = result("--num-samples", 2)
    for sample in range(2):
        mine = [line for line in lines if line.get("sample") == sample]
        text = "".join(line["new_text"] for line in mine if line["event"] == "step")
        assert text == mine[-1]["text"] == value["samples"][sample]["text"]
    assert [lines[0]["event"], lines[-1]["event"]] == ["start", "done"]


def test_a_seed_that_was_drawn_is_told_and_repeats_the_text(llmcli, model_folder):
    common = ["generate", "Once", "-m", model_folder, "--max-new-tokens", 8, "--json"]
    first = json.loads(llmcli(*common).stdout)
    again = json.loads(llmcli(*common, "--seed", first["seed"]).stdout)
    assert ids(first) == ids(again)
    assert json.loads(llmcli(*common).stdout)["seed"] != first["seed"]


# --- filters -------------------------------------------------------------------------------------


def test_bias_forbids_or_forces_a_token(result):
    free = ids(result())
    assert free[0] not in ids(result("--bias", f"{free[0]}=-inf"))
    assert set(ids(result("--bias", "7=1000"))) == {7}


def test_every_filter_reaches_the_sampling(result):
    options = {
        "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "penalty_window": 7, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01,
        "typical_p": 0.99,
    }  # fmt: skip
    arguments = [a for k, v in options.items() for a in (f"--{k.replace('_', '-')}", v)]
    value = result(*arguments, "--bias", "5=-inf", "--bias", "6=2")
    told = value["options"]
    assert {key: told[key] for key in options} == options
    assert told["bias"] == [[5, None], [6, 2.0]]


def test_a_top_k_from_a_file_larger_than_the_vocabulary_is_clamped(result, copied):
    path = copied / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, "top_k": 5000}))
    assert result(model=copied)["options"]["top_k"] == 300


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("x", "TOKEN=NUMBER"),
        ("=3", "TOKEN=NUMBER"),
        ("x=much", "TOKEN=NUMBER"),
        ("x=nan", "TOKEN=NUMBER"),
        ("x=inf", "TOKEN=NUMBER"),
        ("little girl=1", '"little girl" is not one token'),
        ("999=1", "999"),
    ],
)
def test_a_bias_that_makes_no_sense_is_refused(entry, said, generate):
    assert_fails(generate("--bias", entry), 2, said)


def test_help_names_the_filters_in_their_order(llmcli):
    from llmcli.config import ORDER

    text = " ".join(llmcli("generate", "--help").stdout.split())
    listed = re.search(r"in this order: (.*?)\.", text)[1]
    listed = listed.replace("repetition, presence and frequency penalty",
                            "repetition penalty, presence penalty, frequency penalty")  # fmt: skip
    assert tuple(re.sub("[ -]", "_", name) for name in listed.split(", ")) == ORDER


# --- stops ---------------------------------------------------------------------------------------


def test_nothing_from_the_stop_on_is_shown(generate):
    text = generate().stdout
    stop = text[5:8]
    at = text.index(stop)
    assert generate("--stop", stop).stdout == text[:at]
    assert generate("--stop", stop, "--keep-stop").stdout == text[: at + 3]
    assert generate("--stop", "no such text", "--stop", stop).stdout == text[:at]


def test_a_stop_ends_the_run_and_says_so(result, generate):
    text = generate().stdout
    value = result("--stop", text[5:8])
    assert value["samples"][0]["finish_reason"] == "stop"
    assert len(ids(value)) < 12


def test_a_stop_id_is_hidden_unless_kept(result):
    free = result()
    stop = ids(free)[4]
    value, kept = result("--stop-id", stop), result("--stop-id", stop, "--keep-stop")
    assert ids(value)[-1] == ids(kept)[-1] == stop
    assert len(kept["samples"][0]["text"]) > len(value["samples"][0]["text"])
    assert value["samples"][0]["finish_reason"] == "stop"


# --- samples -------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_how_many_there_are(result):
    three, five = result("--num-samples", 3), result("--num-samples", 5)
    assert [ids(three, i) for i in range(3)] == [ids(five, i) for i in range(3)]
    assert ids(result()) == ids(five)
    assert len({tuple(ids(five, i)) for i in range(5)}) > 1
    alone = [t["logprob"] for t in result()["samples"][0]["tokens"]]
    batched = [t["logprob"] for t in five["samples"][0]["tokens"]]
    torch.testing.assert_close(torch.tensor(alone), torch.tensor(batched), atol=1e-4, rtol=0)


def test_samples_in_a_pipe_are_parted_by_a_line(generate, result):
    texts = [sample["text"] for sample in result("--num-samples", 3)["samples"]]
    assert generate("--num-samples", 3).stdout == "\n---\n".join(texts) + "\n"
    assert generate("--num-samples", 3, "--separator", "==").stdout == "\n==\n".join(texts) + "\n"


def test_samples_on_a_terminal_have_headings(model_folder):
    shown, code = in_terminal(["generate", "Once", "-m", model_folder, "--num-samples", 2,
                               "--max-new-tokens", 3, "--seed", 5])  # fmt: skip
    assert code == 0
    assert [line for line in shown.splitlines() if line.startswith("──")] == [
        "── sample 0 of 2 ──",
        "── sample 1 of 2 ──",
    ]


# --- what if -------------------------------------------------------------------------------------


def test_a_forced_token_is_marked_with_the_probability_it_had(result):
    free = result()
    value = result("--force", "2=Q", "--force", f"0={ids(free)[0]}")
    tokens = value["samples"][0]["tokens"]
    assert [token["forced"] for token in tokens[:4]] == [True, False, True, False]
    assert tokens[2]["text"] == "Q"
    assert tokens[2]["logprob"] < 0
    assert ids(value)[:2] == ids(free)[:2]


@pytest.mark.parametrize("entry", ["cat", "3=", "x=cat", "12=Q", "-1=Q", "0=little girl"])
def test_a_force_that_makes_no_sense_is_refused(entry, generate):
    assert_fails(generate("--force", entry), 2, "--force")


# --- seeing --------------------------------------------------------------------------------------


def test_echo_prints_the_prompt_to_the_byte(generate):
    plain = generate().stdout
    assert generate("--echo").stdout == "Once" + plain


def test_a_word_that_is_a_token_after_a_space_is_named(llmcli):
    done = llmcli("generate", "Tom had a", "--force", "1=cat")
    assert_fails(done, 2, r'"cat" is not one token but 2.*\n" cat" \(id:\d+\), with the space')


def test_n_is_short_for_max_new_tokens(result):
    assert len(result("-n", 3)["samples"][0]["tokens"]) == 3


def test_a_byte_order_mark_is_no_part_of_a_piped_prompt(result):
    told = [result(prompt=(), input=mark + b"Once")["prompt"] for mark in (b"", b"\xef\xbb\xbf")]
    assert told[0] == told[1]


def test_one_line_end_is_no_part_of_a_piped_prompt(result):
    told = [result(prompt=(), input=f"Once{end}")["prompt"]["text"] for end in ("\n", "\r\n")]
    assert told == ["Once", "Once"]
    assert result(prompt=(), input=b"Once\r\n\r\n")["prompt"]["text"] == "Once\r\n"


@pytest.mark.parametrize("prefixed", [True, False])
def test_echo_keeps_characters_of_several_tokens_whole(prefixed, llmcli, copied):
    """Nothing stands before the first token of a model without a prefix, such as GPT-2."""
    if not prefixed:
        edit_json(copied / "tokenizer.json", post_processor=None)
    done = llmcli("generate", "你好", "-m", copied, "--echo", "--color-probs", "--color", "always",
                  "--seed", 1, "--max-new-tokens", 2)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert re.sub(r"\x1b\[[\d;]*m|[‹›«»]", "", done.stdout).split("\n")[1][:2] == "你好"


@pytest.mark.parametrize("quiet", [True, False])
def test_a_force_that_the_text_does_not_reach_is_told(quiet, generate):
    done = generate("--force", "0=0", "--force", "3=Q", *["-q"] * quiet)
    said = "The text ended before step 3, which --force names."
    assert done.exit_code == 0
    assert (said in done.stderr) is not quiet
    assert "--force" not in generate("--force", "3=Q", "--ignore-eos").stderr


def test_a_step_is_headed_by_what_it_follows_though_a_stop_is_held_back(llmcli):
    done = llmcli("generate", "Once upon a time, there was a", "--force", "0= little", "--force",
                  "1= girl", "--stop", "little boy", "-n", 2, "--top-probs", 1,
                  "--color", "always")  # fmt: skip
    heads = [line for line in done.stdout.splitlines() if "entropy" in line]
    assert len(heads) == 2
    assert " was a little\x1b" in heads[1]


def test_a_character_of_several_tokens_is_tinted_by_the_least_probable(capsys):
    facts = [Facts(Choice(0, math.log(p), 0.0), 0, 0.0, 1.0, (), ()) for p in (1e-6, 0.9)]
    steps = [Step(0, i, 0, False, 0.0, None, known) for i, known in enumerate(facts)]
    texts, shown = ["", "日"], []
    for echo in (Echo("", texts, steps), None):
        writer = TintWriter(1, "always", echo)
        writer.begin(0)
        for step, text in zip(steps, texts, strict=True) if echo is None else ():
            writer.take(Piece(step, text, None))
        shown.append(capsys.readouterr().out.splitlines()[1:])
    assert shown[0] == shown[1] != []


def test_quiet_says_nothing(generate):
    assert "perplexity" in generate("--echo", "--top-probs", 1).stderr
    assert generate("--echo", "--top-probs", 1, "-q").stderr == ""


def test_echo_tells_the_prompts_own_probabilities(result, model_folder):
    from llmcli.config import read_config
    from llmcli.gpt.weights import load_model

    options = ("--echo", "--top-probs", 2, "--dtype", "float32")
    prompt = result(*options, prompt=("Once upon a",))["prompt"]
    model = load_model(model_folder, read_config(model_folder))
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt["ids"]])).log_softmax(-1)[0]
    expected = [logprobs[i, id].item() for i, id in enumerate(prompt["ids"][1:])]
    told = [token["logprob"] for token in prompt["tokens"]]
    torch.testing.assert_close(torch.tensor(told), torch.tensor(expected), atol=1e-4, rtol=0)
    assert prompt["perplexity"] == pytest.approx(math.exp(-sum(expected) / len(expected)), 1e-4)
    assert [token["position"] for token in prompt["tokens"]] == list(range(1, len(prompt["ids"])))


def test_echo_and_top_probs_list_the_prompts_tokens_first(generate):
    done = generate("--echo", "--top-probs", 2, prompt=("Once upon a",))
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    prompt = [row for row in rows if row[0] == "prompt"]
    assert rows[: len(prompt)] == prompt
    assert sorted({int(row[1]) for row in prompt}) == [1, 2, 3, 4]
    columns = done.stdout.splitlines()[0].split("\t")
    of_filters = [columns.index("drawn_prob"), columns.index("kept")]
    assert {row[i] for row in prompt for i in of_filters} == {""}  # nothing was drawn there
    assert "" not in {row[i] for row in rows[len(prompt) :] for i in of_filters}
    assert "prompt perplexity" in done.stderr


def test_color_probs_off_a_terminal_is_the_text(generate):
    assert generate("--color-probs").stdout == generate().stdout


def test_color_probs_of_a_sample_do_not_tint_the_next(llmcli):
    """What is hidden at a sample's end, improbable as it was, is over then."""
    done = llmcli("generate", "Once upon a time", "--temperature", 0, "-n", 3, "--num-samples", 2,
                  "--force", "1=0", "--color-probs", "--color", "always")  # fmt: skip
    lines = done.stdout.splitlines()[1:]
    assert "sample 0" in lines[0]
    assert "sample 1" in lines[2]
    assert lines[1] == lines[3]
    assert "," in lines[1]


def test_color_probs_mark_the_least_likely_without_colour_too(model_folder):
    arguments = ["generate", "Once", "-m", model_folder, "--color-probs", "--echo", "--seed", 1,
                 "--max-new-tokens", 20, "--temperature", 2]  # fmt: skip
    shown, code = in_terminal(arguments, env={"NO_COLOR": "1"})
    assert code == 0
    assert "\x1b" not in shown
    assert shown.count("‹") > 1
    assert shown.count("‹") == shown.count("›")
    coloured, _ = in_terminal(arguments, env={"COLORTERM": "truecolor"})
    assert "\x1b[" in coloured
    key, text = re.sub(r"\x1b\[[\d;]*m", "", coloured).split("\n", 1)
    assert "≥ 5 %" in key
    assert text == shown.split("\n", 1)[1]


def test_color_probs_show_control_characters_harmlessly(copied):
    make_it_say(copied, "\x1b[31m[red]\x07")
    shown, code = in_terminal(["generate", "x", "-m", copied, "--max-new-tokens", 2,
                               "--color-probs"])  # fmt: skip
    assert code == 0
    assert "\\x1b[31m[red]\\x07" in shown
    assert "\x07" not in shown


# --- before the run ------------------------------------------------------------------------------


def test_a_stop_without_a_text_is_refused(generate):
    assert_fails(generate("--stop", ""), 2, "--stop needs a text", "For example")


def test_timings_of_one_token_are_singular_and_claim_no_speed(generate):
    told = generate("--stats", "--max-new-tokens", 1).stderr
    assert re.search(r"\| decode 1 token \| finish length \|", told), told


def test_the_prompts_tokens_and_those_that_follow_have_titles_of_their_own(generate):
    told = generate("--echo", "--top-probs", 2, "--max-new-tokens", 2, "--color", "always").stdout
    prompt, step = (told.find(f"── {name} ──") for name in ("the prompt, by position",
                                                             "what follows, by step"))  # fmt: skip
    assert 0 < prompt < step
    assert "kept" not in told[prompt:step]
    assert "kept" in told[step:]


def test_dry_run_tells_the_budget(generate):
    told = json.loads(generate("--dry-run", "--json").stdout)
    jsonschema.validate(told, schema_of("dry_run"))
    assert told["needed_nbytes"] == sum(
        told[key]
        for key in ("weights_nbytes", "cache_nbytes", "activations_nbytes", "torch_nbytes")
    )
    assert told["decode_tokens_per_s"] > 0
    text = generate("--dry-run").stdout
    assert re.search(r"^needed +\d+ MiB$", text, re.M)
    assert re.search(r"^speed +\d+  tok/s", text, re.M)


def test_dry_run_measures_the_whole_prompt(llmcli, monkeypatch):
    real, lengths = Job.run, []

    def run(job, model, prompts, *rest):
        lengths.append(len(prompts[0]))
        return real(job, model, prompts, *rest)

    monkeypatch.setattr(Job, "run", run)
    text = " a" * 511  # fills the context of fable, with what begins each text
    told = json.loads(llmcli("generate", text, "--dry-run", "--json").stdout)
    assert lengths == [told["n_tokens"]] == [512]
    assert told["first_token_s"] > 0
    assert told["decode_tokens_per_s"] is None  # one token can come
    assert "nothing to measure: 1 token can follow" in llmcli("generate", text, "--dry-run").stdout


def test_too_little_memory_is_refused_with_numbers_before_anything_is_loaded(generate, monkeypatch):
    monkeypatch.setattr("llmcli.budget.available_nbytes", lambda: 100 << 20)
    monkeypatch.setattr("llmcli.gpt.weights.load_model", pytest.fail)
    assert_fails(generate(), 7, r"needs 3\d\d MiB", "100 MiB are available", "--quantize int8")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), OSError(12, "no")],
    ids=["Python", "torch", "mmap"],
)
def test_memory_that_is_not_there_is_a_sentence_whoever_says_it(error, generate, monkeypatch):
    monkeypatch.setattr("llmcli.gpt.weights.load_model", Mock(side_effect=error))
    assert_fails(generate(), 7, "There is not enough memory", "--dry-run")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_used_and_told(dtype, result):
    value = result("--dtype", dtype)
    assert value["model"]["dtype"] == dtype
    exact = result()["samples"][0]["tokens"][0]
    assert value["samples"][0]["tokens"][0]["logprob"] == pytest.approx(exact["logprob"], abs=0.5)


def test_a_device_that_is_not_there_is_refused(generate):
    if not torch.cuda.is_available():
        assert_fails(generate("--device", "cuda"), 2, "cuda", "Devices: .*cpu")


def test_more_threads_than_can_be_of_use_are_refused(generate):
    many = max(64, 4 * os.cpu_count())
    done = generate("--threads", many + 1)
    assert done.exit_code == 2
    assert f"--threads {many + 1} is more than the {many}" in done.stderr


def test_threads_are_set(generate):
    before = torch.get_num_threads()
    try:
        assert generate("--threads", 2).exit_code == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- combinations and input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--json", "--jsonl"],
        ["--top-probs", "3", "--color-probs"],
        ["--json", "--color-probs"],
        ["--prompts", "nothing.txt"],
        ["--out", "x.jsonl"],
        ["--stop-id", "300"],
        ["--min-p", "nan"],
        ["--presence-penalty", "inf"],
        ["--num-samples", "0"],
    ],
    ids=" ".join,
)
def test_contradictions_and_nonsense_are_refused(options, generate):
    result = generate(*options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert options[0] in result.stderr


def test_a_prompt_with_nul_and_every_control_character_works(generate, result):
    text = "".join(map(chr, range(32)))
    assert generate(prompt=(), input=text.encode()).exit_code == 0
    assert result("--echo", prompt=("-",), input=text.encode())["prompt"]["text"] == text


def test_a_hundred_megabytes_on_stdin_are_refused_quickly_and_truncated_on_request(model_folder):
    source = "head -c 100000000 /dev/zero | tr '\\0' a"
    command = f"{sys.executable} -m llmcli generate -m {model_folder} --max-new-tokens 1"
    for extra, code in ("", 2), ("--truncate-prompt left", 0):
        run = subprocess.run(
            ["bash", "-c", f"{source} | {command} {extra}"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert run.returncode == code, run.stderr
        assert b"more than" in run.stderr


def test_the_empty_prompt_starts_where_the_tokenizer_starts(result):
    assert result(prompt=("",))["prompt"]["ids"] == [0]


def test_greedy_is_greedy_whatever_the_seed(llmcli):
    common = ["generate", "Tom had a", "--temperature", 0, "--max-new-tokens", 20]
    assert llmcli(*common, "--seed", 1).stdout == llmcli(*common, "--seed", 2).stdout


# --- what a severe reader found ------------------------------------------------------------------


def test_ids_that_only_pad_the_vocabulary_are_never_drawn(result, copied):
    random_gpt2(seed=3, vocab_size=512, n_positions=64).save_pretrained(copied)  # 300 have tokens
    value = result("--temperature", 9, "--top-p", 1, "--top-probs", 100, model=copied)
    assert max(ids(value)) < 300
    top = [c for token in value["samples"][0]["tokens"] for c in token["top"]]
    padding = [c for c in top if c["id"] >= 300]
    assert padding
    assert {(c["text"], c["drawn_logprob"]) for c in padding} == {("", None)}


@pytest.mark.parametrize("how", [(), ("--temperature", 9, "--top-p", 1, "--bias", "5=-inf")])
def test_ids_between_those_of_tokens_are_never_drawn(how, result, generate, copied):
    add_token(copied / "tokenizer.json", 319, "<last>")
    random_gpt2(seed=4, vocab_size=320, n_positions=64).save_pretrained(copied)
    value = result("--top-probs", 100, "--seed", 3, *how, model=copied)
    assert {*range(300, 319)}.isdisjoint(ids(value))
    top = [c for token in value["samples"][0]["tokens"] for c in token["top"]]
    unused = [c for c in top if 300 <= c["id"] < 319]
    assert {(c["text"], c["drawn_logprob"]) for c in unused} == {("", None)}
    value = result("--force", "0=319", "--force", "1=<last>", *how, model=copied)
    assert ids(value)[:2] == [319, 319]
    for option in (["--force", "0=302"], ["--bias", "302=1"]):
        done = generate(*option, model=copied)
        assert_fails(done, 2, "no token with id 302", "0 to 319, 301 in all")


def test_added_tokens_without_a_row_of_the_model_are_none_of_its_tokens(result, generate, copied):
    add_token(copied / "tokenizer.json", 300, "[PAD]")
    add_token(copied / "tokenizer.json", 301, "<user>", special=False)
    plain = result(prompt=("[PAD]",))
    told = result(model=copied, prompt=("[PAD]",))
    assert (told["prompt"], ids(told)) == (plain["prompt"], ids(plain))
    said = "'<user>' is a token of the tokenizer, but none of the model's 300"
    assert_fails(generate(model=copied, prompt=("Hi <user>!",)), 2, said, "Leave it out")
    assert_fails(generate("--force", "0=300", model=copied), 2, "no token with id 300")
    assert_fails(generate("--bias", "[PAD]=1", model=copied), 2, "not one token")


def test_a_tokenizer_of_another_model_is_refused(generate, copied):
    random_gpt2(seed=3, vocab_size=299, n_positions=64).save_pretrained(copied)
    said = ("the tokenizer has ids up to 299, the model's end at 298", "Get the model again")
    assert_fails(generate(model=copied), 5, *said)


def test_the_newline_of_an_argument_stays(result):
    assert result("--echo", prompt=("The end.\n",))["prompt"]["text"] == "The end.\n"
    assert result("--echo", prompt=(), input="The end.\n")["prompt"]["text"] == "The end."


@pytest.mark.parametrize(
    "options",
    [
        ["--bias", "5=1e39"],
        ["--bias", "5=1", "--bias", "5=2"],
        ["--presence-penalty", "1e39"],
        ["--temperature", "1e-45"],
        ["--temperature", "1e300"],
        ["--force", "00000000012=Q"],
        ["--force", "9" * 5000 + "=Q"],
        ["--stop-id", "9" * 30],
        ["--batch-size", "3"],
        ["--dry-run", "--jsonl"],
        ["--separator", "x", "--json"],
        ["--separator", "\udcff"],
    ],
    ids=lambda options: " ".join(options)[:40],
)
def test_numbers_beyond_reason_and_idle_options_are_refused(options, generate):
    done = generate(*options)
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr


def test_a_force_behind_the_end_of_the_context_is_refused(llmcli, model_folder):
    common = ["generate", "Once", "-m", model_folder, "--max-new-tokens", 400]
    assert_fails(llmcli(*common, "--force", "399=Q"), 2, "the context is full after step")


def test_nan_weights_leave_nothing_on_stdout(generate, copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    weights["transformer.ln_f.bias"][0] = math.nan
    save_file(weights, copied / "model.safetensors")
    assert_fails(generate("--json", model=copied), 5, "not numbers", "--dtype float32")


def test_a_cut_asked_for_makes_a_greedy_model_draw(result, copied):
    (copied / "generation_config.json").write_text('{"do_sample": false}')
    assert result(model=copied)["options"]["temperature"] == 0
    assert result("--top-p", 0.9, model=copied)["options"]["temperature"] == 0.8


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_closed_stream_is_quiet_and_mixes_nothing(closed, model_folder):
    command = f"{sys.executable} -m llmcli generate x -m {model_folder} --seed 1 --stats "
    run = subprocess.run(
        ["bash", "-c", f"{command} --max-new-tokens 3 {closed}"], capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert b"Traceback" not in run.stderr
    assert b"tok/s" not in run.stdout
    assert (b"tok/s" in run.stderr) == (closed != "2>&-")


def test_text_is_utf8_whatever_the_locale_says(model_folder):
    run = subprocess.run(
        [sys.executable, "-m", "llmcli", "generate", "x", "-m", str(model_folder), "--top-probs",
         "2", "--color", "always", "--max-new-tokens", "2"],
        capture_output=True, check=True, env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )  # fmt: skip
    assert "▶" in run.stdout.decode()
