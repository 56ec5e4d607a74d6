"""Bytes of any length -> ids, in parts that give the ids of the whole, on several threads.

Knows bytes and ids, not where they come from or go to. Two things make it fast: tiktoken writes
ids into a buffer, without a Python object for each, and the split pattern's lookahead is replaced
by marks in the text (see `cuts`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcli.errors import UsageError
from llmcli.tokenizing.cuts import Lookahead, cut_places, without_lookahead
from llmcli.tokenizing.source import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.uint32]

BLOCK = 1 << 19  # bytes read at once: larger parts gain nothing, and cost memory per thread
LONGEST = 16 << 20  # bytes that are kept in wait of a place to cut
_WINDOWS = (1 << 12, 1 << 16, LONGEST + 2 * BLOCK)  # how far back to look for one
# Marks: control characters, so that ASCII stays ASCII. A text that holds one is encoded without.
_SKIP, _END = "\x01", "\x02"
_SKIP_ID = 2**32 - 1
_WIDE_SPACES = [0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an input, cut where a cut changes nothing."""

    data: bytes
    offset: int  # of its first byte in the input
    first: bool  # whether a document starts here
    last: bool  # whether the input ends here


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with the bytes of every input."""

    source: Source
    special: bool = False  # special tokens are parsed, and the template goes around each document
    delimiter: bytes = b""  # what stands between two documents; becomes the end-of-text id
    errors: str = "strict"  # what is done with bytes that are not UTF-8, as in `bytes.decode`

    def cut(self) -> re.Pattern[str] | str:
        """Where an input may be cut, or why nowhere."""
        return cut_places(self.source.recipe, self.special)


def parts(blocks: Iterable[bytes], job: Job, longest: int = LONGEST) -> Iterator[Part]:
    """An input's bytes in parts of about a block each; an empty input has none.

    Raises UsageError where there is no place to cut for `longest` bytes, unless there is none by
    principle: then documents are whole.
    """
    found = job.cut()
    places = None if isinstance(found, str) else found
    waiting, offset, first = bytearray(), 0, True
    for block in blocks:
        known = len(waiting)
        waiting += block
        end = _last_cut(waiting, known, places, job.delimiter)
        if end:
            data = bytes(waiting[:end])
            yield Part(data, offset, first, False)
            del waiting[:end]
            offset += end
            first = bool(job.delimiter) and data.endswith(job.delimiter)
        elif places and len(waiting) > longest:
            raise UsageError(
                f"There is no place to cut for {longest >> 20} MiB from byte {offset} on.",
                "Break the text there with a space or a line end.",
            )
    if waiting or offset:
        yield Part(bytes(waiting), offset, first, True)


def _last_cut(data: bytearray, known: int, places: re.Pattern[str] | None, delimiter: bytes) -> int:
    """Where to cut `data`, which goes on; 0 for nowhere yet, as for its first `known` bytes."""
    room = len(data)
    if delimiter:  # found from the left, as overlapping ones have to be
        fresh = data[max(known - len(delimiter) + 1, 0) :].split(delimiter)
        if len(fresh) > 1:
            return room - len(fresh[-1])
        room -= len(delimiter) - 1  # one may begin there
    if places is None:
        return 0
    begin = max(known - len(delimiter) - 8, 0)
    for window in _WINDOWS:
        low = max(room - window, begin)
        while low < room and data[low] & 0xC0 == 0x80:  # not in the middle of a character
            low += 1
        text = data[low:room].decode("utf-8", "surrogateescape")
        for last in deque(places.finditer(text), maxlen=1):
            return low + len(text[: last.start()].encode("utf-8", "surrogateescape"))
        if room - window <= begin:
            return 0
    return 0


class Encoder:
    """What gives the ids of a `Part`; may be used by several threads at once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        tokenizer = job.source.tokenizer
        self.before, self.after = tokenizer.around(job.special)
        if job.delimiter and tokenizer.eot_id is None:
            raise UsageError(
                "The tokenizer names no end-of-text token to put between documents.",
                "Leave --document-delimiter out.",
            )
        self.lookahead = self._lookahead()
        self._table: Ids | None = None
        if self.lookahead:
            end = tokenizer.eot_id or 0
            if tokenizer.id_of_rank is not None:  # the mark is one more rank
                self._table = _uint32([*tokenizer.id_of_rank, end])
                end = len(tokenizer.id_of_rank)
            marks = {_SKIP: _SKIP_ID, _END: end}
            self._encoding = tokenizer.marked_encoding(self.lookahead.pattern, marks)

    def _lookahead(self) -> Lookahead | None:
        """How the pattern does without its lookahead, where the text is the pieces' text.

        No text has the end-of-text id then: each delimiter becomes one.
        """
        recipe, tokenizer = self.job.source.recipe, self.job.source.tokenizer
        plain = all(token.special for token in recipe.added) and not self.job.special
        plain &= tokenizer.eot_id in (None, *tokenizer.special_ids.values())
        if not plain or recipe.normal_forms or recipe.prefix_space:
            return None
        return without_lookahead(recipe)

    def ids(self, part: Part) -> Ids:
        """The ids of `part`, the template's too where it belongs. Raises UsageError."""
        marked = self._marked(part.data)
        if marked is None:
            return _uint32(self._slow_ids(part))
        ids, n_marks = self._fast_ids(part, *marked)
        ids = ids[ids != _SKIP_ID] if n_marks else ids
        return ids if self._table is None else self._table[ids]

    def count(self, part: Part) -> int:
        """How many ids `part` has."""
        marked = self._marked(part.data)
        if marked is None:
            return len(self._slow_ids(part))
        ids, n_marks = self._fast_ids(part, *marked)
        return len(ids) - n_marks

    def end(self, ids: Sequence[int] | Ids) -> list[int]:
        """The end-of-text id, which a document lacks that ends with `ids`; none if it is there."""
        eot = self.job.source.tokenizer.eot_id
        return [] if eot is None or (len(ids) and ids[-1] == eot) else [eot]

    def _marked(self, data: bytes) -> tuple[bytes, int] | None:
        """`data` with its marks, and how many are to be skipped; None where that is not safe."""
        if self.lookahead is None or b"\x01" in data or b"\x02" in data:
            return None
        if self.job.delimiter:
            data = data.replace(self.job.delimiter, b"\x02")
        starts = mark_places(data, self.lookahead)
        if starts is None:
            return None
        ends = [*starts, len(data)]
        cut = [data[start:end] for start, end in zip([0, *starts], ends, strict=True)]
        return b"\x01".join(cut), len(starts)

    def _fast_ids(self, part: Part, marked: bytes, n_marks: int) -> tuple[Ids, int]:
        text = self._decoded(marked, part)
        ids = self._encoding.encode_to_numpy(
            text, allowed_special={_SKIP, _END}, disallowed_special=()
        )
        return ids, n_marks

    def _slow_ids(self, part: Part) -> list[int]:
        """Those of each document, the template's around them; none after the last delimiter."""
        job, tokenizer = self.job, self.job.source.tokenizer
        *ended, rest = part.data.split(job.delimiter) if job.delimiter else [part.data]
        ids: list[int] = []
        before = self.before if part.first else ()
        for document in ended:
            own = tokenizer.encode(self._decoded(document, part), special=job.special)
            own += self.after
            ids += [*before, *own, *self.end(own)]
            before = self.before
        if rest:
            own = tokenizer.encode(self._decoded(rest, part), special=job.special)
            ids += [*before, *own, *(self.after if part.last else ())]
        return ids

    def _decoded(self, data: bytes, part: Part) -> str:
        try:
            return data.decode("utf-8", self.job.errors)
        except UnicodeDecodeError:
            refuse_bytes(part.data, part.offset)
            raise


