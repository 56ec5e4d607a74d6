"""The command line as its users meet it: streams, exit codes, one clear sentence per error."""

from __future__ import annotations

import errno
import json
import math
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import edit_json
from safetensors.torch import load_file, save_file

from llmcli import __version__
from llmcli.cli import app, of_the_system
from llmcli.config import RANGES

PACKAGE_SCHEMAS = Path(__file__).resolve().parents[1] / "llmcli" / "schemas"
LLMCLI = [sys.executable, "-m", "llmcli"]


def in_terminal(arguments, columns=80, env=()):
    """Run in a pseudo-terminal: what it showed, and the exit code."""
    read, write = pty.openpty()
    subprocess.run(["stty", "cols", str(columns), "rows", "40"], stdin=write, check=True)
    outer = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment = {**outer, "TERM": "xterm-256color", **dict(env)}
    child = subprocess.Popen(
        [*LLMCLI, *map(str, arguments)], stdin=write, stdout=write, stderr=write, env=environment
    )
    os.close(write)
    shown = b""
    while True:
        try:
            data = os.read(read, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(read)
    return shown.decode().replace("\r\n", "\n"), child.wait(30)


def in_shell(line, before=""):
    """Run `llmcli` with the rest of a shell's `line`, and a command of the shell before it."""
    command = f"{before}{shlex.join(LLMCLI)} {line}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


def assert_fails(result, code, *said):
    """One or two lines on stderr that hold `said`, nothing on stdout, the documented code."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 2, result.stderr
    assert lines[0].startswith("llmcli: ")
    for text in said:
        assert re.search(text, result.stderr), result.stderr


# --- the main road -------------------------------------------------------------------------------


def test_generate_prints_the_text_and_nothing_else(llmcli, model_folder):
    result = llmcli("generate", "Once", "-m", model_folder, "--seed", 1, "--max-new-tokens", 9)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout != ""
    again = llmcli("generate", "-", "-m", model_folder, "--seed", 1, "--max-new-tokens", 9,
                   input="Once\n")  # fmt: skip
    assert again.stdout == result.stdout
    uncached = llmcli("generate", "Once", "-m", model_folder, "--seed", 1, "--max-new-tokens", 9,
                      "--no-cache")  # fmt: skip
    assert uncached.stdout == result.stdout


def test_fable_continues_a_story(llmcli):
    result = llmcli("generate", "Once upon a time", "--seed", 1, "--max-new-tokens", 60)
    assert result.exit_code == 0
    assert len(re.findall(r"\b[a-z]+\b", result.stdout)) > 25
    assert result.stdout.isascii()


def test_version(llmcli):
    assert llmcli("--version").stdout == f"llmcli {__version__}\n"


def test_no_command_shows_the_help(llmcli):
    result = llmcli()
    assert result.exit_code == 2
    assert "generate" in result.output
    assert "tokenize" in result.output


def test_an_argument_leaves_stdin_alone(model_folder):
    tokenize = f"{sys.executable} -m llmcli tokenize x -m {model_folder} > /dev/null"
    script = f"printf 'a\\nb\\n' | while read -r line; do {tokenize}; echo $line; done"
    out = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout == "a\nb\n"


def test_one_trailing_newline_of_a_piped_prompt_is_dropped(llmcli, model_folder):
    def stats(text):
        return llmcli("generate", "-m", model_folder, "--max-new-tokens", 1, "--stats",
                      input=text).stderr  # fmt: skip

    def n_prompt(text):
        return int(re.search(r"prefill (\d+)", stats(text))[1])

    assert n_prompt("The end.\n") == n_prompt("The end.") < n_prompt("The end.\n\n")


def test_ignore_eos_prints_the_end_of_text_token(llmcli, copied):
    # With every token an end-of-text token, the first ends the text, or is printed.
    edit_json(copied / "generation_config.json", eos_token_id=list(range(300)))
    common = ["generate", "Once", "-m", copied, "--seed", 1, "--max-new-tokens", 4]
    assert llmcli(*common).stdout == ""
    assert llmcli(*common, "--ignore-eos").stdout != ""


def test_sampling_defaults_come_from_the_models_file(llmcli, copied):
    edit_json(copied / "generation_config.json", do_sample=False)
    first = llmcli("generate", "Once", "-m", copied, "--seed", 1, "--max-new-tokens", 9)
    second = llmcli("generate", "Once", "-m", copied, "--seed", 2, "--max-new-tokens", 9)
    assert first.stdout == second.stdout
    edit_json(copied / "generation_config.json", repetition_penalty=1.5, top_p=7)
    penalised = llmcli("generate", "Once", "-m", copied, "--max-new-tokens", 9)
    asked = llmcli("generate", "Once", "-m", copied, "--max-new-tokens", 9, "--temperature", 0,
                   "--repetition-penalty", 1.5)  # fmt: skip
    assert penalised.stdout == asked.stdout != first.stdout
    hot = llmcli("generate", "Once", "-m", copied, "--seed", 2, "--max-new-tokens", 9,
                 "--temperature", 2)  # fmt: skip
    assert hot.stdout != first.stdout


def test_stats_go_to_stderr(llmcli, model_folder):
    result = llmcli("generate", "Once", "-m", model_folder, "--seed", 4, "--stats",
                    "--max-new-tokens", 5)  # fmt: skip
    assert re.fullmatch(
        r"load [\d.]+ s \| first token \d+ ms, second at \d+ ms \| "
        r"prefill \d+ tokens, \d+ tok/s \| decode \d tokens, \d+ tok/s \| "
        r"finish (stop|length) \| float16 on cpu \| seed 4\n",
        result.stderr,
    )


def test_top_probs_in_a_pipe_are_rows(llmcli, model_folder):
    common = ["generate", "Once", "-m", model_folder, "--seed", 4, "--max-new-tokens", 3]
    done = llmcli(*common, "--top-probs", 4, "--force", "1=Q", "--top-k", 9)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["sample", "step", "chosen", "rank", "id", "token", "prob", "drawn_prob",
                       "entropy_bits", "kept", "forced"]  # fmt: skip
    assert [row[1:3] for row in rows if row[-1] == "1"] == [["1", "1"]]
    assert {0 < float(row[-2]) < 1 for row in rows[1:]} == {True}
    for step in range(3):
        ours = [row for row in rows[1:] if row[1] == str(step)]
        assert sum(row[2] == "1" for row in ours) == 1
        assert [row[3] for row in ours[:4]] == ["0", "1", "2", "3"]
        probs = [float(row[6]) for row in ours]
        assert probs == sorted(probs, reverse=True)


# --- a terminal ----------------------------------------------------------------------------------


def make_it_say(folder, text):
    """Make `text` token 299 of the model in `folder`, and the only one that it ever generates."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": 299, "content": text, **flags})
    model = tokenizer["model"]
    gone = next(token for token, id in model["vocab"].items() if id == 299)
    del model["vocab"][gone]
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) != gone]
    model["vocab"][text] = 299
    path.write_text(json.dumps(tokenizer))

    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"].zero_()[299] = 1
    weights["transformer.ln_f.weight"].zero_()
    weights["transformer.ln_f.bias"].fill_(1)
    save_file(weights, folder / "model.safetensors")


