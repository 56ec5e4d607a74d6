"""A trace: a file that keeps a run, a line of JSON for each step, readable while it grows.

The first line is the header: the model and its hashes, the options, the versions. A line with `ids`
begins a text, its prompt; a line with `step` is one token of it and what the model thought. Each
line is flushed as it is written, so that a kill of who writes costs at most that one.
`schemas/trace.schema.json` describes the lines. Knows JSON and gzip; no torch, no tokenizer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from llmcli.errors import (
    IntegrityError,
    NotFoundError,
    UnsupportedModelError,
    UsageError,
    shown,
    shown_path,
)
from llmcli.trace_lines import TOLERANCE, Begun, Step, parsed

SCHEMA = 1
CHANGES = ("ablate", "knockout", "steer", "patch")  # options, as they were typed
SUFFIXES = (".jsonl", ".gz")
BLOCK_NBYTES = 1 << 18
MAX_LINE_NBYTES = 64 << 20  # far more than the ids of any prompt


@dataclass(frozen=True, slots=True)
class Damage:
    """A line, counted from 1, that cannot be read or before which steps are missing, and why."""

    line: int
    why: str
    is_end: bool = False  # cut off, as by a kill: no step is missing before another
    is_gap: bool = False  # the line can be read, steps before it cannot


@dataclass
class Record:
    """One text of a trace: how it began, and its steps without a gap."""

    begun: Begun
    steps: list[Step] = field(default_factory=list)
    gap: int | None = None  # the first step that is missing, where later ones are there

    @property
    def ids(self) -> list[int]:
        return [step.id for step in self.steps]


class Writer:
    """Lines to a new file, each flushed; gzip where the name ends in .gz."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)
        self.deflate = zlib.compressobj(wbits=31) if path.suffix == ".gz" else None

    def write(self, line: str) -> None:
        data = line.encode("utf-8", "replace") + b"\n"
        if self.deflate:
            data = self.deflate.compress(data) + self.deflate.flush(zlib.Z_SYNC_FLUSH)
        self._write(data)

    def close(self) -> None:
        with self.file:
            if self.deflate:
                self._write(self.deflate.flush())

    def _write(self, data: bytes) -> None:
        while data:  # a disk that is nearly full takes a part
            data = data[self.file.write(data) :]


class Reader:
    """A trace, line by line: `header` at once, then texts and steps; `damaged` grows on the way.

    Raises NotFoundError where the file cannot be read, IntegrityError where it is no trace,
    UnsupportedModelError where a later llmcli wrote it. A damaged line is noted and passed over.
    `gaps` are the texts' first missing steps, where later ones are there.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.damaged = path, list[Damage]()
        self.gaps: dict[int, int] = {}
        self.name = shown_path(path)
        try:
            self.file: BinaryIO = path.open("rb")
        except OSError as error:
            raise NotFoundError(
                f"{self.name} cannot be read: {error.strerror}.", "Name a trace, as run.jsonl."
            ) from error
        self.n_bytes = 0  # read so far, as they lie in the file
        self.is_cut = False  # whether it was gzip, and ended before its end
        self.lines = self._lines()
        self.header = self._header()

    def __iter__(self) -> Iterator[Begun | Step]:
        due: dict[int, int] = {}  # the step that each text goes on with
        for number, line in enumerate(self.lines, 2):
            try:
                made = parsed(line)
                if isinstance(made, Begun):
                    if made.run in due:
                        raise ValueError(f"run {made.run} begins twice")
                    due[made.run] = 0
                elif made.run not in due:
                    raise ValueError(f"run {made.run} has not begun")
                elif made.index < due[made.run]:
                    raise ValueError(f"step {made.index} of run {made.run} comes twice")
                else:
                    self._note_gap(number, made, due[made.run])
                    due[made.run] = made.index + 1
            except ValueError as error:
                cut = not line.endswith(b"\n")
                why = "cut off, as by a kill" if cut else shown(str(error), 120)
                self.damaged.append(Damage(number, why, is_end=cut))
                continue
            yield made

    def close(self) -> None:
        """Read no further."""
        self.file.close()

    def _note_gap(self, number: int, step: Step, due: int) -> None:
        if step.index == due:
            return
        last = step.index - 1
        which = f"step {due}" if last == due else f"steps {due} to {last}"
        verb = "is" if last == due else "are"
        self.gaps.setdefault(step.run, due)
        if not self.damaged or self.damaged[-1].line != number - 1:  # which says why
            why = f"{which} of run {step.run} {verb} missing before it"
            self.damaged.append(Damage(number, why, is_gap=True))

    def _header(self) -> dict[str, Any]:
        line = next(self.lines, b"")
        if not line:
            raise IntegrityError(f"{self.name} is empty.", "A trace begins with its header.")
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            header = None
        schema = header.get("schema") if isinstance(header, dict) else None
        if type(schema) is not int or "model" not in header or "options" not in header:
            raise IntegrityError(
                f"{self.name} is no trace: its first line is no header of one.",
                "A trace is what llmcli generate --trace FILE writes.",
            )
        if schema > SCHEMA:
            raise UnsupportedModelError(
                f"{self.name} has schema {shown(str(schema), 20)}; this llmcli reads up to "
                f"{SCHEMA}.",
                "A newer llmcli wrote it: update this one.",
            )
        if not _is_header(header):
            raise IntegrityError(f"{self.name} has a damaged header.", "Record it again.")
        return header

    def _lines(self) -> Iterator[bytes]:
        """Each line with its end; the last one may lack it, as an empty one does after a cut."""
        rest = b""
        for block in self._blocks():
            *lines, rest = (rest + block).split(b"\n")
            yield from (line + b"\n" for line in lines)
            if len(rest) > MAX_LINE_NBYTES:
                raise IntegrityError(
                    f"{self.name} is no trace: it has a line of more than "
                    f"{MAX_LINE_NBYTES >> 20} MiB.", "Is it the right file?",
                )  # fmt: skip
        if rest or self.is_cut:
            yield rest

    def _blocks(self) -> Iterator[bytes]:
        """The file's bytes, unpacked where it is gzip, as far as that goes."""
        inflate, begun = None, False
        with self.file:
            while data := self._read():
                if self.n_bytes == len(data) and data[:2] == b"\x1f\x8b":
                    inflate = zlib.decompressobj(wbits=31)
                if inflate is None:
                    yield data
                    continue
                while data:
                    # Zeros may fill a block up behind a gzip, and another gzip follow.
                    if not begun and not (data := data.lstrip(b"\0")):
                        break
                    begun, before = True, inflate.copy()
                    try:
                        yield inflate.decompress(data, BLOCK_NBYTES)
                    except zlib.error as error:
                        yield _salvaged(before, data)
                        # What cannot be unpacked has no lines: line 0 stands for the rest.
                        self.damaged.append(Damage(0, f"the rest is no gzip ({error})"))
                        return
                    data = inflate.unconsumed_tail
                    if inflate.eof:
                        data, begun = inflate.unused_data, False
                        inflate = zlib.decompressobj(wbits=31)
        self.is_cut = begun

    def _read(self) -> bytes:
        try:
            data = self.file.read(BLOCK_NBYTES)
        except OSError as error:
            raise NotFoundError(f"{self.name} cannot be read: {error.strerror}.") from error
        self.n_bytes += len(data)
        return data


