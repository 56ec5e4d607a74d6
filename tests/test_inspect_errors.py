"""`inspect` where something is wrong, or the terminal is strange."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess

import pytest
import torch
from conftest import STORY, edit_json
from safetensors.torch import load_file, save_file
from test_cli import LLMCLI, assert_fails, in_terminal

from llmcli.errors import IntegrityError
from llmcli.inspection.catalogue import VIEWS

NEEDY = ("patching", "neighbors", "steer", "head", "circuits")  # need more than a prompt
ALONE = [name for name in VIEWS if name not in NEEDY]

PROMPT = "Once upon a time, there was a little girl"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--view", "mlp", "--layer", 3], 2, "--layer 3 .* 3 layers.*\n.*from 0 to 2"),
        (["--view", "mlp", "--layer", -4], 2, "--layer -4"),
        (["--view", "head", "--head", 4], 2, "--head 4 .* 4 heads"),
        (["--position", 99], 2, "--position 99 .* tokens in the prompt"),
        (["--view", "tokens,lens"], 2, "no view called.*\n.*--view tokens --view lens"),
        (["--view", "mlp", "--token", " a", "--versus", " a"], 2, "the same token"),
        (["--view", "attenton"], 2, "no view called 'attenton'.*\nDid you mean attention"),
        (["--view", "\x1b[31m"], 2, r"\\x1b\[31m"),
        (
            ["--view", "lens", "--token", "girl named Lily"],
            2,
            r'is not one token but \d+: ".*" \(id:\d+\)',
        ),
        (["--view", "lens", "--token", ""], 2, "no token has an empty text"),
        (["--view", "lens", "--token", "id:300"], 2, "Ids go from 0 to 299"),
        (["--view", "lens", "--token", "id:-1"], 2, "not one token"),
        (["--view", "mlp", "--versus", " a"], 2, "--versus needs --token"),
        (["--rows", 0], 2, "--rows"),
        (["--save", "x.png"], 2, ".svg or .html"),
        (["--save", "/nowhere/x.svg"], 3, "no such folder"),
        (["--tensors", "/nowhere/x.safetensors"], 3, "no such folder"),
        (["--tensors", "x.bin"], 2, ".safetensors"),
        (["--view", "sampling", "--top-k", 301], 2, "--top-k 301"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_out_of_range_is_named(options, code, said, llmcli, model_folder):
    result = llmcli("inspect", PROMPT, "-m", model_folder, *options)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.search(said, result.stderr), result.stderr


def test_a_text_longer_than_the_context(llmcli, model_folder):
    long = "xyz " * 40
    result = llmcli("inspect", long, "-m", model_folder, "--view", "tokens", "--json")
    view = json.loads(result.stdout)["views"][0]
    assert (view["n_tokens"], view["n_windows"]) == (161, 5)


def test_positions_beside_a_text_longer_than_the_context(llmcli, model_folder):
    both = ["--view", "tokens", "--view", "positions", "--json"]
    done = llmcli("inspect", "xyz " * 40, "-m", model_folder, *both)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["views"][1]["position"] == 63


def test_tensors_that_no_view_of_weights_has_are_not_lost_in_silence(
    llmcli, model_folder, tmp_path
):
    done = llmcli("inspect", "--view", "neighbors", "--ablate", "L0.H0", "--baseline", "-m",
                  model_folder, "--tensors", tmp_path / "x.safetensors")  # fmt: skip
    assert_fails(done, 2, "has nothing to write there")


def test_an_empty_prompt(llmcli, model_folder, copied):
    with_prefix = llmcli("inspect", "", "-m", model_folder)
    assert with_prefix.exit_code == 0  # its tokenizer puts a token before every text
    edit_json(copied / "tokenizer.json", post_processor=None)
    assert_fails(llmcli("inspect", "", "-m", copied), 2, "The prompt is empty")


def test_weights_that_give_nan(llmcli, copied):
    weights = load_file(copied / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.bias"][0] = float("nan")
    save_file(weights, copied / "model.safetensors")
    for view in ALONE:
        if VIEWS[view].prompt:
            result = llmcli("inspect", "x", "-m", copied, "--view", view, "--quiet")
            assert_fails(result, 5, "not numbers")


def test_a_failed_check_is_shown_and_is_code_5(llmcli, model_folder, monkeypatch):
    from llmcli.inspection import check

    real = check.cached
    monkeypatch.setattr(check, "cached", lambda run: real(run) + 1)
    result = llmcli("inspect", PROMPT, "-m", model_folder, "--view", "check")
    assert result.exit_code == IntegrityError.exit_code
    assert "cached = full" in result.stdout
    assert "A check failed" in result.stderr


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_a_terminal_of_any_width(columns, model_folder):
    views = [x for view in ALONE for x in ("--view", view)]
    shown, code = in_terminal(["inspect", PROMPT, "-m", model_folder, *views], columns=columns)
    assert code == 0
    said = f"This terminal has {columns} columns: pictures are 80 wide and will wrap."
    assert (said in " ".join(shown.split())) == (columns < 80)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert max(map(len, plain.splitlines()[1:])) <= max(80, columns)


def test_all_views_write_times_and_percent_alike_and_say_what_their_numbers_are(
    llmcli, model_folder
):
    views = [x for view in ALONE for x in ("--view", view)]
    result = llmcli("inspect", STORY, "-m", model_folder, *views, "--color", "always")
    assert result.exit_code == 0, result.stderr
    assert not re.search(r"\d%|\d x \d", result.output)
    words = " ".join(result.output.split())
    for meaning in ("Bits are its surprisal", "Bits are the entropy of a row",
                    "Cosines are with the final vector", "Writes is the norm of the vector",
                    "KL(untouched || without it)"):  # fmt: skip
        assert meaning in words, meaning


def test_no_color_says_with_digits_what_colours_say(model_folder):
    shown, code = in_terminal(
        ["inspect", PROMPT, "-m", model_folder, "--view", "attention"], env={"NO_COLOR": "1"}
    )
    assert code == 0
    assert "\x1b" not in shown
    assert "digits are tenths" in shown
    assert "▀" not in shown


def test_a_closed_pipe_is_a_quiet_end(model_folder):
    run = subprocess.run(
        ["bash", "-c", f"{' '.join(LLMCLI)} inspect '{STORY[:60]}' -m {model_folder} --view "
         "attention --layer 0 --head 0 | head -c 1 > /dev/null; echo ${PIPESTATUS[0]}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == "0\n"
    assert run.stderr == ""


def test_tokens_that_are_half_characters_and_wide_ones_stay_aligned(llmcli, model_folder):
    prompt = "大きな 🎈 [/red] \x1b[31m\tend"
    for view in ALONE:
        if not VIEWS[view].prompt:
            continue
        common = ["inspect", prompt, "-m", model_folder, "--view", view]
        assert llmcli(*common, "--json").exit_code == 0
        shown = llmcli(*common, "--color", "always").stdout
        assert "\x1b[31m\t" not in shown
        rows = [line for line in llmcli(*common).stdout.splitlines() if not line.startswith("#")]
        assert all("\x1b" not in row for row in rows)


@pytest.mark.parametrize(("option", "name"), [("--save", "r.html"), ("--tensors", "r.safetensors")])
def test_an_output_does_not_replace_the_reference(option, name, llmcli, model_folder, tmp_path):
    path = tmp_path / name
    path.write_text("Once upon a time")
    result = llmcli("inspect", "a", "-m", model_folder, "--ablate", "L0.H0:mean", "--reference",
                    path, "--view", "tokens", option, path)  # fmt: skip
    assert_fails(result, 2, "is a file that this run reads")
    assert path.read_text() == "Once upon a time"


@pytest.mark.parametrize(("option", "name"), [("--save", "x.svg"), ("--tensors", "x.safetensors")])
@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 7), (errno.EIO, 3)])
def test_a_failed_write_leaves_the_file_as_it_was(
    option, name, number, code, llmcli, model_folder, tmp_path, monkeypatch
):
    path = tmp_path / name
    path.write_bytes(b"before")

    def fails(_file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    result = llmcli("inspect", "a", "-m", model_folder, "--view", "tokens", option, path)
    assert result.exit_code == code, result.stderr
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_ids_that_only_the_model_has_can_be_named(llmcli, copied):
    """The embedding is wider than the vocabulary, as with padding: those ids have no text."""
    config = json.loads((copied / "config.json").read_text())
    weights = load_file(copied / "model.safetensors")
    wte = weights["transformer.wte.weight"]
    weights["transformer.wte.weight"] = torch.cat([wte, wte[:4]])
    config["vocab_size"] += 4
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    (copied / "config.json").write_text(json.dumps(config))
    common = ["inspect", "a", "-m", copied, "--view", "lens", "--json", "--token"]
    view = json.loads(llmcli(*common, "id:303").stdout)["views"][0]
    assert (view["token"]["id"], view["token"]["text"]) == (303, "")
    assert_fails(llmcli(*common, "id:304"), 2, "Ids go from 0 to 303")