def test_a_terminal_shows_escape_sequences_and_markup_harmlessly(copied):
    make_it_say(copied, "\x1b[31m[red]\x07[/INST]")
    common = ["generate", "x", "-m", copied, "--max-new-tokens", 2]
    shown, code = in_terminal(common)
    assert code == 0
    assert shown == 2 * "\\x1b[31m[red]\\x07[/INST]" + "\n"
    shown, code = in_terminal([*common, "--top-probs", 2], env={"NO_COLOR": "1"})
    assert code == 0
    assert "\\x1b[31m[red]" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_picture_of_probabilities_is_aligned(columns, model_folder):
    shown, code = in_terminal(
        ["generate", "Once", "-m", model_folder, "--max-new-tokens", 3, "--top-probs", 3,
         "--seed", 2],
        columns=columns,
        env={"NO_COLOR": "1"},
    )  # fmt: skip
    assert code == 0
    width = max(columns, 80)
    bars = [line for line in shown.splitlines() if line.endswith("%")]
    assert len(bars) >= 9
    assert {len(line) for line in bars} == {width - 1}
    assert sum(line.startswith("▶ ") for line in bars) == 3


def test_no_prompt_on_a_terminal_says_what_to_type():
    shown, code = in_terminal(["generate"])
    assert code == 2
    assert 'llmcli generate "Once upon a time"' in shown


