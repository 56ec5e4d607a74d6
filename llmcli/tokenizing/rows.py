"""A text's tokens with their places in it: what tables, pictures and JSON are made from."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, islice

from llmcli.tokenizer import normalize
from llmcli.tokenizing.bulk import BLOCK, Job, parts
from llmcli.tokenizing.source import Source


@dataclass(frozen=True, slots=True)
class Row:
    """One token; a character that it holds a part of counts as its own."""

    index: int
    id: int
    bytes: bytes
    byte_start: int
    byte_end: int
    char_start: int
    char_end: int
    special: bool  # whether it stands for a special token, rather than for text


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text's tokens, the template's too where `special`: numbers, and a row where one is asked.

    Offsets count in `decoded`: the text as the tokens spell it. It is the text itself unless a
    normal form, or a space before the text, makes it another.
    """

    text: str
    decoded: str
    ids: array[int]
    before: int  # how many ids of the template come first
    byte_starts: array[int]  # of the text's own tokens in what they spell, and where the last ends
    char_starts: array[int]
    shift: int  # 1 where a tokenizer sets a space before the text, else 0
    special_ids: frozenset[int]
    bytes_of: dict[int, bytes]

    @property
    def exact(self) -> bool:
        """Whether the tokens spell the very text."""
        return self.text == self.decoded

    @property
    def rows(self) -> Iterator[Row]:
        return map(self.row, range(len(self.ids)))

    def ends(self) -> array[int]:
        """Where each row ends, in bytes."""
        last = self._place(self.byte_starts[-1])
        after = len(self.ids) - self.before - len(self.byte_starts) + 1
        own = map(self._place, islice(self.byte_starts, 1, None))
        return array("q", chain([0] * self.before, own, [last] * after))

    def row(self, index: int) -> Row:
        """The token at `index`; a template's tokens have no extent in the text."""
        id, place = self.ids[index], index - self.before
        data = self.bytes_of[id]
        inside = 0 <= place < len(self.byte_starts) - 1
        start = min(max(place, 0), len(self.byte_starts) - 1)
        end = start + inside
        continues = inside and _continues(data)
        return Row(
            index, id, data,
            self._place(self.byte_starts[start]), self._place(self.byte_starts[end]),
            self._place(self.char_starts[start] - continues), self._place(self.char_starts[end]),
            id in self.special_ids or not inside,
        )  # fmt: skip

    def _place(self, spelled: int) -> int:
        """A place in what the tokens spell, as one in `decoded`."""
        return max(spelled - self.shift, 0)

    def whole(self) -> bytes:
        """For each row, and for the end: 1 where no character goes on from the row before."""
        own = self.ids[self.before : self.before + len(self.byte_starts) - 1]
        starts = {id: not _continues(self.bytes_of[id]) for id in set(own)}
        starts |= dict.fromkeys(starts.keys() & self.special_ids, True)
        after = len(self.ids) - self.before - len(own) + 1
        whole = b"\1" * self.before + bytes(map(starts.__getitem__, own)) + b"\1" * after
        return b"\1" + whole[1:]


def tokens(source: Source, text: str, special: bool = False) -> Tokens:
    """The tokens of `text`, with the template's around them where `special`. Raises UsageError."""
    tokenizer = source.tokenizer
    before, after = (array("I", ids) for ids in tokenizer.around(special))
    ids = array("I")
    for part in ids_in_parts(source, text, special):
        ids.extend(part)
    used = {id: tokenizer.bytes_of[id] for id in set(ids)}
    n_bytes = {id: len(data) for id, data in used.items()}
    n_chars = {id: sum(byte & 0xC0 != 0x80 for byte in data) for id, data in used.items()}
    spelled = _spelled(source, ids)
    shift = int(spelled == b" " + text.encode())  # a tokenizer may set a space before the text
    return Tokens(
        text=text,
        decoded=spelled[shift:].decode("utf-8", "replace"),
        ids=before + ids + after,
        before=len(before),
        byte_starts=array("q", accumulate(map(n_bytes.__getitem__, ids), initial=0)),
        char_starts=array("q", accumulate(map(n_chars.__getitem__, ids), initial=0)),
        shift=shift,
        special_ids=frozenset(tokenizer.special_ids.values() if special else ()),
        bytes_of=tokenizer.bytes_of,
    )