def _salvaged(inflate: zlib._Decompress, data: bytes) -> bytes:
    """What comes out of `data` before it breaks: in one call all of it would be lost."""
    out: list[bytes] = []
    with suppress(zlib.error):
        for at in range(len(data)):
            out.append(inflate.decompress(data[at : at + 1]))
    return b"".join(out)


def records(reader: Reader, run: int | None = None) -> dict[int, Record]:
    """The texts by their number, or the one asked for, each up to the first step that is missing.

    Raises UsageError where there is no such run.
    """
    found: dict[int, Record] = {}
    known: list[int] = []
    for line in reader:
        if isinstance(line, Begun):
            known.append(line.run)
        if run is not None and line.run != run:
            continue
        if isinstance(line, Begun):
            found[line.run] = Record(line)
        else:
            steps = found[line.run].steps
            if line.index == len(steps):
                steps.append(line)
    if run is not None and run not in found:
        raise no_such_run(reader.name, run, known)
    for number, record in found.items():
        record.gap = reader.gaps.get(number)
    return found


def no_such_run(name: str, run: int, known: Sequence[int]) -> UsageError:
    """What to say where `run` is not among those of the trace."""
    if not known:
        return UsageError(f"{name} has a header and no run.", "Record it again.")
    here = f"{known[0]}" if len(known) == 1 else f"{min(known)} to {max(known)}"
    return UsageError(f"{name} has no run {run}.", f"Its runs: {here}; --run chooses one.")


def _is_header(header: Any) -> bool:
    """Whether what is read of it later is there."""
    model, options = header["model"], header["options"]
    files = model.get("files") if isinstance(model, dict) else None
    return (
        isinstance(model, dict)
        and isinstance(options, dict)
        and _are_texts([model.get(key) for key in ("name", "dtype", "device")])
        and model["dtype"] in TOLERANCE
        and isinstance(files, dict)
        and isinstance(hashes := model.get("tokenizer_sha256"), dict)
        and _are_texts(list(hashes.values()))
        and isinstance(header.get("versions"), dict)
        and isinstance(read := header.get("read", {}), dict)
        and _are_texts([*read, *read.values()])
        and type(header.get("seed")) is int
        and isinstance(model.get("revision"), str | None)
        and all(isinstance(file, dict) for file in files.values())
        and _are_texts([file.get("header_sha256") for file in files.values()])
        and _are_texts([file.get("sampled_sha256", "") for file in files.values()])
        and all(_are_texts(options.get(name, [])) for name in CHANGES)
        and _are_texts([options.get("reference") or ""])
    )


def _are_texts(value: Any) -> bool:
    """Whether it is a list of what may have been typed, in which there is no NUL."""
    return isinstance(value, list) and all(isinstance(t, str) and "\0" not in t for t in value)
