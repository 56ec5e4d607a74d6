"""`llmcli tokenize`: from one word to a corpus, in pipes, on a terminal, and with bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import deque
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import FABLE, STORY, edit_json
from rich.cells import cell_len
from rich.color import ColorSystem
from test_cli import LLMCLI, assert_fails, in_shell, in_terminal

from llmcli.commands.files import regular
from llmcli.commands.tokenize_request import lines_of
from llmcli.errors import UsageError
from llmcli.render.text import quoted
from llmcli.render.tokenized import DIFFERENT, SPECIAL, TINTS
from llmcli.tokenizer import Tokenizer, to_bytes

HOSTILE = "The end.<|endoftext|>\r\n  日本語 😀\0 \x1b[31m caf\u0065\u0301\n\n"
SCHEMA = json.loads((FABLE.parents[1] / "schemas" / "tokenize.schema.json").read_text())


@pytest.fixture
def tokenizer(model_folder) -> Tokenizer:
    return Tokenizer.from_folder(model_folder)


def printed(ids) -> str:
    return " ".join(map(str, ids)) + "\n"


def valid(definition: str, line: str) -> dict:
    import jsonschema

    value = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    where = {"$ref": f"#/$defs/{definition}", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(where).validate(value)
    return value


# --- pipes ---------------------------------------------------------------------------------------


def test_stdin_is_tokenized_to_the_byte(llmcli, model_folder, tokenizer):
    for text in ("", "\n", "x\n", HOSTILE):
        result = llmcli("tokenize", "-m", model_folder, input=text.encode())
        assert result.stdout == printed(tokenizer.encode(text))
        result = llmcli("tokenize", "-", "-m", model_folder, input=text.encode())
        assert result.stdout == printed(tokenizer.encode(text))


def test_each_text_and_each_file_has_a_line(llmcli, model_folder, tokenizer, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b c"
    a.write_text("The end.\n")
    b.write_text("x" * 7)
    expected = printed(tokenizer.encode("The end.\n")) + printed(tokenizer.encode("x" * 7))
    assert llmcli("tokenize", "The end.\n", "x" * 7, "-m", model_folder).stdout == expected
    assert llmcli("tokenize", "--files", a, b, "-m", model_folder).stdout == expected
    piped = llmcli("tokenize", "--files", a, "-", "-m", model_folder, input="x" * 7)
    assert piped.stdout == expected


def test_lines_are_records(llmcli, model_folder, tokenizer):
    lines = ["The end.", "", " a\r\r", " \rb", "日本"]
    for end in ("\n", "\r\n"):
        texts = [line.removesuffix("\r") for line in lines] if end == "\n" else lines
        expected = "".join(printed(tokenizer.encode(text)) for text in texts)
        for last in ("", end):
            given = (end.join(lines) + last).encode()
            out = llmcli("tokenize", "--lines", "-m", model_folder, input=given)
            assert out.stdout == expected
    counts = llmcli("tokenize", "--lines", "--count", "-m", model_folder, input=given).stdout
    assert counts.split() == [str(len(tokenizer.encode(line))) for line in lines]
    odd = llmcli("tokenize", "--lines", "-m", model_folder, input=b"ab\r\n\r\n\xff")
    assert "0xff at offset 6" in odd.stderr


def test_count_is_like_wc(llmcli, model_folder, tokenizer, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text(STORY)
    b.write_text(STORY * 3)
    n, m = len(tokenizer.encode(STORY)), len(tokenizer.encode(STORY * 3))
    assert llmcli("tokenize", "--count", STORY, "-m", model_folder).stdout == f"{n}\n"
    assert llmcli("tokenize", "--count", "-m", model_folder, input=STORY).stdout == f"{n}\n"
    result = llmcli("tokenize", "--format", "count", "--files", a, b, "-m", model_folder)
    assert [line.split() for line in result.stdout.splitlines()] == [
        [str(n), str(a)], [str(m), str(b)], [str(n + m), "total"],
    ]  # fmt: skip


@pytest.mark.parametrize("n_spaces", [300_000, 520_000, 1_100_000])
def test_a_long_run_of_white_space_counts_the_same_by_every_way(
    llmcli, model_folder, tmp_path, n_spaces
):
    """Files of one block are taken whole, larger ones and those with a delimiter in parts."""
    path, out = tmp_path / "spaces", tmp_path / "ids.npy"
    path.write_text(" " * n_spaces + "x")
    common = ["tokenize", "--files", path, "-m", model_folder]
    counts = [llmcli(*common, "--count"), llmcli(*common, "--count", "--document-delimiter", "@")]
    assert {run.exit_code for run in counts} == {0}
    n_tokens = {int(run.stdout.split()[0]) for run in counts}
    assert len(llmcli(*common).stdout.split()) in n_tokens
    assert llmcli(*common, "--out", out, "-q").exit_code == 0
    assert {len(np.load(out)) - 1} == n_tokens


def test_lines_of_files_are_counted_by_name_with_a_total(
    llmcli, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("a").write_text("The end.\n\n")
    Path("b").write_text("x x")
    command = ["tokenize", "--lines", "--count", "-m", model_folder, "--files"]
    n, m = (int(llmcli("tokenize", "--count", text, "-m", model_folder).stdout)
            for text in ("The end.", "x x"))  # fmt: skip
    assert llmcli(*command, "a", "b").stdout == (
        f"{n:>9} a:1\n{0:>9} a:2\n{m:>9} b:1\n{n + m:>9} total\n"
    )
    assert llmcli(*command, "a").stdout == f"{n:>9} a:1\n{0:>9} a:2\n"


def test_a_file_is_counted_under_a_name_that_a_terminal_does_not_obey(
    llmcli, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = ["a\x1b[2Jb", "c\nd", os.fsdecode(b"\xff")]
    for name in names:
        Path(name).write_text("x")
    for options in ([], ["--lines"]):
        run = llmcli("tokenize", "--count", *options, "--files", *names, "-m", model_folder)
        line = ":1" * bool(options)
        shown = [rf"a\x1b[2Jb{line}", rf"c\nd{line}", rf"\udcff{line}", "total"]
        assert [row.split() for row in run.stdout.splitlines()] == [
            [count, name] for count, name in zip("1113", shown, strict=True)
        ]


def test_a_table_of_several_texts_says_which(llmcli, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").write_text("x\ny\n")
    Path("b\tc").write_text("z")

    def which(*arguments):
        done = llmcli("tokenize", "-m", model_folder, "--format", "table", *arguments, input="w")
        head, *rows = (line.split("\t") for line in done.stdout.splitlines())
        assert head[:3] == ["input", "line", "index"]
        return [row[:3] + row[4:5] for row in rows]

    assert which("x", "x") == [["text 0", "", "0", '"x"'], ["text 1", "", "0", '"x"']]
    assert which("--lines", "--files", "a", "b\tc", "-") == [
        ["a", "1", "0", '"x"'], ["a", "2", "0", '"y"'], ["b\\tc", "1", "0", '"z"'],
        ["stdin", "1", "0", '"w"'],
    ]  # fmt: skip
    one = llmcli("tokenize", "-m", model_folder, "--format", "table", "--files", "a").stdout
    assert one.startswith("index\tid\t")


def test_a_text_that_no_chunk_holds_is_named(llmcli, model_folder, tmp_path):
    path = tmp_path / "a"
    path.write_text("x\n日\n")
    common = ["tokenize", "--chunk", 1, "-m", model_folder]
    said = "character at byte 0 has more than 1 token."
    assert f"llmcli: {path}:2: the {said}\n" in llmcli(*common, "--lines", "--files", path).stderr
    assert f"llmcli: text 1: the {said}\n" in llmcli(*common, "x", "日").stderr
    assert_fails(llmcli(*common, "日"), 2, f"llmcli: The {said}")


def test_tokens_and_table_show_every_token_with_its_place(llmcli, model_folder, tokenizer):
    ids = tokenizer.encode(HOSTILE)
    out = llmcli("tokenize", HOSTILE.replace("\0", ""), "-m", model_folder, "--format", "tokens")
    assert out.stdout.startswith('"The" " en" "d" "." "<"')
    assert out.stdout.count("\n") == 1
    out = llmcli("tokenize", "-m", model_folder, "--format", "table", input=HOSTILE.encode())
    rows = [line.split("\t") for line in out.stdout.splitlines()][1:]
    assert [int(row[1]) for row in rows] == ids
    data = HOSTILE.encode()
    for row in rows:
        start, end, first, last = map(int, row[4:8])
        assert data[start:end].hex() == row[3]
        char = data[:start].decode("utf-8", "ignore")
        assert first == len(char)
        assert HOSTILE[first:last].encode().find(data[start:end]) >= 0
    assert "\x1b" not in out.stdout


def test_json_is_strict_and_says_how_special_tokens_were_read(llmcli, model_folder, tokenizer):
    text = "a<|endoftext|>"
    plain = valid("texts", llmcli("tokenize", text, "-m", model_folder, "--json").stdout)
    special = llmcli("tokenize", text, "-m", model_folder, "--format", "json", "--special").stdout
    special = valid("texts", special)
    assert (plain["special"], special["special"]) == (False, True)
    assert [token["id"] for token in plain["texts"][0]["tokens"]] == tokenizer.encode(text)
    assert [token["special"] for token in special["texts"][0]["tokens"]] == [True, False, True]
    assert special["texts"][0]["tokens"][0]["byte_end"] == 0  # the template's has no extent
    lines = llmcli("tokenize", "--lines", "-m", model_folder, "--jsonl", input="a\n日\n").stdout
    records = [valid("record", line) for line in lines.splitlines()]
    assert [record["ids"] for record in records] == [tokenizer.encode("a"), tokenizer.encode("日")]
    assert [record["line"] for record in records] == [1, 2]


def test_special_adds_the_template_in_every_format(llmcli, model_folder, tokenizer):
    ids = [0, *tokenizer.encode("a <|endoftext|>", special=True)]
    common = ["tokenize", "a <|endoftext|>", "--special", "-m", model_folder]
    assert llmcli(*common).stdout == printed(ids)
    assert llmcli(*common, "--count").stdout == f"{len(ids)}\n"
    assert json.loads(llmcli(*common, "--jsonl").stdout)["ids"] == ids
    assert len(llmcli(*common, "--format", "table").stdout.splitlines()) == len(ids) + 1


def test_decode_is_the_inverse_to_the_byte(llmcli, model_folder, tokenizer):
    for text in ("", "x", HOSTILE, STORY * 50):
        ids = printed(tokenizer.encode(text))
        out = llmcli("tokenize", "--decode", "-m", model_folder, input=ids)
        assert out.stdout_bytes == text.encode()
    assert llmcli("tokenize", "--decode", "[300,", "1]", "-m", model_folder).exit_code == 2
    ids = tokenizer.encode("The end")
    assert llmcli("tokenize", "--decode", *ids, "-m", model_folder).stdout == "The end"
    assert llmcli("tokenize", "--decode", str(ids), "-m", model_folder).stdout == "The end"
    lines = printed(ids) + "\n" + printed(ids)
    out = llmcli("tokenize", "--decode", "--lines", "-m", model_folder, input=lines)
    assert out.stdout == "The end\n\nThe end\n"


def test_typed_ids_and_those_of_stdin_are_decoded_in_order(llmcli, model_folder, tokenizer):
    a, b, c = tokenizer.encode(" a b c")[:3]
    for texts, ids in ((["-", a], [b, c, a]), ([a, "-"], [a, b, c]), ([a, "-", b], [a, b, c, b])):
        result = llmcli("tokenize", "--decode", *texts, "-m", model_folder, input=f"{b} {c}")
        assert result.stdout == tokenizer.decode(ids)


def test_lines_are_the_same_in_any_blocks():
    for text in (b"", b"\n", b"a", b"a\n", b"ab\n\ncd\r\nefg", b"\n\nab\n"):
        expected = text.split(b"\n") if text[-1:] not in (b"", b"\n") else text.split(b"\n")[:-1]
        for size in (1, 2, 3, 99):
            blocks = [text[at : at + size] for at in range(0, len(text), size)]
            assert list(lines_of(blocks)) == expected


def test_a_part_of_a_character_is_decoded_as_errors_says(llmcli, model_folder, tokenizer):
    ids = tokenizer.encode("ab日")[:-1]
    common = ["tokenize", "--decode", *ids, "-m", model_folder]
    assert llmcli(*common).stdout_bytes == "ab日".encode()[:-1]
    assert llmcli(*common, "--errors", "replace").stdout == "ab\ufffd"
    result = llmcli(*common, "--errors", "strict")
    assert result.exit_code == 2
    assert "at offset 2" in result.stderr


def test_truncated_text_has_at_most_so_many_tokens(llmcli, model_folder, tokenizer):
    text = "The end. 日本語 😀  She had a red ball.\n"
    for n in range(1, len(tokenizer.encode(text)) + 2):
        for keep in ("left", "right"):
            out = llmcli("tokenize", text, "--truncate", n, "--keep", keep, "-m", model_folder)
            kept = out.stdout_bytes.decode()
            assert text.startswith(kept) if keep == "left" else text.endswith(kept)
            assert len(tokenizer.encode(kept)) <= n
            assert n < 6 or kept
    assert kept == text


def test_chunks_cover_the_text_and_overlap(llmcli, model_folder, tokenizer):
    text = "The end. 日本語 She had a red ball. 😀\n" * 4
    for size, overlap in [(4, 0), (5, 2), (9, 8), (500, 1), (5, 4)]:
        out = llmcli("tokenize", text, "--chunk", size, "--overlap", overlap, "-m", model_folder)
        found = [valid("chunk", line) for line in out.stdout.splitlines()]
        ids = tokenizer.encode(text)
        assert (found[0]["token_start"], found[-1]["token_end"]) == (0, len(ids))
        for chunk in found:
            assert chunk["ids"] == ids[chunk["token_start"] : chunk["token_end"]]
            assert 0 < chunk["n_tokens"] <= size
            assert text[chunk["char_start"] : chunk["char_end"]] == chunk["text"]
            assert text.encode()[chunk["byte_start"] : chunk["byte_end"]].decode() == chunk["text"]
        for one, two in pairwise(found):
            assert one["token_start"] < two["token_start"] <= one["token_end"]
            assert one["token_end"] < two["token_end"]
    assert_fails(llmcli("tokenize", "x😀", "--chunk", 1, "-m", model_folder), 2, "at byte 1 has")


@pytest.mark.parametrize("special", [False, True])
def test_a_large_text_is_cut_as_a_small_one_is(model_folder, monkeypatch, special):
    """In parts, the tokens and what is left of them are the same."""
    from llmcli.tokenizing import rows
    from llmcli.tokenizing.source import Source

    source = Source.from_folder(model_folder)
    text = "The end. 日本語 😀  She<|endoftext|> had  a red ball.\n\n " * 3

    def everything():
        cuts = [rows.truncated(source, text, limit, keep, special)
                for limit in range(1, 90) for keep in ("left", "right")]  # fmt: skip
        found = rows.tokens(source, text, special)
        return cuts, list(found.rows), rows.chunks(found, 7, 2)

    whole = everything()
    monkeypatch.setattr(rows, "BLOCK", 5)
    assert everything() == whole


# --- a corpus ------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> list[Path]:
    texts = [STORY * 9000, "", "日本 " * 10 + "<|endoftext|>", "no end<|endoftext|>\nhere"]
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, "utf-8")
    return paths


def test_a_corpus_becomes_ids_and_a_description(llmcli, model_folder, tokenizer, corpus, tmp_path):
    out = tmp_path / "ids.bin"
    files = ["tokenize", "--files", *corpus, "-m", model_folder, "--out", out]
    result = llmcli(*files)
    assert (result.exit_code, result.stdout) == (0, "")
    texts = [path.read_text("utf-8") for path in corpus]
    expected = [id for text in texts if text for id in [*tokenizer.encode(text), 0]]
    assert np.fromfile(out, "<u2").tolist() == expected
    facts = valid("corpus", out.with_name("ids.bin.json").read_text())
    assert (facts["tokens"], facts["documents"]) == (len(expected), 3)
    assert facts["bytes"] == sum(path.stat().st_size for path in corpus)
    assert sum(each["tokens"] for each in facts["inputs"]) == len(expected)
    digest = subprocess.run(["sha256sum", corpus[0]], capture_output=True, check=True).stdout
    assert facts["inputs"][0]["sha256"] == digest.split()[0].decode()
    for workers in (1, 3):
        for name in ("again.bin", "again.npy"):
            again = tmp_path / name
            assert llmcli(*files[:-1], again, "--workers", workers, "-q").stderr == ""
            if name.endswith("npy"):
                assert np.load(again).tolist() == expected
            else:
                assert again.read_bytes() == out.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_the_readmes_delimiter_leaves_no_line_end_as_a_document(tokenizer, model_folder, tmp_path):
    readme = (FABLE.parents[2] / "README.md").read_text("utf-8")
    (example,) = re.findall(r"llmcli (tokenize .* --document-delimiter .*)", readme)
    (tmp_path / "stories.txt").write_text("One.<|endoftext|>\nTwo.<|endoftext|>\n")
    run = in_shell(f"{example} -m {model_folder} --json", f"cd {tmp_path} && ")
    assert run.returncode == 0, run.stderr
    assert valid("corpus", run.stdout)["documents"] == 2
    one, two = tokenizer.encode("One."), tokenizer.encode("Two.")
    assert np.load(tmp_path / "tokens.npy").tolist() == [*one, 0, *two, 0]


def test_the_delimiter_becomes_the_end_of_text(llmcli, model_folder, tokenizer, corpus, tmp_path):
    out = tmp_path / "ids.npy"
    result = llmcli("tokenize", "--files", *corpus, "-m", model_folder, "--out", out, "--json",
                    "--document-delimiter", "<|endoftext|>")  # fmt: skip
    facts = valid("corpus", result.stdout)
    expected: list[int] = []
    for path in corpus:
        documents = path.read_text("utf-8").split("<|endoftext|>")
        if not documents[-1]:
            documents.pop()
        expected += [id for document in documents for id in [*tokenizer.encode(document), 0]]
    assert np.load(out).tolist() == expected
    assert facts["documents"] == expected.count(0) == 4
    ids = llmcli("tokenize", "--files", corpus[3], "-m", model_folder, "--document-delimiter",
                 "<|endoftext|>").stdout  # fmt: skip
    assert ids.split().count("0") == 1


@pytest.mark.parametrize("suffix", [[], [0]])
def test_a_document_has_one_end_of_text_at_its_end(llmcli, copied, tokenizer, tmp_path, suffix):
    """The text's own, with --special, or the template's; else one is added."""
    end = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    template = json.loads((copied / "tokenizer.json").read_text())["post_processor"]
    template["single"] = [end, {"Sequence": {"id": "A", "type_id": 0}}, *[end for _ in suffix]]
    edit_json(copied / "tokenizer.json", post_processor=template)
    out = tmp_path / "ids.npy"
    given = {"a": ["a"], "b/": ["b"], "/c/d": ["", "c", "d"]}
    if not suffix:
        given |= {"a<|endoftext|>": ["a"], "b<|endoftext|>/": ["b"]}
    common = ["-m", copied, "--special", "--out", out, "--json", "--document-delimiter", "/"]
    facts = valid("corpus", llmcli("tokenize", *given, *common).stdout)
    documents = [document for each in given.values() for document in each]
    expected = [id for text in documents for id in [0, *tokenizer.encode(text), 0]]
    assert np.load(out).tolist() == expected
    assert facts["documents"] == len(documents)


def test_a_delimiter_without_a_letter_is_refused(llmcli):
    done = llmcli("tokenize", "Once", "--document-delimiter", "")
    assert_fails(done, 2, "--document-delimiter needs a text")


def test_a_text_that_names_a_file_is_said(llmcli, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sea.txt").write_text("The sea.")
    done = llmcli("tokenize", "sea.txt", "-m", model_folder)
    assert done.exit_code == 0
    assert "--files reads the file" in done.stderr
    for quiet in (["-q"], ["--files"]):
        assert llmcli("tokenize", "sea.txt", "-m", model_folder, *quiet).stderr == ""


def test_large_files_print_the_ids_of_one_call(llmcli, model_folder, tokenizer, corpus):
    common = ["tokenize", "--files", corpus[0], "-m", model_folder]
    ids = tokenizer.encode(corpus[0].read_text())
    assert llmcli(*common).stdout == printed(ids)
    assert llmcli(*common, "--count").stdout.split() == [str(len(ids)), str(corpus[0])]


def test_a_large_vocabulary_takes_four_bytes(llmcli, copied, tmp_path):
    raw = json.loads((copied / "tokenizer.json").read_text())
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    raw["added_tokens"].append({"id": 70_000, "content": "zebra", **flags})
    (copied / "tokenizer.json").write_text(json.dumps(raw))
    out = tmp_path / "ids.bin"
    assert llmcli("tokenize", "zebra", "-m", copied, "--out", out).exit_code == 0
    assert np.fromfile(out, "<u4").tolist() == [70_000, 0]


def test_a_killed_run_leaves_nothing_under_the_final_name(model_folder, tmp_path):
    out = tmp_path / "ids.bin"
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        child = subprocess.Popen(
            [*LLMCLI, "tokenize", "-m", str(model_folder), "--out", str(out)],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdin
        child.stdin.write(STORY.encode() * 20_000)
        child.stdin.flush()
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob(".*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(how)
        _, errors = child.communicate(timeout=20)
        codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
        assert child.returncode == codes[how]
        assert errors.replace(b"Aborted.\n", b"") == b""
        assert not list(tmp_path.glob("ids*"))
        assert bool(list(tmp_path.glob(".*"))) == (how == signal.SIGKILL)


def test_a_full_disk_leaves_nothing_under_the_final_name(model_folder, tmp_path):
    (tmp_path / "t.txt").write_text(STORY * 9000)
    script = (
        f"ulimit -f 40; trap '' XFSZ; {sys.executable} -m llmcli tokenize --files {tmp_path}/t.txt "
        f"-m {model_folder} --out {tmp_path}/ids.bin"
    )
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 7, run.stderr
    assert "was not written" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


@pytest.mark.parametrize("name", ["t.json", "t"])
def test_an_input_is_never_overwritten(name, llmcli, model_folder, tmp_path):
    """Nor by the file beside the ids, whose name nobody typed."""
    path = tmp_path / "t.json"
    path.write_text("The end.")
    result = llmcli("tokenize", "--files", path, "--out", tmp_path / name, "-m", model_folder)
    assert_fails(result, 2, "t.json is a file that this run reads")
    assert path.read_text() == "The end."


@pytest.mark.parametrize("name", ["ids.bin", "ids.bin.json"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "link to a fifo"])
def test_out_replaces_only_regular_files(name, kind, llmcli, model_folder, tmp_path):
    path = tmp_path / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "fifo")
        os.mkfifo(tmp_path / "fifo")
    before = {each.name: each.lstat().st_mode for each in tmp_path.iterdir()}
    result = llmcli("tokenize", "x", "--out", tmp_path / "ids.bin", "-m", model_folder)
    assert_fails(result, 2, "is no regular file")
    assert {each.name: each.lstat().st_mode for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "/proc/self/fd/1"])
def test_a_device_is_refused_before_any_work(name):
    """Also where it leads to a regular file, as here: the file beside it would go into /dev."""
    with pytest.raises(UsageError, match=f"{name} is no regular file"):
        regular(Path(name))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer.json", "config.json"])
def test_out_is_none_of_the_models_files(name, llmcli, copied):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    result = llmcli("tokenize", "x", "-m", copied, "--out", copied / name)
    assert result.exit_code == 2
    assert "the model consists of" in result.stderr
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_what_stands_beside_out_replaces_its_like_only(llmcli, model_folder, tmp_path):
    given = ["tokenize", "x", "-m", model_folder, "--out", tmp_path / "notes"]
    mine = tmp_path / "notes.json"
    mine.write_text('{"my": "notes"}')
    result = llmcli(*given)
    assert result.exit_code == 2
    assert "notes.json is there already, and not by this command" in result.stderr
    assert mine.read_text() == '{"my": "notes"}'
    mine.unlink()
    assert [llmcli(*given).exit_code for _ in range(2)] == [0, 0]


def test_a_link_under_out_stays_and_its_target_is_written(llmcli, model_folder, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("ids.bin", "ids.bin.json"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    for _ in range(2):  # the targets are new, then old
        assert (
            llmcli("tokenize", "x", "--out", tmp_path / "ids.bin", "-m", model_folder).exit_code
            == 0
        )
        assert (tmp_path / "ids.bin").is_symlink()
        assert json.loads((tmp_path / "disk" / "ids.bin.json").read_text())["file"] == "ids.bin"
        assert sorted(each.name for each in (tmp_path / "disk").iterdir()) == [
            "ids.bin",
            "ids.bin.json",
        ]


# --- looking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {}])
@pytest.mark.parametrize("columns", [80, 120])
def test_the_picture_fits_and_shows_borders_spaces_and_line_ends(columns, env, model_folder):
    text = "The end.\n  日本 😀 " + "She had a red ball. " * 9 + "\x1b[31m" + "x" * 30
    shown, code = in_terminal(["tokenize", text, "-m", model_folder], columns=columns, env=env)
    assert code == 0
    assert ("\x1b[" in shown) == (not env)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "\x1b" not in plain
    assert r"\x1b" in plain
    assert "⏎" in plain
    assert "·" in plain
    assert max(map(cell_len, plain.splitlines())) <= columns
    lines = [line for line in plain.splitlines() if line.startswith("│")]
    assert len(lines) % 2 == 0
    for upper, lower in zip(lines[::2], lines[1::2], strict=True):
        places = [[cell_len(line[:i]) for i, char in enumerate(line) if char == "│"]
                  for line in (upper, lower)]  # fmt: skip
        assert places[0] == places[1]


@pytest.mark.parametrize("options", [
    ["--format", "table"], ["--merges"], ["--versus", "fable"], ["--vocab", "e"], ["--id", "257"],
], ids=lambda options: options[0] + options[-1])  # fmt: skip
def test_other_views_fit_on_a_terminal(options, model_folder):
    text = [] if options[0] in ("--vocab", "--id") else ["The  end.\n日本語 😀 " + "She had " * 9]
    shown, code = in_terminal(
        ["tokenize", *text, "-m", model_folder, *options], env={"NO_COLOR": "1"}
    )
    assert code == 0
    assert max(map(cell_len, shown.splitlines())) <= 80
    assert len(shown.splitlines()) >= 3


def test_one_of_a_thing_is_singular(llmcli, model_folder):
    shown = llmcli("tokenize", "a", "-m", model_folder, "--color", "always").stdout
    assert "1 byte · 1 character\n" in shown


def test_neighbours_differ_on_a_console_of_16_colours():
    grounds = [
        style.bgcolor.downgrade(ColorSystem.STANDARD) for style in (*TINTS, SPECIAL, DIFFERENT)
    ]
    assert len(set(grounds)) == 4


def test_merges_end_in_the_tokenizers_ids(llmcli, model_folder, tokenizer):
    text = "The  end, 日本語 aaaa She had<|endoftext|>\n\n x"
    merges = json.loads((model_folder / "tokenizer.json").read_text())["model"]["merges"]
    spell = [[quoted(to_bytes([half])[0]) for half in merge] for merge in merges]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(spell)}

    def n_bytes(piece):
        return sum(len(tokenizer.bytes_of[id]) for id in piece["ids"])

    for special in ([], ["--special"]):
        out = llmcli("tokenize", text, "-m", model_folder, "--merges", "--json", *special)
        pieces = valid("merges", out.stdout)["texts"][0]["pieces"]
        ids = [id for piece in pieces for id in piece["ids"]]
        assert ids == tokenizer.encode(text, special=bool(special))
        for piece in pieces:
            special_token = bool(special) and piece["piece"] == '"<|endoftext|>"'
            assert piece["looked_up_whole"] == special_token
            assert bool(piece["steps"]) == (
                not special_token and len(piece["ids"]) < n_bytes(piece)
            )
            for step in piece["steps"]:
                assert ranks[step["left"], step["right"]] == step["rank"]
            for before, step in pairwise(piece["steps"]):
                assert step["rank"] == min(ranks.get(p, 999) for p in pairwise(before["parts"]))
            for last in piece["steps"][-1:]:
                assert len(last["parts"]) == len(piece["ids"])
                assert not ranks.keys() & set(pairwise(last["parts"]))
    rows = llmcli("tokenize", "The", "-m", model_folder, "--merges").stdout.splitlines()
    assert rows[1].split("\t")[-1] == '"T" "h" "e"'


def test_merges_equal_the_tokenizer_on_real_vocabularies():
    from conftest import SHARED

    from llmcli.tokenizing.merges import Merger
    from llmcli.tokenizing.source import Source

    text = (
        Path(__file__).read_text("utf-8")[:3000] + " lowering 日本語のテキスト 한국어 😀" + " " * 9
    )
    for family in ("gpt-neox", "olmo-dolma2"):
        if not (SHARED / "tokenizers" / family).exists():
            pytest.skip("the shared tokenizers are absent")
        source = Source.from_folder(SHARED / "tokenizers" / family)
        pieces = Merger(source).pieces(text)  # compares the ids itself
        assert b"".join(piece.bytes for piece in pieces) == text.encode()


def test_versus_cuts_where_all_cut_and_marks_what_differs(llmcli, model_folder):
    text = "The end. Lily had 日本"
    out = llmcli("tokenize", text, "-m", model_folder, "--versus", "fable", "--json")
    found = valid("versus", out.stdout)["texts"][0]
    assert "".join(text.encode()[s["byte_start"] : s["byte_end"]].decode("utf-8", "replace")
                   for s in found["spans"]).count("�") == 0  # fmt: skip
    assert found["spans"][0]["byte_start"] == 0
    assert found["spans"][-1]["byte_end"] == len(text.encode())
    for span in found["spans"]:
        assert span["same"] == (span["tokens"][0] == span["tokens"][1])
    for index, model in enumerate(found["models"]):
        assert model["n_tokens"] == sum(len(span["ids"][index]) for span in found["spans"])
    same = llmcli("tokenize", text, "-m", "fable", "--versus", "fable", "--json")
    assert all(span["same"] for span in json.loads(same.stdout)["texts"][0]["spans"])


def test_versus_holds_a_few_bytes_per_byte_of_text(model_folder):
    """Its stretches come one by one: less memory than one object for each token would take."""
    from llmcli.commands.tokenize_compare import _spans
    from llmcli.tokenizing.rows import tokens
    from llmcli.tokenizing.source import Source

    text = STORY * 300
    found = [tokens(Source.from_folder(folder), text) for folder in (model_folder, FABLE)]
    tracemalloc.start()
    last = deque(_spans(found), maxlen=1).pop()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last.byte_end == len(text)
    assert peak < 24 * len(text)


@pytest.mark.parametrize("way", ["merges", "versus"])
def test_several_texts_looked_at_closely_are_one_output(
    way, llmcli, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("a\x1b").write_text("x\ny\n")
    Path("b").write_text("z")
    options = ["--merges"] if way == "merges" else ["--versus", "fable"]
    common = ["tokenize", "-m", model_folder, *options]
    lines = [*common, "--lines", "--files", "a\x1b", "none", "b"]
    texts = valid(way, llmcli(*lines, "--json").stdout)["texts"]
    assert [(text["input"], text["line"], text["text"]) for text in texts] == [
        ("a\x1b", 1, "x"), ("a\x1b", 2, "y"), ("b", 1, "z"),
    ]  # fmt: skip
    head, *rows = (line.split("\t") for line in llmcli(*lines).stdout.splitlines())
    alone = llmcli(*common, "x").stdout.splitlines()
    assert head == ["input", "line", *alone[0].split("\t")]
    assert rows[: len(alone) - 1] == [[r"a\x1b", "1", *row.split("\t")] for row in alone[1:]]
    assert {(row[0], row[1]) for row in rows} == {(r"a\x1b", "1"), (r"a\x1b", "2"), ("b", "1")}
    shown = llmcli(*lines, "--color", "always").stdout
    assert re.findall(r"^(?:a\\x1b|b):\d$", shown, re.M) == [r"a\x1b:1", r"a\x1b:2", "b:1"]


def test_the_vocabulary_is_searched_and_ids_explained(llmcli, model_folder, tokenizer):
    out = llmcli("tokenize", "--vocab", "^ h", "-m", model_folder, "--json")
    tokens = valid("vocabulary", out.stdout)["tokens"]
    expected = [id for id in range(300) if tokenizer.bytes_of[id].startswith(b" h")]
    assert [token["id"] for token in tokens] == expected
    assert expected
    out = llmcli("tokenize", "--id", 0, "--id", 299, "--id", 5, "-m", model_folder, "--json")
    kinds = [(token["kind"], token["end_of_text"]) for token in json.loads(out.stdout)["tokens"]]
    assert kinds == [("special", True), ("merged", False), ("byte", False)]
    everything = llmcli("tokenize", "--vocab", "", "-m", model_folder).stdout.splitlines()
    assert len(everything) == 301


# --- bad input -----------------------------------------------------------------------------------


def test_unreadable_files_are_said_and_the_others_done(llmcli, model_folder, tmp_path):
    good = tmp_path / "good"
    good.write_text("The end.")
    given = ["tokenize", "--files", tmp_path / "none", good, tmp_path, "-m", model_folder]
    result = llmcli(*given, "--count")
    assert result.exit_code == 3
    assert "none cannot be read (No such file" in result.stderr
    assert "(Is a directory)" in result.stderr
    assert [line.split()[-1] for line in result.stdout.splitlines()] == [str(good), "total"]
    out = tmp_path / "ids.bin"
    assert llmcli(*given, "--out", out).exit_code == 3
    facts = json.loads((tmp_path / "ids.bin.json").read_text())
    assert facts["skipped"] == [str(tmp_path / "none"), str(tmp_path)]
    assert [each["name"] for each in facts["inputs"]] == [str(good)]
    result = llmcli(*given[:3], "-m", model_folder, "--out", tmp_path / "nothing.bin")
    assert result.exit_code == 3
    assert not (tmp_path / "nothing.bin").exists()


def test_a_debugged_call_does_what_the_plain_one_does(llmcli, model_folder, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a", "none", "c")]
    for path in paths[::2]:
        path.write_text(STORY)
    given = ["tokenize", "--files", *paths, "-m", model_folder]
    for options in (["--count"], ["--format", "ids"], ["--out", tmp_path / "ids.bin", "-q"]):
        monkeypatch.setenv("LLMCLI_DEBUG", "0")
        plain = llmcli(*given, *options)
        written = [path.read_bytes() for path in sorted(tmp_path.glob("ids*"))]
        for path in tmp_path.glob("ids*"):
            path.unlink()
        monkeypatch.setenv("LLMCLI_DEBUG", "1")
        debugged = llmcli(*given, *options)
        assert (debugged.exit_code, debugged.stdout) == (plain.exit_code, plain.stdout) != (0, "")
        assert [path.read_bytes() for path in sorted(tmp_path.glob("ids*"))] == written
        assert len(written) == 2 * ("--out" in options)
        assert debugged.stderr.startswith("Traceback")
        assert debugged.stderr.endswith(plain.stderr)


@pytest.mark.parametrize("options", [[], ["--count"], ["--json"], ["--lines"], ["--merges"],
                                     ["--truncate", "2"], ["--out"]], ids=str)  # fmt: skip
def test_bytes_that_are_not_utf8_are_named(options, llmcli, model_folder, tmp_path):
    data = b"ab\ncd\n" + os.urandom(3).replace(b"\n", b"x") + b"\xff\xfe\0\x80"
    out = [tmp_path / "ids.bin"] if options == ["--out"] else []
    result = llmcli("tokenize", *options, *out, "-m", model_folder, input=b"ab\ncd\n\xffe\0")
    assert result.exit_code == 2
    assert "0xff at offset 6" in result.stderr
    assert result.stdout.count("\n") == 2 * (options == ["--lines"])
    assert not list(tmp_path.iterdir())
    again = llmcli("tokenize", *options, *out, "-m", model_folder, "--errors", "replace", "-q",
                   input=data)  # fmt: skip
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("ids", "said"),
    [("abc", "'abc' is no number"), ("1.5", "no number"), ("99999999", "99999999"),
     ("9" * 5000, "20 digits"), ("٣", "no number"), ("\xff", "no number"), ("0x1f", "no number")],
)  # fmt: skip
def test_ids_that_are_none_are_refused(ids, said, llmcli, model_folder):
    result = llmcli("tokenize", "--decode", "-m", model_folder, input=ids.encode("utf-8"))
    assert result.exit_code == 2
    assert said in result.stderr
    negative = llmcli("tokenize", "--decode", "-m", model_folder, input="5 -5")
    assert "'-5' is negative" in negative.stderr
    assert llmcli("tokenize", "--id", "300", "-m", model_folder).exit_code == 2


@pytest.mark.parametrize("options", [
    ["--truncate", "3", "--chunk", "3"], ["--overlap", "3"], ["--chunk", "3", "--overlap", "3"],
    ["--json", "--count"], ["--merges", "--versus", "fable"], ["--vocab", "("], ["--truncate", "0"],
    ["--out", "/no/such/folder/x.bin"], ["--vocab", "a", "--lines"], ["--document-delimiter", "x",
    "--json"], ["--format", "nonsense"], ["--decode", "--count"], ["--workers", "0"],
], ids=" ".join)  # fmt: skip
def test_options_that_do_not_fit_are_refused(options, llmcli, model_folder):
    text = [] if "--vocab" in options else ["x"]
    result = llmcli("tokenize", *text, *options, "-m", model_folder)
    assert result.exit_code == (3 if "--out" in options else 2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("options", "said"), [
    (["x", "--keep", "left"], "--keep"), (["5", "--decode", "--special"], "--special"),
    (["x", "--format", "table", "--workers", "2"], "--workers"),
    (["--id", "5", "--errors", "replace", "--files"], "--errors, --files"),
    (["x", "--workers", "2", "--special"], ""), (["x", "--truncate", "1", "--keep", "right"], ""),
])  # fmt: skip
def test_options_that_nothing_reads_are_said(options, said, llmcli, model_folder):
    result = llmcli("tokenize", *options, "-m", model_folder)
    assert result.stderr == (f"Not used here: {said}.\n" if said else "")
    assert result.exit_code == 0
    quiet = llmcli("tokenize", *options, "-q", "-m", model_folder)
    assert (quiet.stdout, quiet.stderr) == (result.stdout, "")


def test_a_reader_that_has_gone_is_a_quiet_end(model_folder, tmp_path):
    (tmp_path / "t.txt").write_text(STORY * 9000)
    command = f"{sys.executable} -m llmcli tokenize --files {tmp_path}/t.txt -m {model_folder}"
    for options in ("", "--format table", "--jsonl --lines"):
        run = subprocess.run(
            ["bash", "-c", f"{command} {options} | head -c 9 > /dev/null; echo ${{PIPESTATUS[0]}}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert (run.stdout, run.stderr) == ("0\n", "")


def test_a_word_needs_neither_numpy_nor_rich_nor_torch(model_folder):
    code = (
        "import sys\nfrom llmcli.cli import main\ntry:\n    main()\n"
        "finally:\n    print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "tokenize", "hi", "-m", str(model_folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"torch", "numpy", "rich", "huggingface_hub"} & set(run.stderr.split())


MEASURED = """
import resource, sys
from llmcli.cli import main
import numpy, tiktoken
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main()
finally:
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) // 1024, file=sys.stderr)
"""


def measured(*arguments: object, text: str) -> tuple[bytes, int]:
    """What `tokenize` prints of `text` on stdin, and the MiB that it takes."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, "tokenize", *map(str, arguments)],
        input=text.encode(), capture_output=True, check=True,
    )  # fmt: skip
    return run.stdout, int(run.stderr)


