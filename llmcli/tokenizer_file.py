"""A model folder's tokenizer files -> a checked `Recipe` of what they say, for `tokenizer.py`.

Byte-level BPE (Sennrich et al., arXiv 1508.07909; over bytes as in GPT-2), from `tokenizer.json` or
from `vocab.json` + `merges.txt`. What cannot be matched exactly is refused by name. `truncation`,
`padding` and the template for pairs of texts are ignored on purpose: no command uses them.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import count, filterfalse, repeat
from operator import add
from os.path import lexists  # a link that leads nowhere is not to pass for no file
from pathlib import Path
from typing import Any

from llmcli.errors import IntegrityError, NotFoundError, UnsupportedModelError, shown_path

MAX_FILE_NBYTES = 64 * 2**20
MAX_ID = 2**24
_DOWNLOAD = "Get the model again."
_OTHER = "Choose a model with a byte-level BPE tokenizer, such as gpt2."

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# A Digits step cuts before GPT-2's pattern looks, so that a digit ends the text for its lookahead.
DIGITS_LOOKAHEAD = r"\s+(?![^\s\p{N}])"
DIGITS_SPLIT = (
    r"\p{N}%s|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|" + DIGITS_LOOKAHEAD + r"|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# What a file's split pattern may be put together from, and the characters that each surely takes:
# Space, Lower and Upper letters, Marks, Numbers, Others. What a pattern leaves out is lost in
# tiktoken, and a match of nothing or boundless backtracking is a panic: hence this closed list.
KNOWN_ALTERNATIVES = {
    **dict.fromkeys(("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _ENDING), ""),
    **dict.fromkeys((r"'(?:[sdmt]|ll|ve|re)", r"'(?i:[sdmt]|ll|ve|re)"), ""),
    **dict.fromkeys((r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+"), "LU"),
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+": "LUM",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}?": "LM",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}?": "UM",
    **dict.fromkeys((r"\p{N}", r"\p{N}+", r" ?\p{N}+", r"\p{N}{1,3}"), "N"),
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*": "O",
    r" ?[^\s\p{L}\p{N}]+": "MO",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*": "MO",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*": "MO",
    **dict.fromkeys((r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)"), ""),
    r"\s+": "S",
}
_ALTERNATIVE = re.compile(r"(?:\\.|\[(?:\\.|[^\]\\])*\]|\((?:\[[^\]]*\]|[^()\[])*\)|[^|])+")


def alternatives(regex: str) -> list[str]:
    """What stands between the outermost bars of a split pattern."""
    return _ALTERNATIVE.findall(regex)


def byte_alphabet() -> str:
    """The 256 printable characters that stand for the bytes 0..255 in GPT-2's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = count(0x100)
    return "".join(chr(b if b in printable else next(shifted)) for b in range(256))


