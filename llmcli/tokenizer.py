"""Text <-> ids: tiktoken, built from a model folder's own files; no model, no network, no torch.

The ids equal those of the `tokenizers` library with `encode_special_tokens=True` and
`add_special_tokens=False`. One known difference: normal forms (NFC, ...) come from Python's
`unicodedata`, which knows combining marks that are newer than that library's Unicode tables.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, count, pairwise
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.errors import UsageError
from llmcli.tokenizer_file import (
    ALPHABET,
    BYTE_OF,
    MAX_ID,
    AddedToken,
    Recipe,
    damaged,
    read_recipe,
    unsupported,
)

if TYPE_CHECKING:
    import tiktoken

_MAX_RUNS_NBYTES = 64 << 20
_RUN = 750_000  # tiktoken's regex stack overflows, and panics, at a run of 10**6 white spaces
_SPACES = (  # Unicode White_Space; Python's own strip() would take U+001C..U+001F as well
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_WHITE = re.compile(f"[{_SPACES}]+")
# Merge lists (the SHA-256 of the left halves, then the right ones) all of whose tokens are known to
# be live: looking again takes 80 ms, as long as all the rest of loading GPT-2's tokenizer.
PROVEN = frozenset(["339cf6b7c7c4430189e5e6f39b96296c363b684a1f77bc8c529c53d2a0bcbe62"])


class Tokenizer:
    """Text <-> ids for one model folder: `Tokenizer.from_folder(folder).encode("hi")` -> [5303]."""

    def __init__(self, recipe: Recipe) -> None:
        self.prefix_ids = recipe.prefix_ids  # what `generate` prepends
        self.suffix_ids = recipe.suffix_ids
        self._prefix_space = recipe.prefix_space
        self._normal_forms = recipe.normal_forms
        self._ranks, self.id_of_rank, self.bytes_of = vocabulary(recipe)
        self._pattern = recipe.pattern
        self._encoding = _encoding(recipe.pattern, self._ranks)
        self._added = {token.content: token for token in recipe.added}
        self._normalized = {self._normalize(t.content): t for t in recipe.added if t.normalized}
        raw = {token.content: token for token in recipe.added if not token.normalized}
        self._passes = [(_any_of(found), found) for found in (raw, self._normalized)]
        self._plain_only = all(token.special for token in recipe.added)
        self.special_ids = {token.content: token.id for token in recipe.added if token.special}
        self.vocab_size = max(self.bytes_of) + 1
        names = [recipe.eos] if recipe.eos else ["<|endoftext|>", "</s>"]
        self.eot_id = next((id for id in map(self.id_of, names) if id is not None), None)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """A folder's tokenizer. Raises NotFoundError, IntegrityError, UnsupportedModelError."""
        return cls(read_recipe(Path(folder)))

    def __len__(self) -> int:
        return len(self.bytes_of)

    def around(self, special: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The template's ids before a text and after it; none unless `special`."""
        return (self.prefix_ids, self.suffix_ids) if special else ((), ())

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`; special tokens in it are plain text unless `special`."""
        if self._plain_only and not special and not self._normal_forms:
            return self.encode_ordinary(text)
        ids: list[int] = []
        for section in self.sections(text, special=special):
            ids += [section] if isinstance(section, int) else self._bpe(section)
        return ids

    def sections(self, text: str, *, special: bool = False) -> Iterator[str | int]:
        """What BPE is given, and the ids of the added tokens between, in the order of the text."""
        _refuse_surrogates(text)
        raw, normalized = self._passes
        for outer in _cut(text, *raw, special):
            if isinstance(outer, int):
                yield outer
                continue
            for inner in _cut(self._normalize(outer), *normalized, special):
                yield inner if isinstance(inner, int) else self._spaced(inner)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text` by BPE alone: no added token is found, nothing is normalized."""
        _refuse_surrogates(text)
        return self._bpe(self._spaced(text))

    def _spaced(self, text: str) -> str:
        needs_space = self._prefix_space and text and not text.startswith(" ")
        return " " + text if needs_space else text

    def _bpe(self, text: str) -> list[int]:
        if len(text) >= _RUN:
            _refuse_long_space(text)
        ids = self._encoding.encode_ordinary(text)
        return ids if self.id_of_rank is None else [self.id_of_rank[rank] for rank in ids]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of all `ids`, joined; they need not be valid UTF-8. Raises UsageError."""
        try:
            return b"".join(map(self.bytes_of.__getitem__, ids))
        except KeyError as error:
            raise UsageError(
                f"There is no token with id {error.args[0]!r}.",
                f"Ids go from 0 to {self.vocab_size - 1}, and {len(self)} of them are in use.",
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; what is not valid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, perhaps a part of a character."""
        return self.decode_bytes([id])

    def id_of(self, text: str | bytes) -> int | None:
        """The id of the one token that is exactly `text`, or these bytes; or None."""
        if isinstance(text, str) and text in self._added:
            return self._added[text].id
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        try:
            rank = self._encoding.encode_single_token(data)
        except KeyError:
            return None
        return rank if self.id_of_rank is None else self.id_of_rank[rank]

    def _normalize(self, text: str) -> str:
        return normalize(text, self._normal_forms)

    def marked_encoding(self, pattern: str, marks: Mapping[str, int]) -> tiktoken.Encoding:
        """The same BPE after another split `pattern`; `marks` cut the text and give their own ids.

        What it gives are ranks: see `id_of_rank`.
        """
        return _encoding(pattern, self._ranks, marks)

    def pieces(self, section: str) -> list[bytes]:
        """What the split pattern makes of a section: BPE never joins across their borders.

        A piece that is a token is taken whole. So with every run of the section's tokens for a
        vocabulary, each piece is one token. Raises UsageError where those runs are too many.
        """
        tokens = [self.bytes_of[id] for id in self._bpe(section)]
        if len(tokens) ** 2 * len(section.encode()) // 6 > _MAX_RUNS_NBYTES:
            raise UsageError(
                f"A stretch of {len(tokens)} tokens cannot be cut: it has too many runs.",
                "Give a shorter text.",
            )
        starts = range(len(tokens))
        runs = {
            b"".join(tokens[start:end])
            for start in starts
            for end in range(start + 1, len(tokens) + 1)
        }
        single = [bytes([byte]) for byte in range(256)]
        spelled = [*single, *sorted(runs.difference(single))]
        encoding = _encoding(self._pattern, {run: rank for rank, run in enumerate(spelled)})
        return [spelled[rank] for rank in encoding.encode_ordinary(section)]


def _encoding(
    pattern: str, ranks: dict[bytes, int], marks: Mapping[str, int] | None = None
) -> tiktoken.Encoding:
    import tiktoken  # 6 ms: paid by whoever tokenizes, not by whoever imports this module

    return tiktoken.Encoding(
        "llmcli", pat_str=pattern, mergeable_ranks=ranks, special_tokens=dict(marks or {})
    )


def normalize(text: str, forms: Sequence[str]) -> str:
    """`text` in each of the normal forms in turn."""
    for form in forms:
        text = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    return text


def _any_of(tokens: dict[str, AddedToken]) -> re.Pattern[str] | None:
    """Finds the leftmost token, the longest first."""
    if not tokens:
        return None
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def _cut(
    text: str, pattern: re.Pattern[str] | None, tokens: dict[str, AddedToken], special: bool
) -> Iterator[str | int]:
    """Text and ids in turn; a special token not asked for stays text, yet hides its overlaps."""
    done = 0
    for match in pattern.finditer(text) if pattern else ():
        token = tokens[match[0]]
        if token.special and not special:
            continue
        start, end = max(match.start(), done), match.end()
        if token.lstrip:
            start = done + len(text[done:start].rstrip(_SPACES))
        while token.rstrip and end < len(text) and text[end] in _SPACES:
            end += 1
        if start > done:
            yield text[done:start]
        yield token.id
        done = max(end, done)
    if done < len(text):
        yield text[done:]


def _refuse_surrogates(text: str) -> None:
    """tiktoken would replace them in silence."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The text holds a lone surrogate, U+{ord(text[error.start]):04X}, "
            f"at character {error.start}.",
            "Give text that is valid Unicode.",
        ) from None


def _refuse_long_space(text: str) -> None:
    """Refuse a run of `_RUN` white spaces or more, wherever it lies; half of one tells quickly."""
    half = _RUN // 2
    blocks = (text[start : start + half] for start in range(0, len(text) - half + 1, half))
    if any(map(str.isspace, blocks)) and max(map(len, _WHITE.findall(text)), default=0) >= _RUN:
        raise UsageError(
            f"The text holds {_RUN} or more white spaces in a row.",
            "Shorten the run: the tokenizer's regular expression cannot cross it.",
        )


def vocabulary(recipe: Recipe) -> tuple[dict[bytes, int], list[int] | None, dict[int, bytes]]:
    """tiktoken's ranks; the id of each rank, None where they are the same; the bytes of each id."""
    where, vocab = recipe.where, recipe.vocab
    live = live_merges(where, recipe.lefts, recipe.rights)
    for char in BYTE_OF.keys() - vocab.keys():
        del live[char]
    n_bytes = len(BYTE_OF.keys() & vocab.keys())
    ids = [vocab[token] for token in live]
    in_bytes = to_bytes(list(live))
    bytes_of = dict(zip(ids, in_bytes, strict=True))
    ordered = ids[n_bytes:] == sorted(ids[n_bytes:])  # then an id is as good a rank as any
    ranks = dict(zip(in_bytes, ids if ordered else count(), strict=False))
    bytes_of.update((token.id, token.content.encode()) for token in recipe.added)
    added = {token.content for token in recipe.added}
    rest = [token for token in vocab if token not in live]
    if recipe.ignore_merges and sum(map(len, rest)) > 10_000:
        raise unsupported(where, "model.ignore_merges with many tokens that no merge builds")
    for token in rest:  # the library never builds these by merging, so tiktoken must not either
        if not set(token) <= BYTE_OF.keys():
            if token not in added:
                raise unsupported(where, f"vocabulary entry {token!r} that is not byte-level")
            continue
        spelled = bytes(BYTE_OF[char] for char in token)
        if token not in added:
            bytes_of[vocab[token]] = spelled
        if recipe.ignore_merges and spelled:  # a whole piece is looked up first, as tiktoken does
            if len(_parts(token, live)) == 2:
                raise unsupported(where, f"model.ignore_merges with the token {token!r}")
            ranks[spelled] = vocab[token] if ordered else len(ids)
            ids.append(vocab[token])
    return ranks, None if ordered else ids, bytes_of


def to_bytes(tokens: list[str]) -> list[bytes]:
    """The bytes that byte-level tokens stand for, in one pass: 50,000 tokens take 10 ms."""
    table = codecs.charmap_build("\0" + ALPHABET[1:])  # fast only for a table that starts with NUL
    joined = codecs.charmap_encode("".join(tokens).replace(ALPHABET[0], "\0"), "strict", table)[0]
    ends = accumulate(map(len, tokens), initial=0)
    return [joined[start:end] for start, end in pairwise(ends)]


def _parts(token: str, live: dict[str, int]) -> list[str]:
    """BPE by the book: join the pair of the lowest rank, the leftmost first, until none is left."""
    parts = list(token)
    while True:
        ranks = [live.get(left + right, MAX_ID) for left, right in pairwise(parts)]
        if not ranks or min(ranks) == MAX_ID:
            return parts
        at = ranks.index(min(ranks))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def merges_sha256(lefts: list[str], rights: list[str]) -> str:
    """Names a merge list, for `PROVEN`; one with a space inside a token has no name."""
    joined = " ".join([*lefts, *rights])
    if joined.count(" ") != len(lefts) + len(rights) - 1:
        return ""
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()


def live_merges(where: Path, lefts: list[str], rights: list[str]) -> dict[str, int]:
    """Every token that BPE builds out of its own bytes -> its rank (a byte's, or 256 + merge).

    Merges never cross the border of a token that they end up with, so inside it they run as they
    would on its bytes alone: a token that is not built alone is built nowhere, and the last pair
    of one that is, is the same everywhere. tiktoken joins every pair that has the bytes of such a
    token, the `tokenizers` library every pair on its list: the same pairs, therefore.
    """
    rank = dict(zip(ALPHABET, range(256), strict=True))
    if merges_sha256(lefts, rights) in PROVEN:
        rank.update(zip(map(add, lefts, rights), count(256), strict=False))
        return rank
    left, right = list(range(256)), list(range(256))
    made: dict[int, int] = {}  # left << 32 | right -> rank
    late: list[tuple[str, str]] = []
    get, find = rank.get, made.get
    for i, (a, b) in enumerate(zip(lefts, rights, strict=True), 256):
        x, y = get(a, -1), get(b, -1)
        left.append(x)
        right.append(y)
        if x < 0 or y < 0:
            late.append((a, b))
            continue
        token = a + b
        if token in rank:
            continue
        pair = x << 32 | y
        while x > 255 or y > 255:  # undo the younger of the two; did its border pair join before?
            if x > y:
                limit, x = x, right[x]
            else:
                limit, y = y + 1, left[y]
            if find(x << 32 | y, limit) < limit:
                break
        else:
            rank[token] = made[pair] = i
    for a, b in late:
        if a in rank and b in rank and a + b not in rank:
            raise damaged(where, f"the merge {a!r} {b!r} stands before the merges it builds on")
    return rank
