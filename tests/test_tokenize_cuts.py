"""Cutting changes no id: any text, any place to cut, any blocks, equal to one call."""

from __future__ import annotations

import unicodedata
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import O200K_SPLIT, QWEN_SPLIT, save

from llmcli.errors import UsageError
from llmcli.tokenizer import Tokenizer
from llmcli.tokenizer_file import ALPHABET, KNOWN_ALTERNATIVES, Recipe, read_recipe
from llmcli.tokenizing.bulk import Encoder, Job, Part, in_order, parts
from llmcli.tokenizing.cuts import cut_places, without_lookahead
from llmcli.tokenizing.rows import truncated
from llmcli.tokenizing.source import Source

CL100K_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "special", "normalized"), False)
# White space in every company: wrong borders between pieces show in the ids.
MERGES = [
    ("\n", "\n"), ("\r", "\n"), (" ", " "), ("\t", "\t"), (" ", "\n"), ("\n", " "), ("\n", "\t"),
    ("  ", "  "), ("\n\n", "\n\n"), ("  ", "\n"), (" ", "a"), ("a", "b"), (" a", "b"), ("1", "2"),
    ("12", "3"), (".", "\n"), (".", "."), (".\n", "\n"), ("/", "\n"), ("\n", "/"), ("'", "s"),
    (" ", "."), (" ", "1"), ("\t", "a"), ("a", "\n"), ("\xc2", "\xa0"), (" ", "\xc2\xa0"),
    ("\xc2\xa0", " "), ("\xe3", "\x80"), ("\xe3\x80", "\x80"), (" ", "\xe3\x80\x80"),
    ("\xe3\x80\x80", "\n"), ("\n", "a"), ("\xbd", "\xef"),
]  # fmt: skip
PLAIN = " \n\r\ta1./'"
MERGES += [pair for pair in product(PLAIN, PLAIN) if pair not in MERGES]
ATOMS = [
    " ", " ", "  ", "\n", "\n", "\r\n", "\t", "\xa0", "\u3000", "\u2028", "\x85", "\u2003",
    "\x1c", "\v", "a", "b", "ab", "É", "'s", "'S", "'", "ſ", "1", "12", "½", "٣", ".", "..", "!/",
    "/", "\u0301", "\u0308", "e", "é", "¨", "ͺ", "가", "ᄀ", "ᅡ", "日本", "ﬁ", "👩‍👧", "“", "\x01",
    "\x02", "\0", "<|end|>", "<t>", "🜨", "𝟙",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(ATOMS) | st.text(max_size=3), max_size=24).map("".join)
# One of each kind of character that a split pattern tells from others.
KINDS = [*PLAIN, "É", "日", "٣", "\u0301", "\u3000", "\xa0", "\x1c", "s"]


def spell(token: str) -> str:
    return "".join(ALPHABET[ord(byte)] for byte in token)


