"""A text's tokens with their places in it: what tables, pictures and JSON are made from."""

from __future__ import annotations

from dataclasses import dataclass

from llmcli.tokenizer import Tokenizer


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
    """A text's rows, the template's tokens too where `special`.

    Offsets count in `decoded`: the text as the tokens spell it. It is the text itself unless a
    normal form, or a space before the text, makes it another.
    """

    text: str
    decoded: str
    special: bool
    rows: tuple[Row, ...]

    @property
    def ids(self) -> list[int]:
        return [row.id for row in self.rows]

    @property
    def exact(self) -> bool:
        """Whether the tokens spell the very text."""
        return self.text == self.decoded


def tokens(tokenizer: Tokenizer, text: str, special: bool = False) -> Tokens:
    """The rows of `text`; a template's tokens have no extent in it. Raises UsageError."""
    ids = tokenizer.encode(text, special=special)
    before, after = tokenizer.around(special)
    special_ids = set(tokenizer.special_ids.values()) if special else set()
    rows: list[Row] = []
    n_bytes = n_chars = 0
    spelled = tokenizer.decode_bytes(ids)
    shift = int(spelled == b" " + text.encode())  # a tokenizer may set a space before the text
    for place, id in enumerate([*before, *ids, *after]):
        data = tokenizer.bytes_of[id]
        inside = len(before) <= place < len(before) + len(ids)
        length = len(data) if inside else 0
        begun = sum(byte & 0xC0 != 0x80 for byte in data) if inside else 0
        continues = bool(length and data[0] & 0xC0 == 0x80)
        rows.append(
            Row(
                place, id, data,
                max(n_bytes - shift, 0), max(n_bytes + length - shift, 0),
                max(n_chars - continues - shift, 0), max(n_chars + begun - shift, 0),
                id in special_ids or not inside,
            )
        )  # fmt: skip
        n_bytes, n_chars = n_bytes + length, n_chars + begun
    decoded = spelled[shift:].decode("utf-8", "replace")
    return Tokens(text, decoded, special, tuple(rows))


def truncated(tokenizer: Tokenizer, text: str, limit: int, keep: str, special: bool) -> str:
    """The first (`keep` is "left") or last characters of `text`, of at most `limit` tokens.

    A part of a character at the cut is left out; so is what would be more tokens on its own.
    """
    template = sum(map(len, tokenizer.around(special)))
    found = tokens(tokenizer, text, special)
    rows = [row for row in found.rows if row.byte_end > row.byte_start]
    if len(found.rows) <= limit:
        return text
    data = found.decoded.encode()
    for room in range(min(limit - template, len(rows)), 0, -1):
        if keep == "left":
            part = data[: rows[room - 1].byte_end].decode("utf-8", "ignore")
        else:
            part = data[rows[len(rows) - room].byte_start :].decode("utf-8", "ignore")
        if len(tokenizer.encode(part, special=special)) + template <= limit:
            return part
    return ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens in a row that hold whole characters: rows from `start` to before `end`."""

    start: int
    end: int
    rows: tuple[Row, ...]


def chunks(found: Tokens, size: int, overlap: int) -> list[Chunk] | int:
    """Chunks of at most `size` tokens, each starting and ending later than the one before.

    Borders stay between characters: where one would be cut, a chunk is shorter, and the overlap a
    little more or less. Where a character has more than `size` tokens: its byte offset.
    """
    rows = found.rows
    whole = [True] * (len(rows) + 1)  # may a chunk start or end before this row?
    for row in rows[1:]:
        whole[row.index] = row.special or row.bytes[0] & 0xC0 != 0x80
    out: list[Chunk] = []
    start = end = 0
    while end < len(rows):
        last, start = end, max(end - overlap, out[-1].start + 1 if out else 0)
        while not whole[start]:
            start -= 1
        while True:
            end = min(start + size, len(rows))
            while not whole[end]:
                end -= 1
            if end > last:
                break
            if start >= last:
                return rows[last].byte_start
            start += 1
            while not whole[start]:
                start += 1
        out.append(Chunk(start, end, rows[start:end]))
    return out