def ids_in_parts(source: Source, text: str, special: bool) -> Iterator[list[int]]:
    """The ids of `text` without the template's, those of a large text some at a time."""
    if len(text) <= BLOCK:
        yield source.tokenizer.encode(text, special=special)
        return
    data = memoryview(text.encode())
    blocks = (bytes(data[start : start + BLOCK]) for start in range(0, len(data), BLOCK))
    for part in parts(blocks, Job(source, special), longest=len(data)):
        yield source.tokenizer.encode(part.data.decode(), special=special)


def truncated(source: Source, text: str, limit: int, keep: str, special: bool) -> str:
    """The first (`keep` is "left") or last characters of `text`, of at most `limit` tokens.

    The cut is where it is between tokens, also where a normal form spells `text` otherwise. A part
    of a character at the cut is left out; so is what would be more tokens on its own.
    """
    room = limit - sum(map(len, source.tokenizer.around(special)))
    kept, n_tokens = array("I"), 0
    for ids in ids_in_parts(source, text, special):
        n_tokens += len(ids)
        kept.extend(ids)
        if keep == "left" and n_tokens > room:
            break
        del kept[: max(len(kept) - room, 0) if keep == "right" else 0]
    if n_tokens <= room:
        return text
    del kept[max(room, 0) :]
    spelled = _spelled(source, kept)
    ends = array("q", accumulate((len(source.tokenizer.bytes_of[id]) for id in kept), initial=0))
    # a tokenizer may set a space before the text
    shift = int(source.recipe.prefix_space and spelled[:1] == b" " and text[:1] != " ")

    def end(n_chars: int) -> str:
        return text[:n_chars] if keep == "left" else text[len(text) - n_chars :]

    def n_spelled(n_chars: int) -> int:
        return len(normalize(end(n_chars), source.recipe.normal_forms))

    most = min(len(text), 4 * len(spelled))  # four characters at most are composed into one
    for n in range(len(kept), 0, -1):
        part = spelled[shift : ends[n]] if keep == "left" else spelled[ends[len(kept) - n] :]
        n_chars = len(part.decode("utf-8", "ignore"))
        whole = end(bisect_right(range(most + 1), n_chars, key=n_spelled) - 1)
        if sum(map(len, ids_in_parts(source, whole, special))) <= room:
            return whole
    return ""


def _spelled(source: Source, ids: array[int]) -> bytes:
    """The bytes of `ids`, joined in steps: `bytes.join` takes 80 bytes for each of its parts."""
    starts = range(0, len(ids), BLOCK)
    return b"".join(source.tokenizer.decode_bytes(ids[at : at + BLOCK]) for at in starts)


def _continues(token: bytes) -> bool:
    """Whether a token starts within a character."""
    return bool(token) and token[0] & 0xC0 == 0x80


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens in a row that hold whole characters: rows from `start` to before `end`."""

    start: int
    end: int


def chunks(found: Tokens, size: int, overlap: int) -> list[Chunk] | int:
    """Chunks of at most `size` tokens, each starting and ending later than the one before.

    Borders stay between characters: where one would be cut, a chunk is shorter, and the overlap a
    little more or less. Where a character has more than `size` tokens: its byte offset.
    """
    whole = found.whole()  # may a chunk start or end before this row?
    out: list[Chunk] = []
    start = end = 0
    while end < len(found.ids):
        last, start = end, max(end - overlap, out[-1].start + 1 if out else 0)
        while not whole[start]:
            start -= 1
        while True:
            end = min(start + size, len(found.ids))
            while not whole[end]:
                end -= 1
            if end > last:
                break
            if start >= last:
                return found.row(last).byte_start
            start += 1
            while not whole[start]:
                start += 1
        out.append(Chunk(start, end))
    return out