def build(pre_tokenizer: dict[str, Any] | str, **changes: Any) -> dict[str, Any]:
    """A tokenizer.json of the 256 bytes, `MERGES` and some added tokens."""
    if isinstance(pre_tokenizer, str):
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pre_tokenizer}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}  # fmt: skip
    vocab = {char: id for id, char in enumerate(ALPHABET)}
    vocab |= {spell(left + right): 256 + id for id, (left, right) in enumerate(MERGES)}
    return {
        "pre_tokenizer": pre_tokenizer,
        "added_tokens": [FLAGS | {"id": 500, "content": "<|end|>", "special": True}],
        "model": {"type": "BPE", "vocab": vocab,
                  "merges": [[spell(left), spell(right)] for left, right in MERGES]},
    } | changes  # fmt: skip


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
ADDED = [
    FLAGS | {"id": 500, "content": "<|end|>", "special": True},
    FLAGS | {"id": 501, "content": "  ", "normalized": True},
    FLAGS | {"id": 502, "content": "<t>"},
    FLAGS | {"id": 503, "content": "\n\n"},
    FLAGS | {"id": 504, "content": "éa", "normalized": True},
]
DIGITS = [
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": each}, GPT2]}
    for each in (True, False)
]
TOKENIZERS = {
    "gpt2": build(GPT2),
    "cl100k": build(CL100K_SPLIT),
    "qwen, NFC": build(QWEN_SPLIT, normalizer={"type": "NFC"}),
    "o200k": build(O200K_SPLIT),
    "digit by digit": build(DIGITS[0]),
    "digits": build(DIGITS[1]),
    "neox: NFC, runs of spaces": build(GPT2, normalizer={"type": "NFC"}, added_tokens=ADDED),
    "NFKC, added": build(CL100K_SPLIT, normalizer={"type": "NFKC"}, added_tokens=ADDED),
    "NFD": build(CL100K_SPLIT, normalizer={"type": "NFD"}, added_tokens=ADDED),
    "prefix space": build(GPT2 | {"add_prefix_space": True}, added_tokens=ADDED),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def recipe(request, tmp_path_factory) -> Recipe:
    return read_recipe(save(tmp_path_factory.mktemp("cuts"), TOKENIZERS[request.param]))


def job_for(recipe: Recipe, **changes: Any) -> Job:
    return Job(Source(recipe.where.parent, recipe, Tokenizer(recipe)), **changes)


def blocks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def streamed(job: Job, data: bytes, size: int, workers: int = 1) -> list[int]:
    encoder = Encoder(job)
    found = in_order(encoder.ids, parts(blocks(data, size), job), workers)
    return [id for _, ids in found for id in ids.tolist()]


def check(examples: int, *strategies: Any):
    def run(test):
        limits = settings(max_examples=examples, deadline=None, derandomize=True, database=None)
        limits(given(*strategies)(test))()

    return run


@pytest.mark.parametrize("special", [False, True])
def test_cutting_at_every_place_gives_the_ids_of_one_call(recipe, special) -> None:
    tokenizer, places = Tokenizer(recipe), cut_places(recipe, special)
    assert not isinstance(places, str)

    @check(150, TEXTS)
    def _(text: str) -> None:
        cuts = [match.start() for match in places.finditer(text)]
        cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [id for part in cut for id in tokenizer.encode(part, special=special)]
        assert ids == tokenizer.encode(text, special=special)


def test_cutting_is_right_for_every_three_kinds_of_characters_in_a_row(recipe) -> None:
    tokenizer, places = Tokenizer(recipe), cut_places(recipe)
    assert not isinstance(places, str)
    for kinds in product(KINDS, repeat=3):
        text = "".join(kinds)
        for match in places.finditer(text):
            parts = text[: match.start()], text[match.start() :]
            ids = [id for part in parts for id in tokenizer.encode(part)]
            assert ids == tokenizer.encode(text), ascii(text)


def test_streams_of_any_block_size_give_the_ids_of_one_call(recipe) -> None:
    job = job_for(recipe)
    encoder = Encoder(job)

    @check(80, TEXTS, st.integers(1, 12))
    def _(text: str, size: int) -> None:
        found = list(parts(blocks(text.encode(), size), job))
        assert b"".join(part.data for part in found) == text.encode()
        ids = [id for part in found for id in encoder.ids(part).tolist()]
        assert ids == job.source.tokenizer.encode(text)
        assert sum(map(encoder.count, found)) == len(ids)


@pytest.mark.parametrize("special", [False, True])
def test_a_truncated_text_is_an_end_of_the_very_text(recipe, special) -> None:
    source = job_for(recipe).source

    @check(80, TEXTS, st.integers(1, 12))
    def _(text: str, limit: int) -> None:
        n_tokens = len(source.ids(text, special))
        for keep, holds in (("left", text.startswith), ("right", text.endswith)):
            kept = truncated(source, text, limit, keep, special)
            assert holds(kept)
            assert len(source.ids(kept, special)) <= limit
            assert (kept == text) == (n_tokens <= limit)

    text = "cafe\u0301 one"  # NFC composes the mark with the letter before it
    assert "cafe\u0301" in {truncated(source, text, n, "left", special) for n in range(1, 20)}
    assert " one" in {truncated(source, text, n, "right", special) for n in range(1, 20)}


@pytest.mark.parametrize("delimiter", ["<|end|>", "\n\n", "aa", "a 1"])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("suffix", [False, True])
def test_documents_are_encoded_apart_whatever_the_blocks(
    tmp_path, delimiter, special, suffix
) -> None:
    """A delimiter at the end begins no document, and none of the template's ids.

    It becomes the end-of-text id, unless the document before it ends with one.
    """
    end = {"SpecialToken": {"id": "<|end|>"}}
    template = {"type": "TemplateProcessing", "single": [
        end, {"Sequence": {"id": "A"}}, *[end] * suffix],
        "special_tokens": {"<|end|>": {"ids": [500]}}}  # fmt: skip
    data = build(GPT2, post_processor=template)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    recipe = read_recipe(save(tmp_path, data))
    job = job_for(recipe, special=special, delimiter=delimiter.encode())
    encoder, before, after = Encoder(job), [500] * special, [500] * (special and suffix)
    few = [delimiter, delimiter, " ", "  ", "\n", "a", "1", delimiter[:1], "é", "\u3000", "\x02"]
    few += ["<|end|>"]

    @check(60, st.lists(st.sampled_from(few), max_size=20).map("".join),
           st.integers(1, 12))  # fmt: skip
    def _(text: str, size: int) -> None:
        expected: list[int] = []
        *ended, rest = text.split(delimiter)
        for document in ended:
            own = [*job.source.tokenizer.encode(document, special=special), *after]
            expected += [*before, *own, *[500] * (own[-1:] != [500])]
        if rest:
            ids = job.source.tokenizer.encode(rest, special=special)
            expected += [*before, *ids, *after]
        found = list(parts(blocks(text.encode(), size), job))
        ids = [id for part in found for id in encoder.ids(part).tolist()]
        assert ids == expected
        assert sum(map(encoder.count, found)) == len(ids)


def test_an_end_of_text_that_text_spells_is_the_same_with_marks_and_without(tmp_path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "ab"}')
    job = job_for(read_recipe(save(tmp_path, build(GPT2))), delimiter=b"/")
    (end,) = job.source.tokenizer.encode("ab")
    for mark in ("", "\x01"):  # a text that holds one is encoded without
        ids = streamed(job, f"{mark}ab/ab/".encode(), 99)
        assert ids == [*job.source.tokenizer.encode(mark), end, end]


def test_marks_stand_for_the_lookahead_in_every_company(recipe) -> None:
    job = job_for(recipe)
    encoder = Encoder(job)
    white = [" ", "\n", "\t", "\r", "\xa0", "\u3000", "\x85", "\u2028", "\u1680", "\u205f"]
    others = ["", "a", "1", ".", "é", "٣", "日", "'s", "\x1c", "\u200b", "😀"]
    for a in white:
        for b in white:
            for end in others:
                for text in (f"x{a}{b}{end}", f".{b}{a}{b}{end}", f"{a}{b}{end}"):
                    part = Part(text.encode(), 0, True, True)
                    assert encoder.ids(part).tolist() == job.source.tokenizer.encode(text), ascii(
                        text
                    )


def test_a_wide_space_is_seen_whole_wherever_a_block_ends(tmp_path) -> None:
    job = job_for(read_recipe(save(tmp_path, build(GPT2))))
    for before in range(30):
        text = "x" * before + "\u3000  \u3000 b\xa0\xa0 \u3000\n" + "y" * 12
        for size in range(1, 24):
            assert streamed(job, text.encode(), size) == job.source.tokenizer.encode(text)


def test_no_normal_form_breaks_what_the_cuts_rest_on() -> None:
    for char in map(chr, [*range(0xD800), *range(0xE000, 0x110000)]):
        if char.isascii():
            continue
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            other = unicodedata.normalize(form, char)
            if other == char:
                continue
            assert char.isspace() or not other[-1].isspace(), ascii(char)
            if char.isalnum() and form in ("NFC", "NFD"):
                assert other[0].isalnum(), ascii(char)


def test_every_known_alternative_is_in_a_pattern_that_is_proven_here() -> None:
    tried = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}
    for data in TOKENIZERS.values():
        for step in data["pre_tokenizer"].get("pretokenizers", []):
            tried |= set(step.get("pattern", {}).get("Regex", "").split("|"))
    rest = [part for part in KNOWN_ALTERNATIVES if part not in "|".join(tried)]
    for part in rest:  # the proof rests on where a white space may stand
        assert not part.replace(r"[^\s", "").replace(r"\s+", "").count(r"\s") or part[:2] == r"\s"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(workers, tmp_path) -> None:
    job = job_for(read_recipe(save(tmp_path, build(GPT2))))
    text = "ab 12  \n\n .. ab's\n" * 500
    assert streamed(job, text.encode(), 100, workers) == job.source.tokenizer.encode(text)