def mark_places(data: bytes, lookahead: Lookahead) -> list[int] | None:
    """Before which bytes a mark stands for the lookahead; None where that is not proven."""
    import numpy as np

    if not data:
        return []
    codes = np.frombuffer(data, np.uint8)
    white = (codes - np.uint8(9) < 5) | (codes == 32)
    ascii_only = data.isascii()
    if not ascii_only:
        _find_wide_spaces(codes, white)
    last = np.flatnonzero(white[:-2] & white[1:-1] & ~white[2:]) + 1  # the last byte of each run
    last = last[codes[last + 1] != ord(_END)]
    if lookahead.newlines:
        last = last[(codes[last] != 10) & (codes[last] != 13)]
    if lookahead.digits:
        after = codes[last + 1]
        if (after > 127).any():  # which characters are digits is for tiktoken's tables to say
            return None
        last = last[(after < ord("0")) | (after > ord("9"))]
    if not ascii_only:
        behind = np.where(codes[last] < 128, 0, np.where(codes[last - 1] >= 0xC0, 1, 2))
        last = last - behind  # the first byte of that character
        last = last[(last > 0) & white[last - 1]]
    return last.tolist()


def _find_wide_spaces(codes: NDArray[np.uint8], white: NDArray[np.bool_]) -> None:
    """Set `white` for the white spaces outside of ASCII, at each of their bytes."""
    import numpy as np

    n = len(codes)
    at = np.flatnonzero(codes[: n - 1] == 0xC2)
    at = at[(codes[at + 1] == 0x85) | (codes[at + 1] == 0xA0)]  # U+0085, U+00A0
    white[at] = white[at + 1] = True
    at = np.flatnonzero((codes[: n - 2] >= 0xE1) & (codes[: n - 2] <= 0xE3))
    code = (codes[at].astype(np.uint32) << 12 & 0xF000) | (
        (codes[at + 1].astype(np.uint32) & 0x3F) << 6 | (codes[at + 2] & 0x3F)
    )
    valid = (codes[at + 1] & 0xC0 == 0x80) & (codes[at + 2] & 0xC0 == 0x80)
    at = at[np.isin(code, _WIDE_SPACES) & valid]
    white[at] = white[at + 1] = white[at + 2] = True


def refuse_bytes(data: bytes, offset: int = 0) -> None:
    """Raises UsageError with the position of the first byte that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The text is not UTF-8: byte 0x{data[error.start]:02x} at offset "
            f"{offset + error.start}.",
            "Convert it first, for example with iconv -t UTF-8, or use --errors replace.",
        ) from None


def in_order(
    work: Callable[[Part], Any], items: Iterable[Part], workers: int
) -> Iterator[tuple[Part, Any]]:
    """Each item and what `work` makes of it, in their order, worked on by `workers` threads."""
    if workers == 1:
        for item in items:
            yield item, work(item)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pool = ThreadPoolExecutor(workers)
    running: deque[tuple[Part, Future[Any]]] = deque()
    try:
        for item in items:
            running.append((item, pool.submit(work, item)))
            if len(running) > 2 * workers:
                first, future = running.popleft()
                yield first, future.result()
        for first, future in running:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _uint32(ids: list[int]) -> Ids:
    import numpy as np

    return np.array(ids, np.uint32)