ALPHABET = byte_alphabet()
BYTE_OF = {char: byte for byte, char in enumerate(ALPHABET)}


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before BPE; a `special` one only where it is asked for."""

    content: str
    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass
class Recipe:
    """What a tokenizer's files say, checked: all that is needed to build a `Tokenizer`."""

    where: Path
    vocab: dict[str, int]
    lefts: list[str]
    rights: list[str]
    pattern: str = GPT2_SPLIT
    added: tuple[AddedToken, ...] = ()
    prefix_space: bool = False
    normal_forms: tuple[str, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    ignore_merges: bool = False
    eos: str | None = None


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a model folder. Raises NotFoundError, IntegrityError, UnsupportedModelError."""
    path = folder / "tokenizer.json"
    recipe = _from_tokenizer_json(path) if lexists(path) else _from_vocab_and_merges(folder)
    bytes_of_utf8 = {*range(0xC0), *range(0xC2, 0xF5)}  # no str ever needs the other 13
    missing = sorted(bytes_of_utf8 - {BYTE_OF[char] for char in BYTE_OF.keys() & recipe.vocab})
    if missing:
        raise unsupported(recipe.where, f"a vocabulary without the byte 0x{missing[0]:02X}")
    _check_ids(recipe)
    return recipe


def _from_tokenizer_json(path: Path) -> Recipe:
    data = _want(_read_json(path), dict, path, "the file")
    model = _want(data.get("model"), dict, path, "`model`")
    if model.get("type", "BPE") != "BPE":
        raise unsupported(path, f"model.type {model['type']!r:.80}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise unsupported(path, f"model.{key} {model[key]!r}")
    decoder = data.get("decoder")
    if decoder is not None and _kind(decoder, path, "decoder") != "ByteLevel":
        raise unsupported(path, f"decoder {decoder.get('type')!r:.80}")
    vocab = _want(model.get("vocab"), dict, path, "`model.vocab`")
    lefts, rights = _merges(_want(model.get("merges"), list, path, "`model.merges`"), path)
    pattern, prefix_space = _split_pattern(data.get("pre_tokenizer"), path)
    entries = _want(data.get("added_tokens", []), list, path, "`added_tokens`")
    prefix, suffix = _template(data.get("post_processor"), path)
    return Recipe(
        where=path,
        vocab=vocab,
        lefts=lefts,
        rights=rights,
        pattern=pattern,
        added=tuple(_added_token(entry, path) for entry in entries),
        prefix_space=prefix_space,
        normal_forms=_normal_forms(data.get("normalizer"), path),
        prefix_ids=prefix,
        suffix_ids=suffix,
        ignore_merges=bool(model.get("ignore_merges")),
        eos=_name(_object(path.parent / "tokenizer_config.json").get("eos_token")),
    )


def _from_vocab_and_merges(folder: Path) -> Recipe:
    """GPT-2's own pair of files; such a folder does not say how text is split: GPT-2's way."""
    names = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
    found = [[folder / name for name in pair] for pair in names if lexists(folder / pair[0])]
    if not found:
        raise NotFoundError(
            f"There is no tokenizer.json or vocab.json in {shown_path(folder)}.", _DOWNLOAD
        )
    path, merges_path = found[0]
    config = _object(folder / "tokenizer_config.json")
    kind = config.get("tokenizer_class", "GPT2Tokenizer")
    if kind not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise unsupported(folder, f"tokenizer_class {kind!r:.80} without a tokenizer.json")
    vocab = _want(_read_json(path), dict, path, "the file")
    if "a</w>" in vocab:
        raise unsupported(path, "end_of_word_suffix '</w>'")
    lines = _read_text(merges_path).split("\n")
    merges = [line.rstrip("\r") for line in lines if not line.startswith("#version")]
    lefts, rights = _merges([line for line in merges if line], merges_path)
    entries = _want(config.get("added_tokens_decoder", {}), dict, folder, "added_tokens_decoder")
    added = {}
    for id, entry in entries.items():
        flags = _want(entry, dict, folder, "added_tokens_decoder")
        number = int(id) if id.isdecimal() and len(id) < 10 else id
        token = _added_token(flags | {"id": number}, folder)
        added[token.content] = token
    special = {"<|endoftext|>", *_special_names(folder)} - {""}
    ids = {name: vocab[name] for name in special & vocab.keys()}
    ids |= _object(folder / "added_tokens.json")  # of the days before added_tokens_decoder
    for name in sorted(ids.keys() - added.keys()):
        flags = {"special": name in special, "normalized": name not in special}
        added[name] = _added_token({"content": name, "id": ids[name], **flags}, folder)
    eos, bos = _name(config.get("eos_token")), _name(config.get("bos_token"))
    bos_id = added[bos].id if bos in added else vocab.get(bos)
    return Recipe(
        where=path,
        vocab=vocab,
        lefts=lefts,
        rights=rights,
        added=tuple(added.values()),
        prefix_space=config.get("add_prefix_space") is True,
        prefix_ids=(bos_id,) if config.get("add_bos_token") is True and bos_id is not None else (),
        eos=eos,
    )


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, an empty one where it is not there."""
    return _want(_read_json(path), dict, path, "the file") if lexists(path) else {}


def _special_names(folder: Path) -> set[str]:
    """What special_tokens_map.json names, in its lists too."""
    values = _object(folder / "special_tokens_map.json").values()
    return {_name(token) for one in values for token in (one if isinstance(one, list) else [one])}


def _name(token: Any) -> str:
    """A special token's text, however a config spells it; "" for none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            raise NotFoundError(f"{shown_path(path)} is not there, or no file.", _DOWNLOAD)
        with path.open("rb") as file:
            data = file.read(MAX_FILE_NBYTES + 1)
    except OSError as error:
        raise NotFoundError(
            f"{shown_path(path)} cannot be read: {error.strerror}.", _DOWNLOAD
        ) from None
    if len(data) > MAX_FILE_NBYTES:
        raise damaged(path, f"more than {MAX_FILE_NBYTES // 2**20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise damaged(path, f"not UTF-8 at byte {error.start}") from None


def _read_json(path: Path) -> Any:
    text = _read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise damaged(path, f"no JSON ({error})") from None
    except RecursionError:
        raise damaged(path, "no tokenizer's JSON (nested too deeply)") from None


def _want(value: Any, kind: type, where: Path, what: str) -> Any:
    if type(value) is not kind:
        raise damaged(where, f"{what} is not {kind.__name__} but {type(value).__name__}")
    return value


def _kind(step: Any, where: Path, what: str) -> str:
    return str(_want(step, dict, where, f"`{what}`").get("type"))


def _merges(merges: list[Any], where: Path) -> tuple[list[str], list[str]]:
    """The left and the right halves, from "a b" or from ["a", "b"]."""
    flat: list[Any] = [None]
    kinds = set(map(type, merges))
    if kinds <= {str} and set(map(str.count, merges, repeat(" "))) <= {1}:
        flat = " ".join(merges).split(" ") if merges else []  # many times faster than one by one
    elif kinds == {list} and set(map(len, merges)) == {2}:
        flat = [token for merge in merges for token in merge]
    if not set(map(type, flat)) <= {str}:
        raise damaged(where, "a merge is not a pair of tokens")
    return flat[::2], flat[1::2]


def _split_pattern(step: Any, where: Path) -> tuple[str, bool]:
    """The regex that cuts text into pieces, and whether a space goes before the text."""
    steps = [step]
    if isinstance(step, dict) and step.get("type") == "Sequence":
        steps = _want(step.get("pretokenizers"), list, where, "`pre_tokenizer.pretokenizers`")
    kinds = [_kind(each, where, "pre_tokenizer") for each in steps]
    last = steps[-1] if steps else {}
    regex, space = last.get("use_regex", True), last.get("add_prefix_space", True)
    if not {type(regex), type(space)} <= {bool}:
        raise damaged(where, "use_regex or add_prefix_space is not a bool")
    if kinds == ["ByteLevel"]:
        return (GPT2_SPLIT if regex else r"[\s\S]+"), space
    if kinds == ["Digits", "ByteLevel"] and regex and not space:
        return DIGITS_SPLIT % ("" if steps[0].get("individual_digits") else "+"), False
    if kinds == ["Split", "ByteLevel"] and not regex and not space:
        return _split_regex(steps[0], where), False
    raise unsupported(where, f"pre_tokenizer {' + '.join(kinds)!r:.80}")


def _split_regex(step: dict[str, Any], where: Path) -> str:
    behavior = step.get("behavior"), step.get("invert", False)
    if behavior not in (("Isolated", False), ("Removed", True), ("Isolated", True)):
        raise unsupported(where, f"pre_tokenizer Split with behavior, invert = {behavior}")
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str):
        raise unsupported(where, f"pre_tokenizer Split with pattern {pattern!r:.80}")
    parts = alternatives(regex)
    odd = [each for each in parts if each not in KNOWN_ALTERNATIVES]
    if odd or "|".join(parts) != regex:
        raise unsupported(where, f"pre_tokenizer Split with the regex {(odd or regex)!r:.80}")
    if not set("SLUMNO") <= set("".join(KNOWN_ALTERNATIVES[each] for each in parts)):
        raise unsupported(where, f"pre_tokenizer Split that skips characters, {regex!r:.80}")
    return regex


def _normal_forms(step: Any, where: Path) -> tuple[str, ...]:
    if step is None:
        return ()
    kind = _kind(step, where, "normalizer")
    if kind == "Sequence":
        steps = _want(step.get("normalizers"), list, where, "`normalizer.normalizers`")
        return tuple(form for each in steps for form in _normal_forms(each, where))
    if kind not in ("NFC", "NFD", "NFKC", "NFKD"):
        raise unsupported(where, f"normalizer {kind!r:.80}")
    return (kind,)


def _template(step: Any, where: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that go before and after a text."""
    if step is None:
        return (), ()
    kind = _kind(step, where, "post_processor")
    if kind == "ByteLevel":
        return (), ()
    before: list[int] = []
    after: list[int] = []
    try:
        if kind == "Sequence":
            for each in step["processors"]:
                first, last = _template(each, where)
                before, after = [*first, *before], [*after, *last]
        elif kind in ("RobertaProcessing", "BertProcessing"):
            before, after = [step["cls"][1]], [step["sep"][1]]
        elif kind == "TemplateProcessing":
            texts = [place for place, item in enumerate(step["single"]) if "Sequence" in item]
            if len(texts) != 1:
                raise unsupported(where, f"post_processor with {len(texts)} texts in `single`")
            for place, item in enumerate(step["single"]):
                if place not in texts:
                    ids = step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
                    (before if place < texts[0] else after).extend(ids)
        else:
            raise unsupported(where, f"post_processor {kind!r:.80}")
    except (KeyError, TypeError, IndexError):
        raise damaged(where, f"the post_processor {kind!r:.80} lacks a key") from None
    return tuple(before), tuple(after)


def _added_token(entry: Any, where: Path) -> AddedToken:
    entry = _want(entry, dict, where, "an added token")
    content, id = entry.get("content"), entry.get("id")
    if type(id) is not int or not 0 <= id < MAX_ID:
        raise damaged(where, f"the added token {content!r:.80} has the id {id!r:.80}")
    if not isinstance(content, str) or not content or re.search(r"[\ud800-\udfff]", content):
        raise damaged(where, f"the added token {id} has the text {content!r:.80}")
    names = ("special", "lstrip", "rstrip", "normalized")
    special, lstrip, rstrip, normalized = (entry.get(name) is True for name in names)
    if entry.get("single_word") or ((lstrip or rstrip) and not special):
        raise unsupported(where, f"single_word, lstrip or rstrip in added token {content!r:.80}")
    return AddedToken(content, id, special, lstrip, rstrip, normalized)


def _check_ids(recipe: Recipe) -> None:
    """Every id is in range and belongs to one token; template and merges refer to known ones."""
    where, vocab = recipe.where, recipe.vocab
    used = set(vocab.values()) if set(map(type, vocab.values())) == {int} else {-1}
    if min(used) < 0 or max(used) >= MAX_ID:
        raise damaged(where, f"a token id is not a whole number below {MAX_ID}")
    if len(used) < len(vocab):
        raise damaged(where, "two tokens share one id")
    seen: dict[str, int] = {}
    for token in recipe.added:
        known = vocab.get(token.content)
        clash = token.id in used if known is None else token.id != known
        if clash or token.content in seen:
            raise damaged(where, f"the added token {token.content!r:.80} shares id or text")
        seen[token.content] = token.id
        used.add(token.id)
    template = recipe.prefix_ids + recipe.suffix_ids
    if not all(type(id) is int and id in used for id in template):
        raise damaged(where, "the post_processor refers to an unknown token id")
    for tokens in (recipe.lefts, recipe.rights, map(add, recipe.lefts, recipe.rights)):
        for token in filterfalse(vocab.__contains__, tokens):
            raise damaged(where, f"a merge refers to the unknown token {token!r:.80}")


def tokenizer_sha256(folder: Path) -> dict[str, str]:
    """The hash of each of the folder's tokenizer files that was read."""
    names = ["tokenizer.json"] if (folder / "tokenizer.json").exists() else [
        "vocab.json", "encoder.json", "merges.txt", "vocab.bpe", "added_tokens.json"
    ]  # fmt: skip
    return {name: _sha256(folder / name) for name in names if (folder / name).is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(where: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{shown_path(where)} is damaged: {what}.", _DOWNLOAD)


def unsupported(where: Path, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{shown_path(where)} holds what llmcli cannot match: {what}.", _OTHER
    )
