"""`inspect` as its users meet it: three forms of the same numbers, files, options, errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from importlib import import_module
from xml.etree import ElementTree

import inspect_schema
import jsonschema
import pytest
import torch
from conftest import FABLE, edit_json
from safetensors.torch import load_file, save_file
from test_cli import assert_fails

from llmcli.commands.inspect_target import say_which
from llmcli.commands.token_names import token_named
from llmcli.errors import UsageError
from llmcli.inspection.catalogue import VIEWS
from llmcli.render.text import quoted
from llmcli.tokenizer import Tokenizer

PROMPT = "Once upon a time, there was a little girl"
SHOWN = {  # every view, in each of its shapes
    "next": [],
    "tokens": [],
    "attention": [],
    "attention of one head": ["--layer", "1", "--head", "-1"],
    "lens": ["--rows", "4"],
    "lens of a token": ["--token", "id:100", "--position", "3"],
    "attribution": ["--rows", "12"],
    "attribution of a difference": [
        "--token",
        "id:40",
        "--versus",
        "id:41",
        "--position",
        "-2",
        "--rows",
        "9",
    ],
    "sampling": ["--temperature", "0.7", "--top-k", "20", "--seed", "3"],
    "ablation": ["--rows", "6"],
    "ablation of a difference": ["--token", "id:40", "--versus", "id:41", "--rows", "6"],
    "patching": [
        "--corrupt",
        PROMPT.replace("little girl", "girl little"),
        "--token",
        "id:40",
        "--versus",
        "id:41",
    ],
    "change": ["--ablate", "L1.H2", "--token", "id:40"],
    "embed": [],
    "embed of some": ["--position", "3", "--rows", "2"],
    "mlp": [],
    "mlp of a difference": [
        "--layer",
        "0",
        "--position",
        "2",
        "--token",
        "id:40",
        "--versus",
        "id:41",
        "--rows",
        "3",
    ],
    "residual": [],
    "residual of a changed run": ["--position", "1", "--ablate", "L1"],
    "neighbors": ["--token", "id:40"],
    "neighbors of a sum": ["--analogy", "id:40 - id:41 + id:42", "--token", "id:43", "--rows", "3"],
    "positions": [],
    "positions near one": ["--position", "7", "--rows", "3"],
    "head": ["--layer", "1", "--head", "2", "--rows", "18"],
    "head in the middle": ["--layer", "0", "--head", "0", "--position", "3", "--rows", "6"],
    "circuits": ["--layer", "2", "--head", "1", "--rows", "5"],
    "circuits of a token": ["--layer", "0", "--head", "1", "--token", "id:40"],
    "why": ["--token", "id:40"],
    "why it is not another": ["--token", "id:40", "--versus", "id:41", "--rows", "3"],
    "explain": ["--all"],
    "check": [],
    "model": [],
}


def arguments(shape, folder):
    view = shape.split()[0]
    prompt = [PROMPT] if VIEWS[view].prompt else []
    return ["inspect", *prompt, "-m", folder, "--view", view, *SHOWN[shape], "--quiet"]


def numbers_in(value):
    """Every number of a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [] if isinstance(value, str | None) else [float(value)]


def as_cells(key, value):
    """What TSV should make of one JSON value, written here once more."""
    if isinstance(value, dict):
        return {f"{key}_id": str(value["id"]), key: value["text"]}
    if value is None:
        return {key: ""}
    if isinstance(value, bool):
        return {key: str(int(value))}
    if isinstance(value, str):
        return {key: value}
    return {key: json.dumps(value, separators=(",", ":"))}


