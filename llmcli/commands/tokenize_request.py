"""What was asked of `llmcli tokenize`, what excludes what, and the inputs it names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import typer

from llmcli.commands.options import pictured
from llmcli.commands.say import say, say_error
from llmcli.errors import LLMCLIError, NotFoundError, UsageError, shown, shown_path

BLOCK = 1 << 19
EXAMPLE = 'For example: llmcli tokenize "Once upon a time"'


@dataclass(frozen=True, slots=True)
class Request:
    """The options of one call, as they were given."""

    texts: list[str]
    files: bool
    model: str
    format: str | None
    lines: bool
    special: bool
    decode: bool
    errors: str | None
    truncate: int | None
    keep: str | None
    chunk: int | None
    overlap: int | None
    merges: bool
    versus: list[str]
    vocab: str | None
    ids: list[int]
    out: Path | None
    delimiter: bytes
    workers: int | None
    color: str
    quiet: bool

    @property
    def streams(self) -> bool:
        """Whether nothing but ids or their number is wanted: then no text is read whole."""
        way = self.decode, self.truncate, self.chunk, self.merges, self.versus, self.lines
        wanted = self.format in ("ids", "count") or (self.format is None and not self.pictured)
        return wanted and not any(way) and self.vocab is None and not self.ids

    @property
    def pictured(self) -> bool:
        """Whether stdout is to be looked at."""
        return pictured(self.color)

    def check(self) -> None:
        """Raises UsageError where options exclude each other, or lack the one they belong to."""
        ways = {
            "--out": self.out, "--decode": self.decode, "--truncate": self.truncate,
            "--chunk": self.chunk, "--merges": self.merges, "--versus": self.versus,
            "--vocab": self.vocab is not None, "--id": self.ids,
        }  # fmt: skip
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other.", "Choose one.")
        others = "--merges", "--versus", "--vocab", "--id", "--out"
        fits = {"--chunk": ("jsonl",), **dict.fromkeys(others, ("json",))}
        for way in given:
            if self.format and self.format not in fits.get(way, ()):
                raise UsageError(
                    f"{way} does not go with --format {self.format}.", "Leave one out."
                )
        if self.overlap is not None and not self.chunk:
            raise UsageError(
                "--overlap goes with --chunk.", "For example: --chunk 512 --overlap 64"
            )
        if self.chunk and (self.overlap or 0) >= self.chunk:
            raise UsageError(
                f"--overlap {self.overlap} is not less than --chunk {self.chunk}.",
                "For example: --chunk 512 --overlap 64",
            )
        if self.delimiter and not (self.out or self.streams):
            raise UsageError(
                "--document-delimiter goes with --out, ids and --count.", "Leave it out."
            )
        if self.lines and (self.out or self.vocab is not None or self.ids):
            raise UsageError(f"--lines does not go with {given[0]}.", "Leave one out.")
        if self.texts and (self.vocab is not None or self.ids):
            raise UsageError(f"{given[0]} takes no text.", "Leave the text out.")

    def note_unused(self) -> None:
        """Options that nothing reads are said, not dropped in silence."""
        given = {
            "--keep": self.keep, "--special": self.special, "--workers": self.workers,
            "--errors": self.errors, "--files": self.files,
        }  # fmt: skip
        used = {"--special", "--errors", "--files"}
        if self.vocab is not None or self.ids:
            used = set()
        elif self.decode:
            used = {"--errors", "--files"}
        elif self.truncate:
            used.add("--keep")
        elif self.out or self.streams:
            used.add("--workers")
        unused = [name for name, value in given.items() if value and name not in used]
        if unused and not self.quiet:
            say(f"Not used here: {', '.join(unused)}.")

    def note_files(self) -> None:
        """A text that is the name of a file may have been meant as one."""
        for text in self.texts if not (self.files or self.decode or self.quiet) else ():
            if os.path.isfile(text):
                say(f"{shown_path(Path(text))} is a text here; --files reads the file.")


@dataclass(frozen=True, slots=True)
class Input:
    """Where text comes from: an argument, stdin ("-"), or a file."""

    name: str | None  # None for an argument
    text: bytes | None = None
    place: int = 0  # among what was given

    @property
    def label(self) -> str:
        """What to call it."""
        if self.name is None:
            return f"text {self.place}"
        return "stdin" if self.name == "-" else self.name

    def blocks(self) -> Iterator[bytes]:
        """The bytes as they are. Raises NotFoundError where they cannot be read."""
        if self.text is not None:
            if self.text:
                yield self.text
            return
        with self._open() as file:
            while block := self._read(file):
                yield block

    def data(self) -> bytes:
        return b"".join(self.blocks())

    def nbytes(self) -> int:
        """How many bytes there will be; 0 where nobody can know."""
        if self.text is not None:
            return len(self.text)
        try:
            return os.stat(self.name).st_size if self.name not in (None, "-") else 0
        except (OSError, ValueError):
            return 0

    def _open(self) -> IO[bytes]:
        if self.name == "-":
            return open(sys.stdin.fileno(), "rb", closefd=False) if _has_fd() else sys.stdin.buffer
        try:
            return open(str(self.name), "rb", buffering=0)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _read(self, file: IO[bytes]) -> bytes:
        try:
            return file.read(BLOCK)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> NotFoundError:
        why = getattr(error, "strerror", None) or error
        return NotFoundError(
            f"{shown(str(self.name))} cannot be read ({why}).", "Is the path right?"
        )


def _has_fd() -> bool:
    try:
        return sys.stdin.fileno() >= 0
    except (OSError, ValueError, AttributeError):  # a stream in memory has none
        return False


def inputs(request: Request) -> list[Input]:
    """What the texts name; stdin where there are none and it is no terminal."""
    nothing = not request.texts
    closed = sys.stdin is None and (nothing or "-" in request.texts)
    if closed or (nothing and sys.stdin.isatty()):
        raise UsageError("There is no text to work on.", EXAMPLE)
    if nothing:
        return [Input("-")]
    if request.texts.count("-") > 1:
        raise UsageError("stdin can be read only once.", "Give - once.")
    return [
        Input(text) if request.files or text == "-" else Input(None, _typed(text), place)
        for place, text in enumerate(request.texts)
    ]


def _typed(text: str) -> bytes:
    """The bytes that were typed."""
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Record:
    r"""One text: an input, or with --lines a line of it, without "\n" or "\r\n" at its end."""

    input: Input
    line: int | None  # from 1
    text: str

    @property
    def label(self) -> str:
        """What to call it: its input, and its line."""
        return self.input.label if self.line is None else f"{self.input.label}:{self.line}"


def records(input: Input, request: Request) -> Iterator[Record]:
    """The texts of an input. Raises UsageError where one is not UTF-8."""
    if not request.lines:
        yield Record(input, None, text_of(input.data(), request.errors or "strict", 0))
        return
    offset = 0
    for number, line in enumerate(lines_of(input.blocks()), start=1):
        text = text_of(line.removesuffix(b"\r"), request.errors or "strict", offset)
        yield Record(input, number, text)
        offset += len(line) + 1


def lines_of(blocks: Iterable[bytes]) -> Iterator[bytes]:
    r"""The lines without their "\n"; a line over many blocks is joined once, at its end."""
    begun: list[bytes] = []
    for block in blocks:
        first, *more = block.split(b"\n")
        begun.append(first)
        if more:
            yield b"".join(begun)
            yield from more[:-1]
            begun = [more[-1]]
    if rest := b"".join(begun):
        yield rest


def text_of(data: bytes, errors: str, offset: int) -> str:
    """`data` as text; an error names the position in the input, `offset` bytes before."""
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError:
        from llmcli.tokenizing.bulk import refuse_bytes

        refuse_bytes(data, offset)
        raise


def each(
    given: list[Input],
    work: Callable[[Input], None],
    end: Callable[[], None] = lambda: None,
    skip: tuple[type[LLMCLIError], ...] = (NotFoundError, UsageError),
) -> None:
    """Work on every input; one that fails with an error of `skip` is said, the others still done.

    Then comes `end`, unless the only input failed. The exit code is that of the first failure.
    """
    failed: LLMCLIError | None = None
    for input in given:
        try:
            work(input)
        except (NotFoundError, UsageError) as error:
            name = shown(input.name or "-")
            if name != "-" and name not in error.fact:
                raised = error.__traceback__
                error = type(error)(f"{name}: {error.fact}", error.remedy).with_traceback(raised)
            if len(given) == 1 or not isinstance(error, skip):
                raise error from None
            sys.stdout.flush()
            say_error(error)
            failed = failed or error
    end()
    if failed:
        raise typer.Exit(failed.exit_code)