# --- pipes and signals ---------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", ["", "--color-probs --color always",
                                   "--top-probs 9 --color always"])  # fmt: skip
def test_a_closed_pipe_is_a_quiet_end(drawn, model_folder):
    run = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m llmcli generate x -m {model_folder} --ignore-eos "
         f"--max-new-tokens 60 {drawn} | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == "0\n"
    assert run.stderr == ""


def test_a_full_disk_is_said(model_folder):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*LLMCLI, "tokenize", "x", "-m", str(model_folder)],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert run.returncode == 7
    assert run.stderr.startswith(b"llmcli: The disk is full.")


@pytest.mark.parametrize("arguments", ["--version", "generate --help", "generate Once -m nope"])
def test_a_full_disk_is_said_of_what_needs_no_command_and_beside_an_error(arguments):
    done = in_shell(f"{arguments} > /dev/full")
    assert done.returncode == (3 if "nope" in arguments else 7)
    assert done.stderr.startswith("llmcli: ")
    assert "Traceback" not in done.stderr


def test_a_stdout_that_takes_half_is_written_whole():
    """Unbuffered, Python passes over that a file takes less than it was given."""
    code = """if True:
        import io, sys
        from llmcli.cli import _stream
        class Half(io.RawIOBase):
            took = b""
            def writable(self): return True
            def write(self, data):
                data = bytes(data)[:5]
                Half.took += data
                return len(data)
        sys.stdout = io.TextIOWrapper(Half(), write_through=True)
        sys.stdout = _stream("stdout")
        print("once upon a time")
        sys.stderr.write(Half.took.decode())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "once upon a time\n"


def test_a_file_that_may_grow_no_further_is_said(tmp_path):
    done = in_shell(f"tokenize --vocab . > {tmp_path}/out", before="ulimit -f 1; ")
    assert done.returncode == 7
    assert done.stderr.startswith("llmcli: The output finds no room: File too large.")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "priv/x"), 3, "priv/x cannot be used"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), 3, "aaa .* File name too long"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 3, "working folder is gone"),
        (OSError(errno.EMFILE, "Too many open files", "x"), 7, "Too many open files.*ulimit -n"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 7, "Disk quota exceeded"),
        (ImportError("libx.so: failed to map segment from shared object"), 7, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 7, "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory", "x"), 7, "not enough memory"),
    ],
    ids=repr,
)
def test_what_the_system_refuses_is_a_sentence(error, code, said):
    known = of_the_system(error)
    assert known
    assert known.exit_code == code
    assert known.remedy
    assert re.search(said, str(known))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "ours.json"),
        OSError(errno.EINVAL, "Invalid argument"),
        ImportError("No module named ours"),
        RuntimeError("shape"),
    ],
    ids=repr,
)
def test_what_may_be_a_bug_of_ours_keeps_its_traceback(error):
    assert of_the_system(error) is None


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_keeps_the_text_so_far(sent, code, copied):
    edit_json(copied / "config.json", eos_token_id=None)
    edit_json(copied / "generation_config.json", eos_token_id=None)
    command = ["generate", "x", "-m", str(copied), "--jsonl", "--max-new-tokens", "60"]
    child = subprocess.Popen([*LLMCLI, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout
    head = child.stdout.readline() + child.stdout.readline()
    child.send_signal(sent)
    rest, errors = child.communicate(timeout=30)
    events = [json.loads(line) for line in (head + rest).splitlines()]  # no line is cut in two
    assert [events[0]["event"], events[1]["event"], events[-1]["event"]] == [
        "start",
        "step",
        "done",
    ]
    assert errors == b""
    assert child.returncode in (code, 0)  # 0: it was done before the signal came


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_waits_until_torch_is_imported(sent, code, tmp_path):
    """An exception within its C++ code would abort: here a torch that counts as that."""
    (tmp_path / "torch.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{sent})\ntime.sleep(0.1)\n"
        "print('imported')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "llmcli", "generate", "Once"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (code, "imported\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_that_was_swallowed_is_the_reason_of_what_fails_for_it():
    """As where torch's C code imports numpy: the rest of the run fails for want of it."""
    code = """if True:
        import os, signal
        from llmcli import cli
        def app(prog_name):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:
                pass
            raise ImportError("cannot load module more than once per process")
        cli.app = app
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "")


def test_a_hangup_that_is_ignored_stays_ignored():
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from llmcli.cli import "
        "Signals; Signals(); assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_interrupted_run_tells_its_timings(copied):
    for name in ("config.json", "generation_config.json"):
        edit_json(copied / name, eos_token_id=None)
    command = ["generate", "x", "-m", str(copied), "--jsonl", "--stats", "--num-samples", "500"]
    child = subprocess.Popen([*LLMCLI, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout
    for _ in range(3):
        child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert re.match(rb"load .* \| decode \d+ tokens?.* \| finish interrupted \|", errors), errors


# --- errors --------------------------------------------------------------------------------------


def test_an_unknown_model_names_the_nearest(llmcli):
    assert_fails(llmcli("generate", "x", "-m", "fabel"), 3, "fabel", "Did you mean fable")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_without_one_of_its_files_names_it(name, llmcli, copied):
    (copied / name).unlink()
    assert_fails(llmcli("generate", "x", "-m", copied), 3, name.split(".")[0])


def test_pickle_weights_are_refused(llmcli, copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert_fails(llmcli("generate", "x", "-m", copied), 6, "pickle")


def test_truncated_weights_are_refused(llmcli, copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert_fails(llmcli("generate", "x", "-m", copied), 5, "truncated")


def test_garbage_for_weights_is_refused(llmcli, copied):
    (copied / "model.safetensors").write_bytes(os.urandom(5000))
    assert_fails(llmcli("generate", "x", "-m", copied), 5, "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"n_embd": 64}, 5, r"c_attn.weight is \[32, 96\], the config says \[64, 192\]"),
        ({"n_layer": 4}, 5, r"missing h.3.attn.c_attn.bias"),
        ({"n_layer": 2}, 5, r"beyond the config's 2 layers"),
        ({"n_layer": 10**9}, 5, "n_layer"),
        ({"n_embd": -32}, 5, "n_embd"),
        ({"n_embd": 32.0}, 5, "n_embd"),
        ({"n_head": 5}, 5, "multiple of n_head"),
        ({"vocab_size": ...}, 5, "lacks 'vocab_size'"),
        ({"vocab_size": True}, 5, "vocab_size"),
        ({"layer_norm_epsilon": "small"}, 5, "layer_norm_epsilon"),
        ({"tie_word_embeddings": False}, 5, "missing lm_head.weight"),
        ({"eos_token_id": "0"}, 5, "eos_token_id"),
        ({"model_type": "mamba"}, 6, "model_type 'mamba'"),
        ({"model_type": ...}, 6, "model_type"),
        ({"activation_function": "quick_gelu"}, 6, "activation_function 'quick_gelu'"),
        ({"add_cross_attention": True}, 6, "add_cross_attention"),
        ({"rope_scaling": {"type": "linear"}}, 6, "rope_scaling"),
        ({"quantization_config": {"bits": 4}}, 6, "quantization_config"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(changes, code, said, llmcli, copied):
    edit_json(copied / "config.json", **changes)
    assert_fails(llmcli("generate", "x", "-m", copied), code, said)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff\xfe", "null"])
def test_a_config_that_is_no_json_object_is_refused(text, llmcli, copied):
    (copied / "config.json").write_text(text, encoding="latin-1")
    assert_fails(llmcli("generate", "x", "-m", copied), 5, "config.json")


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--temperature", "inf"],
        ["--top-p", "1.5"],
        ["--top-p", "nan"],
        ["--top-k", "-1"],
        ["--top-k", "301"],
        ["--max-new-tokens", "0"],
        ["--seed", "-1"],
        ["--top-probs", "-1"],
        ["--truncate-prompt", "middle"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_options_out_of_range_are_refused(options, llmcli, model_folder):
    result = llmcli("generate", "x", "-m", model_folder, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert options[0] in result.stderr


def test_whether_a_file_can_be_read_is_found_out_by_reading_it():
    """Else Typer says that it cannot, with the code of a wrong option."""
    for command in typer.main.get_command(app).commands.values():
        paths = [param.type for param in command.params if hasattr(param.type, "readable")]
        assert not any(path.readable for path in paths), command.name


def test_the_options_take_what_a_trace_may_hold():
    """The bounds stand twice: with the options, and for what a file says of them."""
    command = typer.main.get_command(app).commands["generate"]
    options = {option.name: option.type for option in command.params if option.name in RANGES}
    assert options.keys() == RANGES.keys()
    for name, (low, high) in RANGES.items():
        most = math.inf if options[name].max is None else options[name].max
        assert (options[name].min, most) == (low, high), name


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback():
    code = """if True:
        import sys
        class Interrupted:
            def find_spec(self, name, *_):
                if name == "llmcli.cli":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupted())
        from llmcli.__main__ import main
        main()
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_empty_name_is_not_the_folder_where_one_is(llmcli, model_folder, monkeypatch):
    monkeypatch.chdir(model_folder)
    assert_fails(llmcli("generate", "x", "-m", ""), 3, "The model has no name")