def assert_tsv_equals_json(tsv, view):
    facts, tables, table = {}, {}, None
    for line in tsv.splitlines():
        if line.startswith("# table "):
            table = line.removeprefix("# table ")
        elif line.startswith("# "):
            key, value = line[2:].split("\t")
            facts.setdefault(key, []).append(value)
        else:
            tables.setdefault(table, []).append(line.split("\t"))
    expected_tables = {
        key: value
        for key, value in view.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    assert facts.pop("note") == view["notes"]
    for key, value in view.items():
        if key not in expected_tables and key not in ("notes", "view"):
            for name, cell in as_cells(key, value).items():
                assert same(facts.pop(name)[0], cell), name
            if value is None:  # a token that there is not has its two, too
                assert facts.pop(f"{key}_id", [""]) == [""]
    assert not facts
    assert len(tables) == len(expected_tables)
    for key, rows in expected_tables.items():
        header, *lines = tables[key if len(expected_tables) > 1 else None]
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            cells = {k: v for name, value in row.items() for k, v in as_cells(name, value).items()}
            for name, cell in zip(header, line, strict=True):
                assert same(cell, cells.get(name, "")), (key, name)


def same(cell, expected):
    """A token is quoted in TSV, and what is half a character is U+FFFD in JSON."""
    if cell.startswith('"') and cell.endswith('"') and cell != expected:
        return "�" in expected or cell == quoted(expected.encode())
    return cell == expected


def assert_picture_shows_only(picture, view):
    """Each number of the picture is a number of the JSON, rounded as far as it is shown."""
    known = numbers_in(view)
    text = re.sub(r'"(?:[^"\\]|\\.)*["…]', "", picture)  # tokens hold what they like
    text = re.sub(r"\x1b\[[\d;]*m", "", text).split("\n\n  measured")[0]
    text = text.replace("<0.1 %", "")  # says a little, and no number
    for sign, digits, unit in re.findall(
        r"([-+]?)(\d+\.\d+(?:e[-+]\d+)?)(?: (%|[KMG]iB|[kMG]))?", text
    ):
        shown = sign.replace("+", "") + digits
        scale = {"%": 100, "KiB": 2**-10, "MiB": 2**-20, "GiB": 2**-30, "k": 1e-3, "M": 1e-6,
                 "G": 1e-9}.get(unit, 1)  # fmt: skip
        if "e" in shown:
            assert any(f"{number:.1e}" == shown for number in known), shown
        else:
            places = len(shown.split(".")[1])
            near = 0.5000001 * 10**-places
            assert any(abs(n * scale - float(shown)) <= near for n in known), f"{shown} {unit}"


@pytest.mark.parametrize("shape", SHOWN)
def test_the_three_forms_agree(shape, llmcli, model_folder):
    common = arguments(shape, model_folder)
    made = llmcli(*common, "--json")
    assert made.exit_code == 0, made.output
    document = json.loads(made.stdout)
    jsonschema.validate(document, inspect_schema.schema())
    assert document["schema"] == 1
    view = document["views"][0]
    assert view["view"] == shape.split()[0]
    tsv = llmcli(*common)
    assert tsv.exit_code == 0
    if VIEWS[view["view"]].plain:
        assert_picture_shows_only(tsv.stdout, view)  # plain text
    else:
        assert_tsv_equals_json(tsv.stdout, view)
    for columns in (80, 120):
        os.environ["COLUMNS"] = str(columns)
        try:
            picture = llmcli(*common, "--color", "always")
        finally:
            del os.environ["COLUMNS"]
        assert picture.exit_code == 0, picture.output
        assert_picture_shows_only(picture.stdout, view)
        plain = re.sub(r"\x1b\[[\d;]*m", "", picture.stdout)
        assert max(map(len, plain.splitlines())) <= columns
        assert made.stderr == tsv.stderr == picture.stderr == ""


def test_tabs_and_line_ends_of_a_prompt_keep_to_their_line(llmcli, model_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    prompt = "if x:\n\treturn\n" + "\t".join("abcdefghijklmnop")
    made = llmcli("inspect", prompt, "-m", model_folder, "--view", "tokens", "--color", "always")
    plain = re.sub(r"\x1b\[[\d;]*m", "", made.stdout)
    assert ":⏎→return⏎a→b→c" in plain
    assert "\t" not in plain
    assert max(map(len, plain.splitlines())) <= 80


def test_the_schema_file_is_current():
    assert inspect_schema.FILE.read_text() == inspect_schema.text()


def test_the_schema_is_strict(llmcli, model_folder):
    document = json.loads(llmcli(*arguments("tokens", model_folder), "--json").stdout)
    for change in (
        {"schema": 2},
        {"views": [{**document["views"][0], "extra": 1}]},
        {"views": [{k: v for k, v in document["views"][0].items() if k != "rows"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, **change}, inspect_schema.schema())


def test_several_views_come_in_the_order_asked(llmcli, model_folder):
    common = ["inspect", PROMPT, "-m", model_folder, "--view", "check", "--view", "model",
              "--view", "next"]  # fmt: skip
    tsv = llmcli(*common).stdout
    assert re.findall("^# view (.*)$", tsv, re.MULTILINE) == ["check", "model", "next"]
    views = json.loads(llmcli(*common, "--json").stdout)["views"]
    assert [view["view"] for view in views] == ["check", "model", "next"]


# --- without torch, and where the prompt comes from ----------------------------------------------


def test_view_model_imports_no_torch_and_is_quick(model_folder):
    code = (
        "import sys\nfrom llmcli.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    for arguments in (["inspect"], ["inspect", "--view", "model"], ["inspect", "--help"]):
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True,
            env={**os.environ, "LLMCLI_MODEL": str(model_folder)},
        )  # fmt: skip
        assert not {"torch", "transformers", "tiktoken", "numpy"} & set(run.stderr.split())
        assert time.perf_counter() - started < 3  # 0.2 s on an idle machine


def test_without_a_prompt_it_shows_the_model_and_leaves_stdin_alone(llmcli, model_folder):
    result = llmcli("inspect", "-m", model_folder, input="not read")
    assert result.exit_code == 0
    assert result.stdout.startswith("model  ")


@pytest.mark.parametrize(("piped", "view"), [("Once", "next"), ("-", "next"), ("", "model")])
def test_a_text_in_a_pipe_is_the_prompt(piped, view, model_folder):
    command = [sys.executable, "-m", "llmcli", "inspect", "-m", model_folder, "--json"]
    done = subprocess.run(command, input=piped, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["views"][0]["view"] == view
    assert told.get("prompt", "") == piped
    assert done.stderr == ""


def test_weights_are_not_written_over_by_what_is_made_of_them(llmcli, copied):
    weights = copied / "model.safetensors"
    before = weights.read_bytes()
    done = llmcli("inspect", PROMPT, "-m", copied, "--view", "attention", "--tensors", weights)
    assert_fails(done, 2, "is a file that this run reads")
    assert weights.read_bytes() == before
    vector = copied / "v.safetensors"  # in the model's folder, but no part of it
    common = ["inspect", PROMPT, "-m", copied, "--view", "attention", "--tensors", vector]
    assert llmcli(*common).exit_code == 0
    save_file({"vector": torch.ones(32)}, vector)
    done = llmcli(*common, "--steer", f"{vector} @ L1 * 1")
    assert_fails(done, 2, "is a file that this run reads")


def test_a_config_that_is_not_that_of_the_weights_is_said(llmcli, copied):
    edit_json(copied / "config.json", n_layer=5)
    done = llmcli("inspect", "-m", copied)
    assert_fails(done, 5, "missing h.3.attn.c_attn.bias", "Get the model again")


def test_a_silenced_head_raises_and_lowers_no_token(llmcli, model_folder):
    options = ["--view", "head", "--layer", 1, "--head", 0, "-m", model_folder]
    for ablate, n in (((), 10), (("--ablate", "L1.H0"), 0)):
        done = llmcli("inspect", PROMPT, *options, *ablate, "--json")
        assert len(json.loads(done.stdout)["views"][0]["pushes"]) == n
    picture = llmcli("inspect", PROMPT, *options, "--ablate", "L1.H0", "--color", "always")
    assert "raises no token" in picture.stdout
    for ablate, said in (((), False), (("--ablate", "L1.H0"), True)):
        done = llmcli("inspect", PROMPT, "-m", model_folder, *ablate, "--json")
        notes = json.loads(done.stdout)["views"][0]["notes"]
        assert ("is replaced, it still reads" in " ".join(notes)) == said


def test_greedy_takes_the_likeliest_after_bias(llmcli, model_folder):
    options = ["--view", "sampling", "--bias", "77=50", "-m", model_folder, "--json"]
    view = json.loads(llmcli("inspect", PROMPT, *options).stdout)["views"][0]
    assert view["greedy"]["id"] == 77


def test_a_dash_reads_the_prompt_from_stdin(llmcli, model_folder):
    common = ["-m", model_folder, "--json"]
    piped = llmcli("inspect", "-", *common, input=PROMPT + "\n")
    assert piped.stdout == llmcli("inspect", PROMPT, *common).stdout
    assert llmcli("inspect", "--view", "next", *common, input=PROMPT).stdout == piped.stdout


# --- options -------------------------------------------------------------------------------------


def test_an_option_that_no_view_uses_is_noted(llmcli, model_folder):
    result = llmcli("inspect", PROMPT, "-m", model_folder, "--view", "lens", "--head", 2,
                    "--top-k", 5)  # fmt: skip
    assert result.exit_code == 0
    assert result.stderr == "Not used by --view lens: --head, --top-k.\n"
    both = llmcli("inspect", PROMPT, "-m", model_folder, "--view", "lens", "--view", "sampling",
                  "--top-k", 5)  # fmt: skip
    assert both.stderr == ""
    clean = llmcli("inspect", "--clean", PROMPT, "-m", model_folder, "--view", "lens")
    assert clean.stderr == ""  # it is the prompt
    alone = llmcli("inspect", PROMPT, "-m", model_folder, "--view", "model")
    assert alone.stderr == "Not used by --view model: the prompt.\n"


def test_the_value_of_an_option_that_no_view_uses_is_never_read(llmcli, model_folder):
    odd = {"layer": 99, "head": -99, "token": " x y", "versus": "", "analogy": "+", "corrupt": "",
           "page": 99, "top-k": 999, "bias": "?"}  # fmt: skip
    changes = {"ablate": "L99", "steer": "?", "reference": "nowhere.txt"}
    for view, unused in (("embed", odd), ("explain", changes), ("embed", {"versus": " a"})):
        options = [part for name, value in unused.items() for part in (f"--{name}", value)]
        result = llmcli("inspect", PROMPT, "-m", model_folder, "--view", view, *options)
        assert result.exit_code == 0, result.stderr
        (note,) = result.stderr.splitlines()
        assert {word.strip(",.") for word in note.split() if word.startswith("--")} == {
            "--view", *(f"--{name}" for name in unused)
        }  # fmt: skip
    common = ["inspect", "-m", model_folder, "--view"]
    assert llmcli(*common, "neighbors", "--token", "id:5", "--position", 999).exit_code == 0
    one_uses_it = llmcli(*common, "embed", "--view", "lens", PROMPT, "--token", " x y")
    assert_fails(one_uses_it, 2, "is not one token")


def test_every_option_of_the_table_exists():
    import inspect as python_inspect

    from llmcli.commands.inspect import inspect

    options = set(python_inspect.signature(inspect).parameters)
    assert set().union(*(entry.uses for entry in VIEWS.values())) <= options


def test_no_line_of_a_help_is_too_long(llmcli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("generate", "inspect", "tokenize", "download"):
        lines = llmcli(command, "--help").stdout.splitlines()
        assert max(map(len, lines)) <= 80, max(lines, key=len)


def test_the_help_lists_every_view(llmcli):
    shown = llmcli("inspect", "--help").stdout
    for name, entry in VIEWS.items():
        assert re.search(rf"^ +{name} +{re.escape(entry.about)}$", shown, re.MULTILINE), name


def test_indices_count_from_the_end(llmcli, model_folder):
    common = ["inspect", PROMPT, "-m", model_folder, "--view", "attention"]
    ends = llmcli(*common, "--layer", -1, "--head", -4, "--position", -1)
    assert ends.stdout == llmcli(*common, "--layer", 2, "--head", 0).stdout


def test_a_bare_word_is_the_token_after_a_space(capsys):
    known = Tokenizer.from_folder(FABLE)
    was = known.id_of(" was")
    assert known.id_of("was") is None  # or the test needs another word
    for text, said in [("was", f'--token: " was", id {was}.\n'), (" was", ""), (f"id:{was}", "")]:
        id = token_named("--token", text, known, spaced=True)
        assert id == was
        say_which("--token", text, id, known)
        assert capsys.readouterr().err == said
    a, spaced = known.id_of("a"), known.id_of(" a")
    assert token_named("--token", '"a"', known, spaced=True) == a
    say_which("--token", "a", token_named("--token", "a", known, spaced=True), known)
    said = f'--token: " a", id {spaced}; without the space it is id:{a}.\n'
    assert capsys.readouterr().err == said


def test_dtype_is_said(llmcli, model_folder):
    common = ["inspect", PROMPT, "-m", model_folder, "--view", "check", "--json"]
    plain, half = (json.loads(llmcli(*common, *more).stdout)
                   for more in ([], ["--dtype", "bfloat16"]))  # fmt: skip
    assert plain["model"]["dtype"] == "float32"
    assert half["model"]["dtype"] == half["views"][0]["dtype"] == "bfloat16"
    assert "approximate: computed in bfloat16, not in float32." in half["views"][0]["notes"]
    stored = json.loads(llmcli(*common, "--quantize", "int8").stdout)
    assert "approximate: weights are kept in int8, not in float32." in stored["views"][0]["notes"]


# --- files ---------------------------------------------------------------------------------------


def test_tensors_are_the_full_values(llmcli, model_folder, tmp_path):
    path = tmp_path / "all.safetensors"
    result = llmcli("inspect", PROMPT, "-m", model_folder, "--tensors", path, "--json",
                    *(x for v in ("tokens", "attention", "lens", "attribution", "sampling")
                      for x in ("--view", v)))  # fmt: skip
    document = json.loads(result.stdout)
    T = len(document["ids"])
    held = load_file(path)
    assert held["tokens.logits"].shape == (T, 300)
    assert held["lens.lens"].shape == (4, T, 300)
    torch.testing.assert_close(held["lens.lens"][-1], held["tokens.logits"], atol=1e-5, rtol=0)
    views = {view["view"]: view for view in document["views"]}
    row = views["attention"]["heads"][6]
    assert held["attention.1.pattern"].shape == (4, T, T)
    assert row["layer"] == 1
    parts = [name for name in held if name.startswith("attribution.part.")]
    assert len(parts) == views["attribution"]["n_parts"] - 1  # the final norm's bias writes nothing
    assert held["sampling.0.model"].shape == (300,)


@pytest.mark.parametrize(
    ("options", "able"),
    [
        (["--view", "check", "--tensors"], "tokens, attention"),
        (["--view", "next", "--view", "why", "--quiet", "--tensors"], "tokens, attention"),
        (["--view", "lens", "--save-vector"], "steer"),
    ],
)
def test_a_file_that_no_view_would_write_is_refused_before_the_work(
    options, able, llmcli, model_folder, tmp_path
):
    path = tmp_path / "none.safetensors"
    result = llmcli("inspect", PROMPT, "-m", model_folder, *options, path)
    assert (result.exit_code, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"llmcli: {options[-1]}: --view {options[1]}")
    assert first.endswith(" has nothing to write there.")
    assert second.startswith(f"Views that have: {able}")
    assert not path.exists()


def test_the_view_that_baseline_adds_has_tensors_to_write(llmcli, model_folder, tmp_path):
    path = tmp_path / "change.safetensors"
    result = llmcli("inspect", PROMPT, "-m", model_folder, "--view", "next", "--ablate", "L0",
                    "--baseline", "--tensors", path)  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(load_file(path)) == {"change.logits", "change.untouched_logits"}


def test_the_catalogue_knows_which_views_have_tensors():
    for name, entry in VIEWS.items():
        module = import_module(f"llmcli.inspection.{name}")
        assert hasattr(module, "tensors") == ("tensors" in entry.uses), name


@pytest.mark.parametrize("name", ["picture.svg", "picture.html"])
def test_a_saved_picture_holds_the_text_and_needs_no_network(name, llmcli, model_folder, tmp_path):
    path = tmp_path / name
    common = ["inspect", PROMPT, "-m", model_folder, "--view", "lens", "--view", "tokens"]
    result = llmcli(*common, "--save", path)
    assert result.stdout == llmcli(*common).stdout
    kept = path.read_text()
    assert "lens" in kept
    assert "surprisal" in kept
    assert not re.search(r"https?://(?!www\.w3\.org/|www\.textualize\.io)|src=|@import", kept)


def test_a_saved_picture_cuts_no_line(llmcli, model_folder, tmp_path):
    path = tmp_path / "x.svg"
    words = f"{'Once upon a time there was a girl who had a red ball. ' * 2}The day was long"
    llmcli("inspect", words, "-m", model_folder, "--page", 1, "--save", path)
    shown = " ".join("".join(ElementTree.parse(path).getroot().itertext()).split())
    assert "The day was long' \\ --model" in shown


def test_a_saved_picture_is_xml_whatever_the_text(llmcli, model_folder, tmp_path):
    path = tmp_path / "x.svg"
    text = "a\uffff\ufffe b\x00\x1b<&>"
    done = llmcli("inspect", "-m", model_folder, "--view", "tokens", "--save", path, input=text)
    assert done.exit_code == 0, done.stderr
    ElementTree.fromstring(path.read_text())


def test_a_column_is_there_where_no_row_has_such_a_token(llmcli, model_folder):
    """As the likeliest other token of a first token, which nothing predicts."""
    for text in ("a", "Once upon"):
        done = llmcli("inspect", text, "-m", model_folder, "--view", "tokens")
        header = next(line for line in done.stdout.splitlines() if line.startswith("position\t"))
        assert header.endswith("\talternative_id\talternative\talternative_prob")
    facts = llmcli("inspect", text, "-m", model_folder, "--view", "attribution").stdout
    assert "# versus_id\t\n# versus\t\n" in facts


def test_a_token_of_bytes_is_named_as_it_is_shown():
    known = Tokenizer.from_folder(FABLE)
    for id in range(1, known.vocab_size):  # but the end of text, which is named without quotes
        shown = quoted(known.token_bytes(id))
        assert token_named("--token", shown, known, spaced=True) == id
    with pytest.raises(UsageError, match="is not one token"):
        token_named("--token", r'"\u200e\U0001f600"', known, spaced=True)
    with pytest.raises(UsageError, match=r'no token consists of the bytes "\\xe6\\xe6"'):
        token_named("--token", r'"\xe6\xe6"', known, spaced=True)


def test_a_checkpoint_without_a_tensor_is_damaged(llmcli, copied):
    (copied / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    done = llmcli("inspect", "-m", copied)
    assert done.exit_code == 5
    assert "missing h.0.attn.c_attn.bias" in done.stderr
