"""Ids back to text: to the byte in a pipe, harmless on a terminal."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterable, Iterator

from llmcli.commands.tokenize_request import Input, Request, each, inputs, lines_of
from llmcli.errors import UsageError, shown
from llmcli.hub import resolve
from llmcli.render.text import harmless
from llmcli.tokenizer import Tokenizer

BETWEEN = re.compile(rb"[\s,\[\]]+")  # so that a list of JSON or Python is read too


def run(request: Request) -> None:
    given = inputs(request)
    tokenizer = Tokenizer.from_folder(resolve(request.model, tokenizer_only=True))
    if request.files:
        each(given, lambda input: _decode(input.blocks(), tokenizer, request))
    else:
        each(given[:1], lambda _: _decode(_one_list(given), tokenizer, request))


def _one_list(given: list[Input]) -> Iterator[bytes]:
    """The blocks of all arguments in order, stdin where it is named, as of one list of ids."""
    for place, input in enumerate(given):
        yield b" " * bool(place)
        yield from input.blocks()


def _decode(blocks: Iterable[bytes], tokenizer: Tokenizer, request: Request) -> None:
    write = Output(request.errors)
    if not request.lines:
        for ids in id_lists(blocks):
            write(tokenizer.decode_bytes(ids))
        write.end()
        return
    for line in lines_of(blocks):
        for ids in id_lists([line]):
            write(tokenizer.decode_bytes(ids))
        write.end(b"\n")


class Output:
    """Bytes to stdout; `errors` says what becomes of those that are not UTF-8, None leaves them."""

    def __init__(self, errors: str | None) -> None:
        self.terminal = sys.stdout.isatty()
        self.errors = errors or ("replace" if self.terminal else None)
        self.done, self.last = 0, b"\n"
        self._restart()

    def _restart(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")(self.errors or "strict")

    def __call__(self, data: bytes, final: bool = False) -> None:
        if self.errors is None:
            sys.stdout.buffer.write(data)
            return
        held = len(self.decoder.getstate()[0])
        try:
            text = self.decoder.decode(data, final)
        except UnicodeDecodeError as error:
            at = self.done - held + error.start
            raise UsageError(
                f"The ids give bytes that are not UTF-8, at offset {at}.",
                "Leave --errors out for the bytes as they are, or use --errors replace.",
            ) from None
        self.done += len(data)
        if self.terminal:
            text = harmless(text)
        self._print(text)

    def _print(self, text: str) -> None:
        if text:
            sys.stdout.buffer.write(text.encode())
            self.last = text[-1:].encode()

    def end(self, line_end: bytes = b"") -> None:
        if self.errors is not None:
            self(b"", final=True)
            self._restart()
        if line_end or (self.terminal and self.last != b"\n"):
            sys.stdout.buffer.write(b"\n")
        if self.terminal:
            sys.stdout.flush()


def id_lists(blocks: Iterable[bytes]) -> Iterator[list[int]]:
    """The ids that are written in `blocks`, some at a time. Raises UsageError."""
    rest = b""
    for block in blocks:
        *words, rest = BETWEEN.split(rest + block)
        yield _ids(words)
        if len(rest) > 80:  # no id, and perhaps without an end
            _ids([rest])  # raises
    yield _ids([rest])


def _ids(words: list[bytes]) -> list[int]:
    words = [word for word in words if word]
    if not all(map(bytes.isdigit, words)):
        odd = next(word for word in words if not word.isdigit()).decode("utf-8", "replace")
        negative = odd.startswith("-") and odd[1:].isdigit()
        raise UsageError(
            f"{shown(odd, 40)!r} is {'negative' if negative else 'no number'}, so no token id.",
            "Ids are whole numbers from 0, with spaces or commas between them.",
        )
    if max(map(len, words), default=0) > 20:
        raise UsageError(
            "A number of more than 20 digits is no token id.", "Put spaces between the ids."
        )
    return list(map(int, words))