def test_a_bad_config_is_named_with_its_folder(llmcli, copied):
    (copied / "generation_config.json").write_text('{"temperature": "hot"}')
    done = llmcli("generate", "x", "-m", copied)
    assert_fails(done, 5, str(copied), "generation_config.json: temperature", "Get the model again")
    edit_json(copied / "config.json", n_head=5)
    assert_fails(llmcli("generate", "x", "-m", copied), 5, str(copied), "not a multiple")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_a_link_that_leads_nowhere_is_not_passed_over(name, llmcli, copied):
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to("gone")
    assert_fails(llmcli("generate", "x", "-m", copied, "-n", 1), 3, name)


def test_an_empty_pipe_is_said(llmcli, model_folder):
    done = llmcli("generate", "-m", model_folder, "--max-new-tokens", 2, input="")
    assert done.exit_code == 0
    assert "The prompt is empty" in done.stderr


def test_a_prompt_longer_than_the_context_names_both_numbers(llmcli, model_folder):
    long = "xyz " * 40
    said = "161 tokens; the model's context holds 64"
    assert_fails(llmcli("generate", long, "-m", model_folder), 2, said, "--truncate-prompt")
    assert_fails(llmcli("inspect", long, "-m", model_folder), 2, said, "--view tokens")
    for side in ("left", "right"):
        result = llmcli("generate", long, "-m", model_folder, "--truncate-prompt", side)
        assert result.exit_code == 0
        assert "161 tokens are cut to 33" in result.stderr  # half of the context
        assert "The context of 64 tokens is full" in result.stderr
        result = llmcli("generate", long, "-m", model_folder, "--truncate-prompt", side,
                        "--max-new-tokens", 10)  # fmt: skip
        assert "161 tokens are cut to 55" in result.stderr
        assert "is full" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "hi", "there"], r"\(there\)\. A text of several words stands in quotes"),
        (["Once upon a time"], "No such command .* A text is continued by llmcli generate TEXT"),
        (["generat", "hi"], r"Did you mean 'generate'\?$"),
    ],
)
def test_first_mistakes_say_what_to_type(arguments, said, llmcli):
    done = llmcli(*arguments)
    assert done.exit_code == 2
    assert re.search(said, done.stderr.strip()), done.stderr


