"""`generate --prompts`: batches, order, resuming, and bad files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from conftest import edit_json, train_on
from safetensors.torch import save_file
from test_cli import assert_fails
from test_generate import schema_of

from llmcli.commands import many as many_module
from llmcli.commands.job import Job
from llmcli.commands.many import Item, key_of, read_prompts
from llmcli.config import Sampling
from llmcli.errors import UsageError

PROMPTS = ["Once upon a time", "The", "She had a red ball. The end.", "Lily", "a", "red red red"]


@pytest.fixture
def many(llmcli, model_folder, tmp_path):
    """Run `generate --prompts` on a file with this content; records are checked and returned."""

    def run(content, *arguments, code=0, said=""):
        path = tmp_path / "prompts"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        result = llmcli("generate", "--prompts", path, "-m", model_folder, "--seed", 5,
                        "--max-new-tokens", 8, *arguments)  # fmt: skip
        if code:
            return assert_fails(result, code, said)
        assert result.exit_code == 0, result.stderr
        records = [json.loads(line) for line in result.stdout.splitlines()]
        for record in records:
            jsonschema.validate(record, schema_of("record"))
        return records

    return run


LINES = "\n".join(PROMPTS) + "\n"


def test_results_come_in_the_order_of_the_input(many):
    assert [record["id"] for record in many(LINES, "--batch-size", 2)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_the_texts_do_not_depend_on_the_batches(batch_size, many):
    texts = [record["text"] for record in many(LINES, "--batch-size", batch_size)]
    assert texts == [record["text"] for record in many(LINES, "--batch-size", 3)]


def test_the_first_prompt_gives_what_generate_gives_alone(many, llmcli, model_folder):
    alone = llmcli("generate", PROMPTS[0], "-m", model_folder, "--seed", 5, "--max-new-tokens", 8)
    assert many(LINES)[0]["text"] == alone.stdout


def test_json_lines_keep_their_ids(many):
    content = '{"prompt": "Once", "id": "first"}\n\n{"prompt": "The\\nend"}\n{"prompt":"x","id":7}'
    content += '\n{"prompt": "y", "id": null}'
    assert [record["id"] for record in many(content)] == ["first", 2, 7, 4]


def test_a_dash_reads_the_prompts_from_stdin(llmcli, many, model_folder):
    done = llmcli("generate", "--prompts", "-", "-m", model_folder, "--seed", 3, "-q",
                  "--max-new-tokens", 4, input=LINES)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(many(LINES))


def test_samples_of_a_prompt_follow_each_other(many):
    records = many("Once\nThe\n", "--num-samples", 2, "--top-probs", 1)
    assert [(r["id"], r["sample"]) for r in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(records[0]["tokens"]) == records[0]["n_tokens"]


def test_prompts_that_are_cut_are_counted(llmcli, model_folder, tmp_path):
    (tmp_path / "p").write_text(f"{'red ' * 200}\nOnce\n")
    command = ["generate", "--prompts", tmp_path / "p", "-m", model_folder, "-n", 3, "--seed", 1,
               "--truncate-prompt", "left"]  # fmt: skip
    assert "Cut to what the context holds: 1 of 2 prompts.\n" in llmcli(*command).stderr
    assert llmcli(*command, "-q").stderr == ""


def test_texts_that_end_ahead_of_a_forced_step_are_counted(llmcli, model_folder, tmp_path):
    (tmp_path / "p").write_text("Once\nThe\n")
    command = ["generate", "--prompts", tmp_path / "p", "-m", model_folder, "-n", 6, "--seed", 1,
               "--force", "0=0", "--force", "3=Q"]  # fmt: skip
    said = "2 of 2 texts ended before step 3, which --force names.\n"
    assert llmcli(*command).stderr.endswith(said)
    assert said not in llmcli(*command, "--ignore-eos").stderr


def test_one_prompt_is_singular(llmcli, model_folder, tmp_path):
    (tmp_path / "p").write_text("Once\n")
    said = llmcli("generate", "--prompts", tmp_path / "p", "-m", model_folder, "--seed", 3).stderr
    assert "1 of 1 prompt, " in said
    assert "1 text ends where" in said


def test_a_long_result_tells_its_seed_to_the_next_run(llmcli, model_folder, tmp_path):
    (tmp_path / "p").write_text("Once\nThe\n")
    out = tmp_path / "out.jsonl"
    command = ["generate", "--prompts", tmp_path / "p", "-m", model_folder, "-n", 60, "--out", out,
               "--top-probs", 100, "--top-p", 1, "--temperature", 2, "--ignore-eos"]  # fmt: skip
    assert llmcli(*command).exit_code == 0
    assert len(out.read_bytes().splitlines()[0]) > 1 << 20
    again = llmcli(*command)
    assert (again.exit_code, again.stderr) == (0, "All results are there.\n")


def test_results_in_the_models_own_folder_are_resumed(llmcli, copied, tmp_path):
    (tmp_path / "p").write_text(LINES)
    out = copied / "out.jsonl"
    command = ["generate", "--prompts", tmp_path / "p", "--out", out, "-m", copied, "--seed", 3]
    done = llmcli(*command)
    assert done.exit_code == 0, done.stderr
    assert "6 texts end where the context of 64 tokens is full" in done.stderr
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert llmcli(*command).exit_code == 0
    assert out.read_bytes() == whole


def test_a_finished_file_is_left_as_it_is(many, tmp_path):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out, "--batch-size", 2)
    whole = out.read_bytes()
    assert [json.loads(line)["id"] for line in whole.splitlines()] == [0, 1, 2, 3, 4, 5]
    many(LINES, "--out", out)
    assert out.read_bytes() == whole


def test_a_file_that_a_kill_left_out_of_order_is_put_in_order(many, tmp_path):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out)
    whole = out.read_bytes()
    out.write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
    many(LINES, "--out", out)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("cut", [0, 40, 200, 431, 777])
def test_a_killed_run_goes_on_where_it_was(cut, many, tmp_path):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out)
    whole = out.read_bytes()
    out.write_bytes(whole[:cut])
    many(LINES, "--out", out, "--batch-size", 2)
    assert out.read_bytes() == whole
    assert not list(tmp_path.glob("*.part"))


def test_a_result_that_lacks_its_line_end_alone_is_one(many, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-1])
    monkeypatch.setattr("llmcli.gpt.weights.load_model", pytest.fail)
    many(LINES, "--out", out)
    assert out.read_bytes() == whole


def test_a_run_that_does_not_fit_leaves_the_results_as_they_are(many, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out)
    torn = out.read_bytes()[:-20]
    out.write_bytes(torn)
    monkeypatch.setattr("llmcli.budget.available_nbytes", lambda: 1)
    many(LINES, "--out", out, code=7, said="of memory")
    assert out.read_bytes() == torn


def test_a_run_killed_between_the_samples_of_a_prompt_repeats_that_prompt(many, tmp_path):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out, "--num-samples", 2)
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    many(LINES, "--out", out, "--num-samples", 2)
    assert out.read_bytes() == whole


def test_a_resumed_run_keeps_the_seed_that_was_drawn(llmcli, model_folder, tmp_path):
    prompts, out = tmp_path / "p", tmp_path / "out.jsonl"
    prompts.write_text(LINES)
    common = ["generate", "--prompts", prompts, "--out", out, "-m", model_folder, "-q",
              "--max-new-tokens", 4]  # fmt: skip
    assert llmcli(*common).stderr == ""
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    llmcli(*common)
    assert out.read_bytes() == whole


def test_each_batch_is_on_disk_before_the_next_begins(many, tmp_path, monkeypatch):
    out, sizes = tmp_path / "out.jsonl", []
    import llmcli.commands.many as module

    real = module.run_batch

    def watched(*arguments):
        sizes.append(len(out.read_bytes().splitlines()))
        return real(*arguments)

    monkeypatch.setattr(module, "run_batch", watched)
    many(LINES, "--out", out, "--batch-size", 2)
    assert sizes == [0, 2, 4]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no prompt"),
        (b"\n\n", "no prompt"),
        (b"ok\n\xff\n", "not UTF-8: byte 0xff at offset 3"),
        (b'{"prompt": "a"}\nplain\n', "line 2 is not JSON"),
        (b'{"prompt": 3}\n', "line 1 has no text"),
        (b'{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n', "line 2: the id 1 comes twice"),
        (
            2 * (b'{"prompt": "a", "id": "' + b"x" * 999 + b'"}\n'),
            r"line 2: the id 'x{76}\.\.\. comes",
        ),
        (b'{"prompt": "a", "id": [1]}\n', "neither text nor"),
        (b'{"prompt": "a", "id": "\\ud800"}\n', "half a character"),
        (b'{"prompt": "a"}\n' + b"[" * 100_000, "line 2 is not JSON"),
        (b"ok\n" + b"xyz " * 99, "Prompt 1: The prompt has"),
    ],
)
def test_a_prompt_file_that_makes_no_sense_is_refused(
    content, said, llmcli, model_folder, tmp_path
):
    path = tmp_path / "prompts"
    path.write_bytes(content)
    assert_fails(llmcli("generate", "--prompts", path, "-m", model_folder), 2, said)


def test_a_step_that_is_forced_beyond_the_context_is_refused(many):
    content = '{"prompt": "a"}\n{"prompt": "' + "red " * 20 + '", "id": "long"}\n'
    assert many(content.replace("red " * 20, "red"), "-n", 99, "--force", "50=Q")
    many(content, "-n", 99, "--force", "50=Q", code=2, said="Prompt 'long': --force: the")


def test_prompts_on_stdin_are_named_so(llmcli, model_folder):
    command = ["generate", "--prompts", "-", "-m", model_folder]
    said = "llmcli: stdin, line 2 is not JSON"
    assert_fails(llmcli(*command, input='{"prompt": "a"}\nplain\n'), 2, said)
    assert_fails(llmcli(*command, input=b"\xff"), 2, "llmcli: stdin is not UTF-8")


def test_a_prompt_file_that_cannot_be_read_is_refused(llmcli, model_folder, tmp_path):
    for path in tmp_path, tmp_path / "nothing":
        assert_fails(llmcli("generate", "--prompts", path, "-m", model_folder), 3, "cannot be read")


def test_prompts_from_a_stdin_that_is_closed_are_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match=r"There is no text to work on: stdin is closed\."):
        read_prompts(Path("-"))


def test_stdout_is_no_name_for_the_results(llmcli, model_folder):
    done = llmcli("generate", "--prompts", "p.txt", "--out", "-", "-m", model_folder)
    assert_fails(done, 2, "--out names a file, and - is none", "stdout has it without --out")


def test_a_trace_that_is_the_results_too_is_refused(llmcli, model_folder, tmp_path):
    both = tmp_path / "both.jsonl"
    done = llmcli("generate", "--prompts", "p", "--out", both, "--trace", both, "-m", model_folder)
    assert_fails(done, 2, "--trace .*both.jsonl is a file that --out writes")


def test_prompts_in_a_link_that_leads_round_are_a_file_that_cannot_be_read(
    llmcli, model_folder, tmp_path
):
    (link := tmp_path / "loop").symlink_to(link)
    done = llmcli("generate", "--prompts", link, "--out", tmp_path / "o", "-m", model_folder)
    assert_fails(done, 3, "loop cannot be read")


@pytest.mark.parametrize(
    ("out", "code", "said"),
    [("", 2, "is no regular file"), ("no/such/folder", 3, "cannot be written")],
)
def test_a_bad_out_is_refused_before_the_model_is_loaded(
    out, code, said, llmcli, model_folder, tmp_path, monkeypatch
):
    path = tmp_path / "prompts"
    path.write_text("Once\n")
    monkeypatch.setattr("llmcli.gpt.weights.load_model", pytest.fail)
    for name in (tmp_path / out, "/dev/full") if code == 2 else (tmp_path / out,):
        result = llmcli("generate", "--prompts", path, "--out", name, "-m", model_folder)
        assert_fails(result, code, said)


def test_results_of_other_prompts_are_not_overwritten(llmcli, model_folder, tmp_path):
    path, out = tmp_path / "prompts", tmp_path / "out"
    path.write_text("Once\n")
    no_line_end = ["my diary", '{"my": "data"}', '{"schema": 1, "id": 0, "sample": 0}']
    for content in '{"id": 99, "text": "", "seed": 1}\n', "my diary\n", *no_line_end:
        out.write_text(content)
        result = llmcli("generate", "--prompts", path, "--out", out, "-m", model_folder)
        assert_fails(result, 5, "line 1, is no result of these prompts")
        assert out.read_text() == content


def test_a_full_disk_under_out_is_said_and_nothing_is_lost(many, tmp_path, monkeypatch, llmcli):
    out, real = tmp_path / "out", os.fsync
    room = iter([True, False])

    def fsync(descriptor):
        if not next(room):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    many(LINES, "--out", out, "--batch-size", 2, "-q", code=7)
    assert len(out.read_bytes().splitlines()) >= 2
    monkeypatch.setattr("os.fsync", real)
    many(LINES, "--out", out)
    assert [json.loads(line)["id"] for line in out.read_bytes().splitlines()] == list(range(6))


def test_carriage_returns_are_no_part_of_a_prompt(tmp_path):
    path = tmp_path / "prompts"
    path.write_bytes(b"one\r\ntwo \r\n")
    assert [item.prompt for item in read_prompts(path)] == ["one", "two "]


def test_a_byte_order_mark_is_no_part_of_the_prompts(tmp_path):
    path = tmp_path / "prompts"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\n')
    assert [item.prompt for item in read_prompts(path)] == ["one"]


def test_results_of_another_tokenizer_are_refused(llmcli, copied, tmp_path):
    prompts, out = tmp_path / "prompts", tmp_path / "out.jsonl"
    prompts.write_text(LINES)
    once = ["generate", "--prompts", prompts, "-m", copied, "--seed", 5, "-n", 4, "--out", out]
    assert llmcli(*once).exit_code == 0
    edit_json(copied / "tokenizer.json", version="2.0")
    assert_fails(llmcli(*once), 5, "another prompt, model, seed, option or vector file")


def test_results_of_the_same_weights_trained_on_are_refused(llmcli, copied, tmp_path):
    prompts, out = tmp_path / "prompts", tmp_path / "out.jsonl"
    prompts.write_text(LINES)
    once = ["generate", "--prompts", prompts, "-m", copied, "--seed", 5, "-n", 4, "--out", out]
    assert llmcli(*once).exit_code == 0
    train_on(copied)
    assert_fails(llmcli(*once), 5, "another prompt, model, seed, option or vector file")


def test_results_of_another_config_of_the_same_weights_are_refused(llmcli, copied, tmp_path):
    prompts, out = tmp_path / "prompts", tmp_path / "out.jsonl"
    prompts.write_text(LINES)
    once = ["generate", "--prompts", prompts, "-m", copied, "--seed", 5, "-n", 4, "--out", out]
    assert llmcli(*once).exit_code == 0
    edit_json(copied / "config.json", n_head=2)
    assert_fails(llmcli(*once), 5, "another prompt, model, seed, option or vector file")


def test_a_model_is_the_same_however_it_is_named(llmcli, copied, tmp_path, monkeypatch):
    prompts, out = tmp_path / "prompts", tmp_path / "out.jsonl"
    prompts.write_text(LINES)
    once = ["generate", "--prompts", prompts, "--seed", 5, "-n", 4, "--out", out, "-m"]
    assert llmcli(*once, copied).exit_code == 0
    monkeypatch.chdir(copied)
    assert "All results are there." in llmcli(*once, "./").stderr


def test_nothing_left_to_do_needs_no_torch(many, llmcli, model_folder, tmp_path):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out)
    path = tmp_path / "prompts"
    path.write_text(LINES)
    code = (
        "import sys; from llmcli.cli import main\n"
        "try: main()\nexcept SystemExit as e: sys.exit(e.code or ('torch' in sys.modules) * 9)"
    )
    arguments = ["generate", "--prompts", path, "-m", model_folder, "--seed", 5,
                 "--max-new-tokens", 8, "--out", out]  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=False)
    assert run.returncode == 0


def test_results_of_changed_prompts_or_options_are_refused(many, llmcli, model_folder, tmp_path):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out)
    whole = out.read_bytes()
    for content, *options in (
        ("new first line\n" + LINES,), (LINES, "--top-k", 3), (LINES[5:],),
        (LINES, "--dtype", "bfloat16"), (LINES, "--quantize", "int8"), (LINES, "--top-probs", 2),
        (LINES, "--no-cache"), (LINES, "--num-samples", 2),
    ):  # fmt: skip
        path = tmp_path / "changed"
        path.write_text(content)
        result = llmcli("generate", "--prompts", path, "-m", model_folder, "--seed", 5,
                        "--max-new-tokens", 8, "--out", out, *options)  # fmt: skip
        assert_fails(result, 5, "line 1, is the result of another prompt, model, seed")
        assert out.read_bytes() == whole


def test_every_option_of_a_job_counts_in_what_its_results_are_known_by():
    job = Job(None, Sampling(), seed=1, max_new_tokens=5, eos_ids=frozenset({0}))
    others = {
        "sampling": Sampling(top_k=5), "seed": 2, "max_new_tokens": 6, "eos_ids": frozenset(),
        "stop_ids": frozenset({7}), "stops": ("x",), "keep_stop": True, "forced": {0: 1},
        "top_probs": 3, "use_cache": False,
    }  # fmt: skip
    # The model is hashed for all of a run at once; what is drawn is told by the prompt's place.
    assert others.keys() == {f.name for f in fields(Job)} - {"opened", "draw"}
    jobs = [job, *(replace(job, **{name: other}) for name, other in others.items())]
    item = Item(0, 0, "Once")
    assert len({key_of(each, item, [1, 2], ["cpu"]) for each in jobs}) == len(jobs)
    keys = {key_of(job, item, [1, 2], ["cuda"]), key_of(job, item, [1], ["cpu"]),
            key_of(job, Item(1, 0, "Once"), [1, 2], ["cpu"])}  # fmt: skip
    assert len(keys | {key_of(job, item, [1, 2], ["cpu"])}) == 4


@pytest.mark.parametrize("rounding", [["--quantize", "int8"], ["--dtype", "bfloat16"]])
def test_what_is_rounded_is_not_continued_in_batches_of_another_size(rounding, many, tmp_path):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out, *rounding)
    said = "line 1, is the result of another prompt, model, seed"
    many(LINES, "--out", out, *rounding, "--batch-size", 2, code=5, said=said)
    many(LINES, "--out", out, *rounding)


@pytest.mark.parametrize(
    "line", ['{"id": [], "text": "", "seed": 1}', '{"id": true, "sample": 0, "key": ""}', "[]", "3"]
)
def test_a_hostile_result_file_is_refused(line, llmcli, model_folder, tmp_path):
    path, out = tmp_path / "prompts", tmp_path / "out"
    path.write_text("Once\n")
    out.write_text(line + "\n")
    result = llmcli("generate", "--prompts", path, "--out", out, "-m", model_folder)
    assert_fails(result, 5, "line 1, is no result of these prompts")


def test_a_link_as_out_stays_a_link(many, tmp_path):
    real, out = tmp_path / "real", tmp_path / "out"
    real.touch()
    os.symlink(real, out)
    many(LINES, "--out", out)
    assert out.is_symlink()
    assert len(real.read_bytes().splitlines()) == 6


def test_a_long_prompt_beside_it_does_not_shorten_a_text(many):
    long = "red " * 58  # which leaves room for six tokens in a context of 64
    for size in 1, 2:
        records = many(f"{long[:-1]}\nOnce upon a time\n", "--batch-size", size, "--ignore-eos")
        assert [record["n_prompt"] > 50 for record in records] == [True, False]
        assert records[1]["n_tokens"] == 8
        assert records[0]["n_tokens"] == 65 - records[0]["n_prompt"]


def test_rows_of_a_batch_are_as_wide_as_the_longest_prompt_and_the_longest_text():
    opened = SimpleNamespace(config=SimpleNamespace(n_ctx=20))
    job = Job(opened, Sampling(), seed=1, max_new_tokens=15)
    assert job.sizes([3, 8]) == (8 + 15, 8)
    assert job.sizes([8]) == (20, 8)
    assert replace(job, use_cache=False).sizes([3, 8]) == (23, 23)


def test_a_sample_that_comes_twice_in_a_result_file_does_not_stand_for_another(many, tmp_path):
    out = tmp_path / "out.jsonl"
    many(LINES, "--out", out, "--num-samples", 2)
    whole = out.read_bytes()
    first, _, *rest = whole.splitlines(keepends=True)
    out.write_bytes(b"".join([first, first, *rest]))
    many(LINES, "--out", out, "--num-samples", 2)
    assert out.read_bytes() == whole


def test_a_pipe_as_out_is_refused_at_once_without_a_seed_too(llmcli, model_folder, tmp_path):
    path, out = tmp_path / "prompts", tmp_path / "pipe"
    path.write_text("Once\n")
    os.mkfifo(out)
    result = llmcli("generate", "--prompts", path, "--out", out, "-m", model_folder)
    assert_fails(result, 2, "is no regular file")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full"), MemoryError])
def test_what_is_done_is_out_when_the_run_does_not_come_to_its_end(
    error, llmcli, model_folder, tmp_path, monkeypatch
):
    """The longest prompts run first, so that they wait for those before them in the file."""
    path = tmp_path / "prompts"
    path.write_text("a\na b\na b c d\na b c d e f\n")
    real, batches = many_module.run_batch, []

    def interrupted(*arguments):
        if batches:
            raise error
        batches.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(many_module, "run_batch", interrupted)
    done = llmcli("generate", "--prompts", path, "-m", model_folder, "-n", 4, "--batch-size", 2)
    assert done.exit_code != 0
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [2, 3]


def test_results_of_another_vector_under_the_same_name_are_not_taken_for_done(many, tmp_path):
    vector, out = tmp_path / "v.safetensors", tmp_path / "out.jsonl"
    again = ["--out", out, "--steer", f"{vector} @ L1 * 2", "--steer-prompt"]
    save_file({"vector": torch.ones(32)}, vector)
    many("Once\n", *again)
    many("Once\n", *again)
    save_file({"vector": -torch.ones(32)}, vector)
    many(
        "Once\n",
        *again,
        code=5,
        said="seed, option or vector file",
    )


def test_an_array_of_json_is_no_list_of_prompts(many):
    many('[{"prompt": "Once"},\n {"prompt": "Tom"}]\n', code=2, said="is one JSON array")
    assert len(many("[Once\n[Tom]\n")) == 2


def test_a_disk_without_room_for_two_keeps_all_results(many, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    many("a\na b c\n", "-q", "--out", out, "--batch-size", 1, code=7, said="no room to put it in")
    assert {json.loads(line)["id"] for line in out.read_text().splitlines()} == {0, 1}
