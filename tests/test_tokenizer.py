"""The ids equal those of the `tokenizers` library, and damaged files become known errors."""

from __future__ import annotations

import copy
import json
import random
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models, pre_tokenizers, trainers

from llmcli import tokenizer as tokenizer_module
from llmcli.errors import (
    IntegrityError,
    UnsupportedModelError,
)
from llmcli.tokenizer import Tokenizer, live_merges, merges_sha256
from llmcli.tokenizer_file import ALPHABET, KNOWN_ALTERNATIVES, read_recipe, tokenizer_sha256

SHARED = Path(__file__).parents[1].parent / "shared" / "tokenizers"
FAMILIES = [
    "gpt2-tokenizer-json",
    "gpt-neox",
    "phi-2",
    "olmo-dolma2",
    "minimind",
]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K_SPLIT = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
HOSTILE = [
    "",
    " ",
    "hello world",
    "Hello  World!   \t\t\t \n\n\n  x \r\n\r\n y\r z",
    "don't DON'T we’ll I'Ve 'ſ ''s 's'S you're",
    "0 00 000 1234567890 ½ ⅷ ٣٤ 1,000.50  5  55",
    "\0\x01\x1c\x1d\x1f\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff",
    "\u0301 e\u0301 \u0301\u0301a 가 각 ﬁ Å Å",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 \U0001f9d1\u200d\U0001f680",
    "日本語のテキスト 한국어 العربية עברית हिन्दी ไทย",
    "<|endoftext|> a<|endoftext|>b <|im_start|><think>x</think><|endoftext|",
    "|||PHONE_NUMBER||| <|fim_prefix|> <s></s> [MASK]",
    "".join(chr(c) for c in range(0x250)),
    "\ufffd\ufffe\uffff\U0010ffff\U000e0001\U000f0000\U00100000",
    *(" " * n + "x" for n in range(1, 40)),
    *("\t" * n + "\n" * (n % 4) for n in range(1, 12)),
]
PLANES = ["".join(chr(c) for c in range(p << 16, (p + 1) << 16, 97) if not 0xD800 <= c <= 0xDFFF)
          for p in range(17)]  # fmt: skip
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog doesn't mind at all 1234 2024\n",
    "def main(argc):\n    return argc + 1  # naïve café — “quoted”\n\n",
    "aaaa aaaaa abababab bananas banana 日本語 日本 語 🙂🙂 don't we'll\r\n",
]


def tiny_reference() -> Reference:
    """A byte-level BPE of 400 tokens with special and plain added tokens."""
    reference = Reference(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(CORPUS * 3, trainer)
    return reference


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    return json.loads(tiny_reference().to_str())


def save(folder: Path, data: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    return folder


def both(folder: Path) -> tuple[Tokenizer, Reference]:
    reference = Reference.from_file(str(folder / "tokenizer.json"))
    reference.encode_special_tokens = True
    return Tokenizer.from_folder(folder), reference


def assert_equal_ids(ours: Tokenizer, reference: Reference, texts: list[str]) -> None:
    expected = reference.encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, expected, strict=True):
        ids = ours.encode(text)
        assert ids == encoding.ids, ascii(text[:200])
        if not ours._normal_forms and not ours._prefix_space:
            assert ours.decode_bytes(ids) == text.encode()


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is absent")
    return SHARED / name


@pytest.fixture(scope="session", params=["tiny", *FAMILIES])
def pair(request, tmp_path_factory, tiny) -> tuple[Tokenizer, Reference]:
    if request.param == "tiny":
        return both(save(tmp_path_factory.mktemp("tiny"), tiny))
    return both(shared(request.param))


def test_ids_equal_the_library_on_hostile_strings(pair) -> None:
    assert_equal_ids(*pair, HOSTILE + PLANES)


def test_ids_equal_the_library_on_every_vocabulary_entry(pair) -> None:
    ours, reference = pair
    texts = [ours.bytes_of[id].decode("utf-8", "replace") for id in sorted(ours.bytes_of)]
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    assert_equal_ids(ours, reference, texts)
    assert_equal_ids(ours, reference, ["".join(texts[i : i + 50]) for i in range(0, 9000, 50)])


def test_ids_equal_the_library_on_random_text(pair) -> None:
    ours, reference = pair
    pieces = st.sampled_from([" ", "  ", "\n", "'", "’s", "\t", "a", "Z", "9", "é", "<|", "|>"])
    text = st.text(st.characters(exclude_categories=["Cs", "Mn", "Mc", "Cn"]), max_size=8)

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.lists(pieces | text, max_size=30).map("".join))
    def check(text: str) -> None:
        assert_equal_ids(ours, reference, [text])

    check()


def test_ids_equal_the_library_where_special_tokens_are_asked_for(pair) -> None:
    ours, reference = pair
    reference.encode_special_tokens = False
    try:
        for text in HOSTILE:
            expected = reference.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, special=True) == expected, ascii(text[:200])
    finally:
        reference.encode_special_tokens = True