def test_a_context_of_one_token_keeps_only_the_prefix(llmcli, copied):
    edit_json(copied / "config.json", n_positions=1)
    weights = load_file(copied / "model.safetensors")
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:1].contiguous()
    save_file(weights, copied / "model.safetensors")
    texts = {
        side: llmcli("generate", "The end.", "-m", copied, "--seed", 1, "--truncate-prompt", side)
        for side in ("left", "right")
    }
    assert [done.exit_code for done in texts.values()] == [0, 0]
    assert texts["left"].stdout == texts["right"].stdout


def test_text_that_is_not_utf8_names_the_byte(llmcli, model_folder):
    result = llmcli("generate", "-m", model_folder, input=b"ab\xffc")
    assert_fails(result, 2, "0xff at offset 2")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "Once", "--stop", "ab\udce9"],
        ["generate", "Once", "--separator", "ab\udce9"],
        ["generate", "Once", "--steer", "ab\udce9"],
        ["inspect", "Once", "--token", "ab\udce9"],
        ["tokenize", "Once", "--document-delimiter", "ab\udce9"],
        ["generate", "ab\udce9"],
    ],
    ids=lambda arguments: arguments[-2],
)
def test_a_typed_text_that_is_not_utf8_names_its_option(arguments, llmcli):
    option = arguments[-2] if arguments[-2][0] == "-" else "The prompt"
    assert_fails(llmcli(*arguments), 2, f"llmcli: {option} is not UTF-8: byte 0xe9 at offset 2")


