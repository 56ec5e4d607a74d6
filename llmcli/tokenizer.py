"""Text <-> ids: tiktoken, built from a model folder's own files; no model, no network, no torch.

Byte-level BPE (Sennrich et al., arXiv 1508.07909, over bytes as in GPT-2) out of `tokenizer.json`, or
`vocab.json` + `merges.txt`. The ids equal those of the `tokenizers` library with
`encode_special_tokens=True, add_special_tokens=False`. tiktoken joins any two pieces whose bytes it knows, the
library only listed merges; they agree where every token that tiktoken gets is what BPE makes of its own bytes
(`live_merges` has the argument), so only such tokens are handed over. One known difference: normal forms
come from Python's `unicodedata`, which knows combining marks newer than the library's own Unicode tables.

`truncation`, `padding` and the pair template of a `tokenizer.json` are ignored on purpose.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from operator import add
from pathlib import Path
from typing import Any

from llmcli.errors import IntegrityError, NotFoundError, UnsupportedModelError, UsageError

MAX_FILE_NBYTES = 64 * 2**20
MAX_ID = 2**24
_RUN = 250_000  # tiktoken's regex stack overflows, and panics, at a run of 10**6 white spaces
_SPACES = (  # Unicode White_Space; Python's own strip() would take U+001C..U+001F as well
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_DOWNLOAD = "Get the model again: llmcli download MODEL --force."
_OTHER = "llmcli reads byte-level BPE tokenizers (GPT-2, Llama 3, Qwen, SmolLM2, ...); choose such a model."

GPT2_SPLIT = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
# A `Digits` step cuts the text before GPT-2's pattern sees it, so that a digit ends the text for the lookahead.
DIGITS_SPLIT = (
    r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)
# What a split pattern may be made of. None of these can match nothing (tiktoken panics) or backtrack without
# bound, and both regex engines read them alike; the order and the choice are the file's.
_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
KNOWN_ALTERNATIVES = frozenset(
    [
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'(?:[sdmt]|ll|ve|re)"),
        *(_SUFFIX, r"'(?i:[sdmt]|ll|ve|re)", r" ?\p{L}+", r" ?\p{N}+", r"\p{N}", r"\p{N}+"),
        *(r"\p{N}{1,3}", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
        *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
        *(r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
        rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS[0]}*{_LETTERS[1]}+{_SUFFIX}?",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS[0]}+{_LETTERS[1]}*{_SUFFIX}?",
    ]
)
_ALTERNATIVE = re.compile(r"(?:\\.|\[(?:\\.|[^\]\\])*\]|\((?:\[[^\]]*\]|[^()\[])*\)|[^|])+")


def byte_alphabet() -> str:
    """The 256 printable characters that stand for the bytes 0..255 in byte-level vocabularies (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = count(0x100)
    return "".join(chr(b if b in printable else next(shifted)) for b in range(256))


ALPHABET = byte_alphabet()


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before BPE; a `special` one only where it is asked for."""

    content: str
    id: int
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Recipe:
    """What a tokenizer file says, checked: all that is needed to build a `Tokenizer`."""

    vocab: dict[str, int]
    lefts: list[str]
    rights: list[str]
    pattern: str
    added: list[AddedToken]
    prefix_space: bool = False
    normal_forms: tuple[str, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    ignore_merges: bool = False
    eos: str | None = None