@pytest.mark.parametrize("unit", ["a", " ", "\n", "1", ".", "日", "ab "])
def test_a_hundred_kilobytes_of_one_thing_are_fast_and_equal(pair, unit: str) -> None:
    ours, reference = pair
    text = unit * (100_000 // len(unit))
    start = time.perf_counter()
    ids = ours.encode(text)
    assert time.perf_counter() - start < 5
    assert ids == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("family", "name"), [("gpt2", "gpt-2"), ("gpt-neox", "gpt-neox")])
def test_ids_equal_the_published_vectors(family: str, name: str) -> None:
    ours = Tokenizer.from_folder(shared(family))
    lines = (shared("vectors") / f"ggml-{name}.txt").read_text("utf-8").splitlines()
    for line in lines:
        text, _, ids = line.rpartition(" => ")
        assert ours.encode(text) == [int(id) for id in ids.split(",")], text
    assert len(lines) == 100


def test_vocab_and_merges_give_what_tokenizer_json_gives() -> None:
    a = Tokenizer.from_folder(shared("gpt2"))
    b = Tokenizer.from_folder(shared("gpt2-tokenizer-json"))
    for text in HOSTILE + PLANES:
        assert a.encode(text) == b.encode(text)
    assert a.special_ids == b.special_ids == {"<|endoftext|>": 50256}
    assert a.eot_id == b.eot_id == 50256


def test_added_tokens_may_stand_in_a_file_of_their_own(tmp_path, tiny) -> None:
    from transformers import GPT2Tokenizer

    model = tiny["model"]
    added = {name: id for id, name in enumerate(["<bos>", "<user>", "<pad>", " plain "], 385)}
    special = {"pad_token": "<pad>", "bos_token": {"content": "<bos>"}}
    files = {
        "vocab.json": model["vocab"],
        "added_tokens.json": added,
        "special_tokens_map.json": special | {"extra_special_tokens": ["<user>"]},
        "tokenizer_config.json": {"bos_token": "<bos>", "add_bos_token": True},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])))
    ours, reference = Tokenizer.from_folder(tmp_path), GPT2Tokenizer.from_pretrained(tmp_path)
    text = "<user>don't <pad><bos>at<|endoftext|> all plain <cls>"
    ids = reference.encode(text, add_special_tokens=False)
    assert {0, *added.values()} < set(ids)
    assert ours.encode(text, special=True) == ids
    plain = reference.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ours.encode(text) == plain
    assert ours.prefix_ids == (added["<bos>"],)
    assert tokenizer_sha256(tmp_path).keys() == {"vocab.json", "merges.txt", "added_tokens.json"}


@pytest.mark.parametrize("key", ["pad_token", "additional_special_tokens", None])
def test_added_tokens_are_special_where_the_map_of_those_names_them(tmp_path, tiny, key) -> None:
    files = {
        "vocab.json": tiny["model"]["vocab"],
        "added_tokens.json": {"<user>": 400},
        "special_tokens_map.json": {key: ["<user>"] if key and key.endswith("s") else "<user>"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content if key or "map" not in name else {}))
    (tmp_path / "merges.txt").write_text("")
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.encode("<user>", special=True) == [400]
    assert (ours.encode("<user>") == [400]) == (key is None)


def test_the_old_form_of_a_file_says_what_the_new_one_says() -> None:
    new, old = (read_recipe(shared(f"gpt2-tokenizer-json{form}")) for form in ("", "-old"))
    assert replace(old, where=new.where) == new


def test_sentencepiece_with_byte_fallback_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="byte_fallback"):
        Tokenizer.from_folder(shared("phi-3-mini"))


def test_the_proven_merge_list_is_all_live(monkeypatch) -> None:
    recipe = read_recipe(shared("gpt2"))
    assert {merges_sha256(recipe.lefts, recipe.rights)} == tokenizer_module.PROVEN
    shortcut = live_merges(recipe.where, recipe.lefts, recipe.rights)
    monkeypatch.setattr(tokenizer_module, "PROVEN", frozenset())
    assert live_merges(recipe.where, recipe.lefts, recipe.rights) == shortcut


def test_merges_in_both_spellings_give_the_same_ids(tiny, tmp_path) -> None:
    strings, lists = copy.deepcopy(tiny), copy.deepcopy(tiny)
    pairs = [m.split(" ") if isinstance(m, str) else m for m in tiny["model"]["merges"]]
    strings["model"]["merges"] = [" ".join(pair) for pair in pairs]
    lists["model"]["merges"] = pairs
    a = Tokenizer.from_folder(save(tmp_path / "a", strings))
    b = Tokenizer.from_folder(save(tmp_path / "b", lists))
    assert all(a.encode(text) == b.encode(text) for text in HOSTILE + CORPUS)