@pytest.mark.parametrize(
    ("option", "value", "read"),
    [("stop", "é", ["é"]), ("force", "0=é", [[0, 299]]), ("bias", "é=9", [[299, 9]])],
)
def test_a_typed_text_is_the_same_in_a_locale_of_ascii(option, value, read, llmcli, copied):
    """There Python hides each byte beyond it, also of a character that is whole."""
    make_it_say(copied, "é")
    hidden = value.replace("é", "é".encode().decode("ascii", "surrogateescape"))
    for typed in (value, hidden):
        run = llmcli("generate", "Once", "-m", copied, "-n", 5, "--json", f"--{option}", typed)
        assert run.exit_code == 0, run.stderr
        assert json.loads(run.stdout)["options"][option] == read


def test_a_pattern_of_bytes_finds_tokens_of_bytes(llmcli):
    assert '"\\xe9"' in llmcli("tokenize", "--vocab", "\udce9").stdout


@pytest.mark.parametrize("name", ["", ".", "/", "a/.."])
@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "Once", "--trace"],
        ["generate", "--prompts", "p.txt", "--out"],
        ["inspect", "Once", "--save"],
        ["inspect", "Once", "--tensors"],
        ["tokenize", "Once", "--out"],
    ],
    ids=" ".join,
)
def test_a_path_that_names_no_file_is_refused(arguments, name, llmcli):
    assert_fails(llmcli(*arguments, name), 2, f"{arguments[-1]} is to name a file, and")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "Once", "-n", 2, "--trace", "out.jsonl"],
        ["generate", "--prompts", "p.txt", "-n", 2, "--out", "out.jsonl"],
        ["inspect", "Once", "--save", "out.svg"],
        ["tokenize", "Once", "--out", "out.bin"],
    ],
    ids=lambda value: value[-2],
)
def test_a_file_without_permission_is_named_as_it_was_typed_by_one_sentence_for_all(
    arguments, llmcli, model_folder, tmp_path, monkeypatch
):
    real = Path.open

    def refused(path, mode="r", *others, **options):
        if path.parent.resolve() == tmp_path and not mode.startswith("r"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, mode, *others, **options)

    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("Once")
    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(os, "access", lambda *_: False)
    done = llmcli(*arguments, "-m", model_folder)
    assert_fails(done, 3, rf"^llmcli: {arguments[-1]} cannot be written: permission denied\.\n")