def test_a_run_without_a_place_to_cut_is_named_with_its_offset(tmp_path) -> None:
    job = job_for(read_recipe(save(tmp_path, build(GPT2))))
    data = b"ab " * 100 + b"x" * 5000
    with pytest.raises(UsageError, match="from byte 299 on"):
        list(parts(blocks(data, 64), job, longest=2000))
    assert len(list(parts(blocks(data, 64), job, longest=6000))) > 3


def test_bytes_that_are_not_utf8_are_named_with_their_offset_in_the_input(tmp_path) -> None:
    job = job_for(read_recipe(save(tmp_path, build(GPT2))))
    data = b"ab " * 100 + b"\xff ab" + b" ab" * 50
    with pytest.raises(UsageError, match=r"0xff at offset 300\."):
        streamed(job, data, 64)
    replaced = job_for(read_recipe(tmp_path), errors="replace")
    expected = replaced.source.tokenizer.encode(data.decode("utf-8", "replace"))
    assert streamed(replaced, data, 64) == expected


def test_replaced_bytes_are_the_same_in_any_blocks(tmp_path) -> None:
    job = job_for(read_recipe(save(tmp_path, build(GPT2))), errors="replace")
    atoms = [b" ", b"\n", b"  ", b"a", b"\xe2", b"\xe2\x80", b"\x80", b"\xc2", b"\xa0", b"\xf0\x9f",
             "\u2003".encode(), "é".encode(), b"\xff", b"\xe1\x9a", b"\xc0", b"\xe2\xc0\x80",
             ]  # fmt: skip

    @check(150, st.lists(st.sampled_from(atoms), max_size=16).map(b"".join), st.integers(1, 9))
    def _(data: bytes, size: int) -> None:
        expected = job.source.tokenizer.encode(data.decode("utf-8", "replace"))
        assert streamed(job, data, size) == expected