def test_streams_cost_no_more_memory_the_longer_they_are(model_folder):
    used = []
    for size in (4, 24):
        used.append(measured("--count", "-m", model_folder, text=STORY * 12_500 * size)[1])
    assert max(used) < 150
    assert used[1] < used[0] + 20


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (["--truncate", 5], 100),
        (["--truncate", 5, "--keep", "right"], 100),
        (["--chunk", 512], 150),
    ],
)
def test_cutting_a_text_makes_no_row_for_each_of_its_tokens(model_folder, tokenizer, options, most):
    """In MiB, of a text of 5 MiB: its rows take 80 bytes a byte."""
    text = STORY * 60_000
    printed, used = measured(*options, "-m", model_folder, text=text)
    ids = tokenizer.encode(STORY)
    if "--chunk" in options:
        chunks = map(json.loads, printed.splitlines())
        assert [id for chunk in chunks for id in chunk["ids"]] == ids * 60_000
    else:
        assert printed.decode() == tokenizer.decode(ids[-5:] if "right" in options else ids[:5])
    assert used < most


def test_a_model_without_end_of_text_token(llmcli, copied, tmp_path):
    edit_json(copied / "tokenizer.json", added_tokens=[], post_processor=None)
    raw = json.loads((copied / "tokenizer.json").read_text())
    raw["model"]["vocab"]["x<|end"] = raw["model"]["vocab"].pop("<|endoftext|>", 0)
    out = tmp_path / "x.bin"
    edit_json(copied / "tokenizer.json", model=raw["model"] | {"vocab": {
        token: id for token, id in raw["model"]["vocab"].items() if id}})  # fmt: skip
    assert llmcli("tokenize", "The end.", "-m", copied, "--out", out).exit_code == 0
    assert json.loads(Path(f"{out}.json").read_text())["end_of_text_id"] is None
    result = llmcli("tokenize", "a", "-m", copied, "--out", out, "--document-delimiter", "b")
    assert_fails(result, 2, "no end-of-text token")