@pytest.mark.parametrize(
    ("arguments", "suffix"),
    [
        (["generate", "Once", "-n", 2, "--trace"], ".jsonl"),
        (["generate", "--prompts", "PROMPTS", "-n", 2, "--out"], ".jsonl"),
        (["inspect", "Once", "--save"], ".svg"),
        (["inspect", "Once", "--tensors"], ".safetensors"),
        (["tokenize", "Once", "--out"], ".bin"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_path_that_cannot_even_be_looked_at_cannot_be_written(
    arguments, suffix, inside, llmcli, model_folder, tmp_path
):
    (tmp_path / "p.txt").write_text("Once")
    path = tmp_path / ("a" * 300 + ("/x" if inside else "") + suffix)
    given = [tmp_path / "p.txt" if word == "PROMPTS" else word for word in arguments]
    assert_fails(
        llmcli(*given, path, "-m", model_folder), 3, "aaa.* cannot be written: file name too long"
    )


def test_debug_shows_the_traceback_of_a_known_error(llmcli, monkeypatch):
    monkeypatch.setenv("LLMCLI_DEBUG", "1")
    result = llmcli("generate", "x", "-m", "nothing-like-it")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "There is no model called 'nothing-like-it'." in result.stderr


def test_a_bug_keeps_its_traceback(llmcli, model_folder, monkeypatch):
    monkeypatch.setattr("llmcli.hub.resolve", lambda name: 1 / 0)
    result = llmcli("generate", "x", "-m", model_folder)
    assert isinstance(result.exception, ZeroDivisionError)


# --- tokenize ------------------------------------------------------------------------------------


def test_tokenize_prints_ids_on_one_line(llmcli, model_folder):
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    text = "The end.<|endoftext|>\r\n"
    expected = " ".join(map(str, theirs.encode(text, add_special_tokens=False).ids)) + "\n"
    assert llmcli("tokenize", "-m", model_folder, input=text.encode()).stdout == expected
    assert llmcli("tokenize", text, "-m", model_folder).stdout == expected


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inspect", "--view", "model", "--seed", "3"], 0, b"model"),
        (["generate", "Once", "--max-new-tokens", "2", "--stats"], 0, b" "),
        (["generate", "Once", "-m", "nothing"], 3, b""),
    ],
)
def test_the_answer_does_not_depend_on_who_listens_to_stderr(arguments, code, said):
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([*LLMCLI, *arguments], stdout=subprocess.PIPE, stderr=write, check=False)
    os.close(write)
    assert run.returncode == code
    assert said in run.stdout


@pytest.mark.parametrize(
    ("line", "code"), [("generate Once -m nothing", 3), ("tokenize Once Once --keep left", 0)]
)
def test_a_full_disk_under_stderr_changes_no_code(line, code):
    assert in_shell(f"{line} 2> /dev/full").returncode == code


def test_a_closed_stdin_that_is_asked_for_is_told(tmp_path):
    for option in (), ("--files",):
        command = shlex.join([*LLMCLI, "tokenize", "-", *option]) + " <&-"
        run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout) == (2, "")
        assert "There is no text to work on." in run.stderr


def test_a_name_as_long_as_names_can_be_is_written_to(llmcli, tmp_path):
    for command, name in (
        (["inspect", "Once", "--view", "tokens", "--save"], "é" * 125 + ".svg"),
        (["tokenize", "Once", "--out"], "o" * 250),
    ):
        done = llmcli(*command, tmp_path / name)
        assert done.exit_code == 0, done.stderr
        assert (tmp_path / name).stat().st_size > 0
        assert not list(tmp_path.glob(".*"))


def test_a_help_has_sections_and_every_option_once(llmcli):
    shown = llmcli("generate", "--help").stdout
    titles = re.findall(r"^([A-Z][\w ]+):$", shown, re.M)
    assert titles == ["Arguments", "Options", "Sampling", "Where to stop", "Prompts",
                      "Changing the run", "Traces", "Computing", "Output"]  # fmt: skip
    options = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", shown, re.M)
    given = re.findall(r"--[a-z][a-z-]*", shown.split("Arguments:")[1])
    assert len(options) == len(set(options)) > 50
    assert set(given) == set(options)
    for title, first in (("Sampling", "--bias"), ("Output", "--top-probs"), ("Traces", "--trace")):
        assert re.search(rf"^{title}:\n  {first} ", shown, re.M)


def test_no_help_is_cut_short_or_names_a_type(llmcli):
    assert "..." not in llmcli("--help").stdout.split("Commands:")[1]
    for command in ("generate", "inspect", "tokenize", "download"):
        assert not re.search(r"<(str|int|float|path)\b", llmcli(command, "--help").stdout), command