def test_what_has_no_proof_is_one_part_and_says_why(tmp_path) -> None:
    no_split = build({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
    spaced = FLAGS | {"id": 501, "content": "a tool"}
    greedy = FLAGS | {"id": 500, "content": "<|end|>", "special": True, "rstrip": True}
    for data, special, why in [
        (no_split, False, "split pattern"),
        (build(GPT2, added_tokens=[spaced]), False, "'a tool'"),
        (build(GPT2, added_tokens=[greedy]), True, "white space around"),
    ]:
        recipe = read_recipe(save(tmp_path, data))
        reason = cut_places(recipe, special)
        assert isinstance(reason, str)
        assert why in reason
        job = job_for(recipe, special=special)
        assert len(list(parts(blocks(b"a tool\n" * 100, 16), job))) == 1
    assert without_lookahead(read_recipe(save(tmp_path, no_split))) is None


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox", "phi-2", "olmo-dolma2", "minimind"])
def test_real_tokenizers_stream_text_as_in_one_call(family) -> None:
    folder = SHARED / "tokenizers" / family
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    job = job_for(read_recipe(folder))
    text = Path(__file__).read_text("utf-8") + "".join(ATOMS) * 20 + "日本語。\n" * 90
    ids = streamed(job, text.encode(), 512, workers=2)
    assert ids == job.source.tokenizer.encode(text)