def bpe(merges: list[tuple[str, str]], ids: list[int] | None = None) -> dict[str, Any]:
    """A tokenizer.json of the 256 bytes and `merges`; `ids` of their products, in order."""
    products = list(dict.fromkeys(a + b for a, b in merges))
    vocab = {char: i for i, char in enumerate(ALPHABET)}
    vocab |= dict(zip(products, ids or range(256, 256 + len(products)), strict=True))
    return {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [f"{a} {b}" for a, b in merges]},
    }


def test_ids_equal_for_merge_lists_no_training_would_make(tmp_path) -> None:
    """Dead merges, several merges for one token, ids against the merge order: 150 random lists."""
    rng = random.Random(1)
    loaded = 0
    for number in range(150):
        known, merges = list("ab"), []
        for _ in range(rng.randrange(1, 14)):
            pair = rng.choice(known), rng.choice(known)
            if pair not in merges and len("".join(pair)) < 9:
                merges.append(pair)
                known.append("".join(pair))
        if number % 3 == 0:
            rng.shuffle(merges)
        n = len({a + b for a, b in merges})
        data = bpe(merges, rng.sample(range(256, 256 + n), n))
        data["model"]["ignore_merges"] = number % 5 == 0
        folder = save(tmp_path / str(number), data)
        try:
            ours, reference = both(folder)
        except (IntegrityError, UnsupportedModelError):
            continue
        loaded += 1
        texts = ["".join(rng.choices("ab", k=rng.randrange(1, 12))) for _ in range(60)]
        assert_equal_ids(ours, reference, [*texts, "a" * 200, "ab" * 100])
    assert loaded > 90


@pytest.mark.parametrize("split", [QWEN_SPLIT, O200K_SPLIT])
@pytest.mark.parametrize("how", [("Isolated", False), ("Removed", True)])
def test_ids_equal_for_other_split_patterns(tiny, tmp_path, split: str, how) -> None:
    data = copy.deepcopy(tiny)
    data["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": how[0], "invert": how[1]},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
            | {"use_regex": False},
        ],
    }
    assert_equal_ids(*both(save(tmp_path, data)), HOSTILE + PLANES + CORPUS)


@pytest.mark.parametrize("individual", [True, False])
def test_ids_equal_where_digits_are_cut_first(tiny, tmp_path, individual: bool) -> None:
    data = copy.deepcopy(tiny)
    steps = [{"type": "Digits", "individual_digits": individual}, data["pre_tokenizer"]]
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    numbers = "".join(f"a{chr(c)}b  {chr(c)} '{chr(c)}s" for c in range(0x3000)
                      if unicodedata.category(chr(c))[0] == "N")  # fmt: skip
    assert_equal_ids(*both(save(tmp_path, data)), [*HOSTILE, *PLANES, *CORPUS, numbers])


@pytest.mark.parametrize("change", [
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                       "use_regex": False}},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "NFC"}]}},
    {"normalizer": {"type": "NFD"}},
])  # fmt: skip
def test_ids_equal_with_prefix_space_without_regex_and_normalized(tiny, tmp_path, change) -> None:
    data = tiny | change
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    n = len(tiny["model"]["vocab"])  # the library numbers added tokens itself: no gaps
    data["added_tokens"] = [
        *tiny["added_tokens"],
        plain | {"id": n, "content": "éé", "normalized": True},
        plain | {"id": n + 1, "content": "  ", "normalized": False},
        plain | {"id": n + 2, "content": "oftext|>x", "normalized": False},
        plain | {"id": n + 3, "content": "\n\n", "normalized": True},
    ]
    texts = [*HOSTILE, *CORPUS, "<|endoftext|>x oftext|>x", "ee\u0301e\u0301  éé   éé\n\n\n x"]
    assert_equal_ids(*both(save(tmp_path, data)), texts)


def test_every_known_split_alternative_loads_in_tiktoken() -> None:
    import tiktoken

    ranks = {bytes([byte]): byte for byte in range(256)}
    for pattern in KNOWN_ALTERNATIVES:
        encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        for text in HOSTILE:
            encoding.encode_ordinary(text)


def test_the_post_processor_says_what_generate_prepends(tiny, tmp_path) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]},
        },
    }  # fmt: skip
    roberta = {"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["<|endoftext|>", 0],
               "trim_offsets": True, "add_prefix_space": False}  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    sequence = {"type": "Sequence", "processors": [byte_level, template]}
    for number, step in enumerate([template, roberta, sequence]):
        ours, reference = both(save(tmp_path / str(number), tiny | {"post_processor": step}))
        ids = [*ours.prefix_ids, *ours.encode("the dog"), *ours.suffix_ids]
        assert (ours.prefix_ids, ours.suffix_ids) == ((1,), (0,))
        assert ids == reference.encode("the dog").ids
    with pytest.raises(UnsupportedModelError, match="Mystery"):
        Tokenizer.from_folder(save(tmp_path, tiny | {"post_processor": {"type": "Mystery"}}))
