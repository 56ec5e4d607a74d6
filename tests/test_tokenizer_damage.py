"""Damaged or foreign tokenizer files, bad ids and bad text become known errors, never a panic."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import (
    IntegrityError,
    LLMCLIError,
    NotFoundError,
    UnsupportedModelError,
    UsageError,
)
from llmcli.tokenizer import Tokenizer
from llmcli.tokenizer_file import ALPHABET

MERGES = ["t h", "th e", "Ġ the", "a a", "aa a", "Ġ a"]


def small() -> dict[str, Any]:
    """A tokenizer.json of the 256 bytes, six merges and three added tokens, one of them special."""
    vocab = {char: i for i, char in enumerate(ALPHABET)}
    vocab |= {merge.replace(" ", ""): 256 + i for i, merge in enumerate(MERGES)}
    vocab["<|endoftext|>"] = 262
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "added_tokens": [
            flags | {"id": 262, "content": "<|endoftext|>", "special": True},
            flags | {"id": 263, "content": "   ", "special": False},
            flags | {"id": 270, "content": "<think>", "special": False},
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": {"type": "ByteLevel"},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "vocab": vocab, "merges": list(MERGES)},
    }


def save(folder: Path, data: Any) -> Path:
    if isinstance(data, bytes):
        (folder / "tokenizer.json").write_bytes(data)
    else:
        (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return folder


@pytest.fixture
def tok(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(save(tmp_path, small()))


def at(data: Any, path: str) -> tuple[Any, Any]:
    *parents, last = path.split("/")
    for key in parents:
        data = data[int(key) if isinstance(data, list) else key]
    return data, (int(last) if isinstance(data, list) else last)


DAMAGE: list[tuple[str, Any, type[LLMCLIError], str]] = [
    ("model/vocab/the", 256, IntegrityError, "share one id"),
    ("model/vocab/the", -1, IntegrityError, "whole number"),
    ("model/vocab/the", True, IntegrityError, "whole number"),
    ("model/vocab/the", 1.0, IntegrityError, "whole number"),
    ("model/vocab/the", 2**40, IntegrityError, "whole number"),
    ("model/vocab", [], IntegrityError, "vocab"),
    ("model/merges", {}, IntegrityError, "merges"),
    ("model/merges/0", "t q", IntegrityError, "unknown token 'tq'"),
    ("model/merges/0", "t h e", IntegrityError, "pair"),
    ("model/merges/0", "th", IntegrityError, "pair"),
    ("model/merges/0", 7, IntegrityError, "pair"),
    ("model/merges", ["th e", "t h"], IntegrityError, "stands before"),
    ("model", None, IntegrityError, "model"),
    ("model/type", "Unigram", UnsupportedModelError, "Unigram"),
    ("model/type", "WordPiece", UnsupportedModelError, "WordPiece"),
    ("model/dropout", 0.1, UnsupportedModelError, "dropout"),
    ("model/continuing_subword_prefix", "##", UnsupportedModelError, "continuing_subword"),
    ("model/end_of_word_suffix", "</w>", UnsupportedModelError, "end_of_word"),
    ("model/vocab/▁the", 300, UnsupportedModelError, "not byte-level"),
    ("model/vocab/\ud800", 300, UnsupportedModelError, "not byte-level"),
    ("normalizer", {"type": "Lowercase"}, UnsupportedModelError, "Lowercase"),
    ("pre_tokenizer", {"type": "Metaspace"}, UnsupportedModelError, "Metaspace"),
    ("pre_tokenizer/use_regex", "no", IntegrityError, "use_regex"),
    ("decoder", {"type": "WordPiece"}, UnsupportedModelError, "WordPiece"),
    ("post_processor", {"type": "RobertaProcessing", "cls": 1}, IntegrityError, "post_processor"),
    ("post_processor", {"type": "RobertaProcessing", "cls": ["a", 999], "sep": ["b", 0]},
     IntegrityError, "unknown token id"),
    ("added_tokens/0/id", None, IntegrityError, "id None"),
    ("added_tokens/0/id", 2**33, IntegrityError, "id"),
    ("added_tokens/1/id", 262, IntegrityError, "shares id"),
    ("added_tokens/0/id", 5, IntegrityError, "shares id"),
    ("added_tokens/1/content", "", IntegrityError, "text ''"),
    ("added_tokens/1/content", "\udc80", IntegrityError, "text"),
    ("added_tokens/1/single_word", True, UnsupportedModelError, "single_word"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "error", "match"), DAMAGE)
def test_a_damaged_or_foreign_file_is_named(tmp_path, path, value, error, match) -> None:
    data = small()
    parent, key = at(data, path)
    parent[key] = value
    with pytest.raises(error, match=match) as caught:
        Tokenizer.from_folder(save(tmp_path, data))
    assert caught.value.remedy
    str(caught.value).encode()  # can be printed


def split(regex: Any, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    step = {"type": "Split", "pattern": regex, "behavior": behavior, "invert": invert}
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [step, last]}


@pytest.mark.parametrize("step", [
    split({"Regex": "a*"}), split({"Regex": ""}), split({"Regex": "("}), split({"String": " "}),
    split({"Regex": r"(?=a)|\s+"}), split({"Regex": r"\p{L}+|\s+"}), split({"Regex": r"\s+|"}),
    split({"Regex": r"\s+"}, "MergedWithNext"), split({"Regex": r"\s+"}, "Removed", False),
    split(None), {"type": "Sequence", "pretokenizers": []},
])  # fmt: skip
def test_a_split_that_tiktoken_cannot_match_is_refused(tmp_path, step) -> None:
    with pytest.raises(UnsupportedModelError, match="pre_tokenizer"):
        Tokenizer.from_folder(save(tmp_path, small() | {"pre_tokenizer": step}))


def test_a_missing_byte_is_refused_unless_utf8_never_uses_it(tmp_path) -> None:
    data = small()
    del data["model"]["vocab"][ALPHABET[0xFF]]
    assert Tokenizer.from_folder(save(tmp_path, data)).encode("the") == [257]
    del data["model"]["vocab"][ALPHABET[0xE2]]
    with pytest.raises(UnsupportedModelError, match="byte 0xE2"):
        Tokenizer.from_folder(save(tmp_path, data))


@pytest.mark.parametrize("data", [
    b"", b"{", json.dumps(small()).encode()[:-400], b"[" * 1_000_000, b'{"a":' * 300_000,
    b"\xff\xfe", b"null", b"[]", b'"x"', b"{}", b"NaN", b"1" * 10_000,
])  # fmt: skip
def test_what_is_no_tokenizer_is_an_integrity_error(tmp_path, data: bytes) -> None:
    with pytest.raises(IntegrityError, match="is damaged"):
        Tokenizer.from_folder(save(tmp_path, data))


def test_a_file_that_is_too_large_is_refused_without_parsing(tmp_path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(IntegrityError, match="64 MiB"):
        Tokenizer.from_folder(tmp_path)


def test_what_is_not_there_or_no_file_is_not_found(tmp_path) -> None:
    with pytest.raises(NotFoundError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"merges\.txt"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(NotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_vocab_and_merges_take_added_tokens_from_the_config(tmp_path) -> None:
    data = small()
    (tmp_path / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\r\n".join(MERGES) + "\n")
    entries = {str(token["id"]): token for token in data["added_tokens"]}
    config = {"added_tokens_decoder": entries, "eos_token": {"content": "<|endoftext|>"}}
    config |= {"add_bos_token": True, "bos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tok = Tokenizer.from_folder(tmp_path)
    assert tok.encode("the<think>   ") == [257, 270, 263]
    assert (tok.eot_id, tok.prefix_ids) == (262, (262,))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(UnsupportedModelError, match="CLIPTokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["\ud800", "x"])
def test_special_tokens_of_a_folder_without_tokenizer_json_are_checked(tmp_path, name) -> None:
    vocab = small()["model"]["vocab"] | {name: 300 if name == "\ud800" else "300"}
    for file, value in (("vocab.json", vocab), ("special_tokens_map.json", {"eos_token": name})):
        (tmp_path / file).write_text(json.dumps(value))
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(IntegrityError, match="added token"):
        Tokenizer.from_folder(tmp_path)


def test_an_empty_name_is_no_special_token(tmp_path) -> None:
    vocab = small()["model"]["vocab"] | {"": 300}
    for file, value in (("vocab.json", vocab), ("special_tokens_map.json", {"more": []})):
        (tmp_path / file).write_text(json.dumps(value))
    (tmp_path / "merges.txt").write_text("")
    assert Tokenizer.from_folder(tmp_path).special_ids == {"<|endoftext|>": 262}


def test_special_tokens_are_plain_text_unless_asked_for(tok) -> None:
    assert 262 not in tok.encode("the<|endoftext|>")
    assert tok.encode("the<|endoftext|>", special=True) == [257, 262]
    assert tok.decode(tok.encode("the<|endoftext|>")) == "the<|endoftext|>"
    assert tok.special_ids == {"<|endoftext|>": 262}


def test_sizes_and_single_tokens_are_told(tok) -> None:
    assert (tok.vocab_size, len(tok), tok.eot_id) == (271, 265, 262)
    assert [tok.id_of(t) for t in ("the", " the", "<think>")] == [257, 258, 270]
    assert tok.id_of("<|endoftext|>") == 262
    assert [tok.id_of(t) for t in ("thx", "", "é", "\ud800")] == [None] * 4
    assert tok.token_bytes(258) == b" the"
    assert tok.token_bytes(0xFF) == b"\xff"
    assert tok.decode([0xFF]) == "\ufffd"


@pytest.mark.parametrize("bad", [-1, 265, 271, 2**70, "x", None, 1.5])
def test_an_id_without_a_token_is_a_usage_error(tok, bad) -> None:
    with pytest.raises(UsageError, match="no token with id") as caught:
        tok.decode([0, bad])
    assert "0 to 270" in caught.value.remedy


def test_a_lone_surrogate_is_a_usage_error_with_its_place(tok) -> None:
    for special in (False, True):
        with pytest.raises(UsageError, match=r"U\+D800.*character 3"):
            tok.encode("abc\ud800", special=special)
        with pytest.raises(UsageError, match="surrogate"):
            tok.encode("<think>\udfff", special=special)
        with pytest.raises(UsageError, match="character 8"):
            tok.encode("<think>é\udfff", special=special)


@pytest.mark.parametrize("space", [" ", "\n", "\u3000"])
def test_white_space_that_would_overflow_tiktoken_is_a_usage_error(tmp_path, space) -> None:
    tok = Tokenizer.from_folder(save(tmp_path, small() | {"added_tokens": []}))
    with pytest.raises(UsageError, match="white spaces in a row"):
        tok.encode("x" + space * 1_100_000 + "x")
    for before in (0, 1, 200_000):
        tok.encode("x" * before + space * 749_999 + "x")
        with pytest.raises(UsageError, match="white spaces in a row"):
            tok.encode("x" * before + space * 750_000 + "x")
    assert tok.decode(tok.encode("x" + space * 749_999 + "x")).count(space) == 749_999
    assert tok.decode(tok.encode("\x1c" * 800_000)) == "\x1c" * 800_000  # Python's, not Unicode's


def mutated(rng: random.Random) -> Any:
    """`small()` with one to three values replaced, removed or moved elsewhere."""
    data: Any = copy.deepcopy(small())
    odd = [None, True, -1, 0, 7, 2**31, 2**70, 1.5, "", "a", "\ud800", "Ġ", "▁", "a b", [], {},
           [[]], ["t", "h"], [1, 2], {"type": "Sequence"}, {"type": "NFC"}, {"type": None},
           "ByteLevel", {"type": "Digits"}, "x" * 5000]  # fmt: skip
    for _ in range(rng.randrange(1, 4)):
        node: Any = data
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], (dict, list)) and rng.random() < 0.85:
                node = node[key]
                continue
            action = rng.randrange(3)
            if action == 0:
                node[key] = copy.deepcopy(rng.choice(odd))
            elif action == 1:
                del node[key]
            else:
                node[key] = copy.deepcopy(node[rng.choice(keys)])
            break
    return data


def test_a_mutated_file_loads_or_is_a_known_error(tmp_path) -> None:
    rng = random.Random(7)
    loaded = 0
    for _ in range(600):
        data = mutated(rng)
        text = json.dumps(data).encode()
        if rng.random() < 0.15:
            place = rng.randrange(len(text))
            text = text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]
        try:
            tok = Tokenizer.from_folder(save(tmp_path, text))
        except LLMCLIError as error:
            str(error).encode()
            continue
        loaded += 1
        for sample in ("the <think> aaaa   <|endoftext|>é\0\r\n 12", ""):
            tok.decode(tok.encode(sample))
            tok.encode(sample, special=True)
    assert 50 < loaded < 590


def test_importing_the_module_loads_neither_torch_nor_tiktoken() -> None:
    code = "import sys, llmcli.tokenizer; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "huggingface_hub", "tiktoken", "regex", "requests", "tokenizers"}
    assert not heavy & set(run.stdout.split())
