"""A trace: a file that keeps a run, a line of JSON for each step, readable while it grows.

The first line is the header: the model and its hashes, the options, the versions. A line with `ids`
begins a text, its prompt; a line with `step` is one token of it and what the model thought. Every
line is on its way to the disk before the next step is computed, so that a kill costs at most one.
`schemas/trace.schema.json` describes the lines. Knows JSON and gzip; no torch, no tokenizer.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
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

SCHEMA = 1
CHANGES = ("ablate", "knockout", "steer", "patch")  # options, as they were typed
SUFFIXES = (".jsonl", ".gz")
BLOCK_NBYTES = 1 << 18
MAX_LINE_NBYTES = 64 << 20  # far more than the ids of any prompt
MAX_INT = 2**53
DIGITS = 9  # significant ones, after which every float32 is itself again

# json.dumps would make a new encoder for each line.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

# How far apart two computations of one logprob (nats) may be: what another order of summing costs
# on logits of about 100 in float32, and one or two steps of the coarser formats' own grids.
TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True, slots=True)
class Choice:
    """One vocabulary entry with its natural-log probability, before and after the filters."""

    id: int
    text: bytes
    logprob: float
    drawn_logprob: float  # -inf where the filters cut it


@dataclass(frozen=True, slots=True)
class LensLayer:
    """What the step would have said, were this layer the last."""

    top: int  # an id
    prob: float
    kl_bits: float  # KL(final || here)
    rank: int  # here, of the token that was chosen


@dataclass(frozen=True, slots=True)
class Begun:
    """A text that begins: its prompt's ids, and which random numbers it draws."""

    run: int
    ids: tuple[int, ...]
    prompt: str
    prompt_id: str | int | None  # as --prompts names it
    draw: tuple[int, int]  # the prompt's place, the sample
    time_s: float  # since the trace began

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run, "ids": list(self.ids), "prompt": self.prompt,
            "prompt_id": self.prompt_id, "draw": list(self.draw), "time_s": round(self.time_s, 6),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one text."""

    run: int
    index: int  # from 0
    chosen: Choice
    rank: int
    entropy_bits: float
    kept: float
    top: tuple[Choice, ...]  # the likeliest before the filters, and those after them, once each
    forced: bool
    time_s: float  # since the trace began
    finish_reason: str | None
    lens: tuple[LensLayer, ...] = ()  # after the embedding and after each layer

    @property
    def id(self) -> int:
        return self.chosen.id

    @property
    def surprisal_bits(self) -> float:
        return max(0.0, -self.chosen.logprob / math.log(2))  # no 0.0 with a minus

    def to_json(self) -> dict[str, Any]:
        """The line; what is false or nothing is left out."""
        c = self.chosen
        line: dict[str, Any] = {
            "run": self.run, "step": self.index, "id": c.id, "text": _text(c.text),
            "logprob": _number(c.logprob), "drawn_logprob": _number(c.drawn_logprob),
            "rank": self.rank, "entropy_bits": _number(self.entropy_bits),
            "kept": _number(self.kept), "time_s": round(self.time_s, 6),
            "top": [
                [t.id, _text(t.text), _number(t.logprob), _number(t.drawn_logprob)]
                for t in self.top
            ],
        }  # fmt: skip
        if self.forced:
            line["forced"] = True
        if self.finish_reason:
            line["finish_reason"] = self.finish_reason
        if self.lens:
            line["lens"] = [[x.top, _number(x.prob), _number(x.kl_bits), x.rank] for x in self.lens]
        return line


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that cannot be read, counted from 1, and why."""

    line: int
    why: str


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
        self.file: BinaryIO = path.open("wb")
        self.deflate = zlib.compressobj(wbits=31) if path.suffix == ".gz" else None

    def write(self, line: Mapping[str, Any]) -> None:
        data = _encode(line).encode("utf-8", "replace") + b"\n"
        if self.deflate:
            data = self.deflate.compress(data) + self.deflate.flush(zlib.Z_SYNC_FLUSH)
        self.file.write(data)
        self.file.flush()

    def close(self) -> None:
        with self.file:
            if self.deflate:
                self.file.write(self.deflate.flush())


class Reader:
    """A trace, line by line: `header` at once, then texts and steps; `damaged` grows on the way.

    Raises NotFoundError where the file cannot be read, IntegrityError where it is no trace,
    UnsupportedModelError where a later llmcli wrote it. A damaged line is noted and passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.damaged = path, list[Damage]()
        self.name = shown_path(path)
        try:
            self.file: BinaryIO = path.open("rb")
        except OSError as error:
            raise NotFoundError(
                f"{self.name} cannot be read: {error.strerror}.", "Name a trace: --trace run.jsonl"
            ) from error
        self.n_bytes = 0  # read so far, as they lie in the file
        self.lines = self._lines()
        self.header = self._header()

    def __iter__(self) -> Iterator[Begun | Step]:
        due: dict[int, int] = {}  # the least step that each text may go on with
        for number, line in enumerate(self.lines, 2):
            try:
                made = _parsed(line)
                if isinstance(made, Begun):
                    if made.run in due:
                        raise ValueError(f"run {made.run} begins twice")
                    due[made.run] = 0
                elif made.run not in due:
                    raise ValueError(f"run {made.run} has not begun")
                elif made.index < due[made.run]:
                    raise ValueError(f"step {made.index} of run {made.run} comes twice")
                else:
                    due[made.run] = made.index + 1
            except ValueError as error:
                cut = not line.endswith(b"\n")
                why = "cut off, as by a kill" if cut else shown(str(error), 120)
                self.damaged.append(Damage(number, why))
                continue
            yield made

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
        """Each line with its end; the last one may lack it."""
        rest = b""
        for block in self._blocks():
            *lines, rest = (rest + block).split(b"\n")
            yield from (line + b"\n" for line in lines)
            if len(rest) > MAX_LINE_NBYTES:
                raise IntegrityError(
                    f"{self.name} is no trace: it has a line of more than "
                    f"{MAX_LINE_NBYTES >> 20} MiB.", "Is it the right file?",
                )  # fmt: skip
        if rest:
            yield rest

    def _blocks(self) -> Iterator[bytes]:
        """The file's bytes, unpacked where it is gzip, as far as that goes."""
        inflate = None
        with self.file:
            while data := self._read():
                if self.n_bytes == len(data) and data[:2] == b"\x1f\x8b":
                    inflate = zlib.decompressobj(wbits=31)
                if inflate is None:
                    yield data
                    continue
                while data:
                    try:
                        yield inflate.decompress(data, BLOCK_NBYTES)
                    except zlib.error as error:
                        # What cannot be unpacked has no lines: line 0 stands for the rest.
                        self.damaged.append(Damage(0, f"the rest is no gzip ({error})"))
                        return
                    data = inflate.unconsumed_tail

    def _read(self) -> bytes:
        try:
            data = self.file.read(BLOCK_NBYTES)
        except OSError as error:
            raise NotFoundError(f"{self.name} cannot be read: {error.strerror}.") from error
        self.n_bytes += len(data)
        return data


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
            record = found[line.run]
            if record.gap is None and line.index == len(record.steps):
                record.steps.append(line)
            elif record.gap is None:
                record.gap = len(record.steps)
    if run is not None and run not in found:
        raise no_such_run(reader.name, run, known)
    return found


def no_such_run(name: str, run: int, known: Sequence[int]) -> UsageError:
    """What to say where `run` is not among those of the trace."""
    if not known:
        return UsageError(f"{name} has a header and no run.", "Record it again.")
    here = f"{known[0]}" if len(known) == 1 else f"{min(known)} to {max(known)}"
    return UsageError(f"{name} has no run {run}.", f"Its runs: {here}; --run chooses one.")


def difference(step: Step, logprobs: Mapping[int, float]) -> float:
    """The largest distance (nats) of a recorded logprob from that of the same id in `logprobs`."""
    recorded = (step.chosen, *step.top)
    apart = [abs(c.logprob - _rounded(logprobs[c.id])) for c in recorded if c.id in logprobs]
    return max((d if math.isfinite(d) else math.inf for d in apart), default=0.0)


def kl_bits(p: Step, q: Step) -> float:
    """A lower bound of KL(p || q), in bits, from the logprobs that both steps recorded.

    What is not in both lists is one outcome together: lumping outcomes never raises a KL (the data
    processing inequality; Cover and Thomas, 2006, section 2.8).
    """
    ps, qs = ({c.id: c.logprob for c in (s.chosen, *s.top)} for s in (p, q))
    both = [(ps[id], qs[id]) for id in ps.keys() & qs.keys() if qs[id] > -math.inf]
    total = sum(math.exp(a) * (a - b) for a, b in both if a > -math.inf)
    rests = [max(1e-7, 1 - sum(math.exp(pair[i]) for pair in both)) for i in (0, 1)]
    return max(0.0, (total + rests[0] * math.log(rests[0] / rests[1])) / math.log(2))


# --- one value, one line -------------------------------------------------------------------------


def _number(value: float) -> float | None:
    """A float as JSON has it: DIGITS of it, None where it is infinite."""
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _text(token: bytes) -> str | list[int]:
    """A token's text; its bytes where they are only a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)


def _parsed(line: bytes) -> Begun | Step:
    """A line after the header. Raises ValueError that says what is wrong with it."""
    try:
        raw = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    try:
        return _step(raw) if "step" in raw else _begun(raw)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"neither the beginning of a text nor a step ({error})") from error


def _begun(raw: Any) -> Begun:
    prompt_id, (prompt, sample) = raw["prompt_id"], raw["draw"]
    if type(raw["prompt"]) is not str or type(prompt_id) not in (str, int, type(None)):
        raise TypeError("prompt")
    ids = tuple(_natural(id) for id in raw["ids"])
    draw = (_natural(prompt), _natural(sample))
    return Begun(_natural(raw["run"]), ids, raw["prompt"], prompt_id, draw, _float(raw["time_s"]))


def _step(raw: Any) -> Step:
    reason = raw.get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise TypeError("finish_reason")
    return Step(
        run=_natural(raw["run"]),
        index=_natural(raw["step"]),
        chosen=_choice(raw["id"], raw["text"], raw["logprob"], raw["drawn_logprob"]),
        rank=_natural(raw["rank"]),
        entropy_bits=_float(raw["entropy_bits"]),
        kept=_float(raw["kept"]),
        top=tuple([_choice(*entry) for entry in raw["top"]]),
        forced=raw.get("forced") is True,
        time_s=_float(raw["time_s"]),
        finish_reason=reason,
        lens=tuple(
            LensLayer(_natural(top), _float(prob), _float(kl), _natural(rank))
            for top, prob, kl, rank in raw.get("lens", ())
        ),
    )


def _choice(id: Any, text: Any, logprob: Any, drawn_logprob: Any) -> Choice:
    if type(text) not in (str, list):
        raise TypeError("text")
    data = text.encode() if type(text) is str else bytes(text)
    return Choice(_natural(id), data, _logprob(logprob), _logprob(drawn_logprob))


def _logprob(value: Any) -> float:
    if value is None:
        return -math.inf
    value = _float(value)
    if value > 1e-3:
        raise ValueError("a logprob above 0")
    return value


def _float(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < MAX_INT:
        raise TypeError("a number that is none")
    return float(value)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_INT:
        raise TypeError("a count that is none")
    return value


def _is_header(header: Any) -> bool:
    """Whether what is read of it later is there."""
    model, options = header["model"], header["options"]
    files = model.get("files") if isinstance(model, dict) else None
    return (
        isinstance(model, dict)
        and isinstance(options, dict)
        and all(isinstance(model.get(key), str) for key in ("name", "dtype", "device"))
        and model["dtype"] in TOLERANCE
        and isinstance(files, dict)
        and isinstance(model.get("tokenizer_sha256"), dict)
        and isinstance(header.get("versions"), dict)
        and type(header.get("seed")) is int
        and isinstance(model.get("revision"), str | None)
        and all(isinstance(file, dict) and "header_sha256" in file for file in files.values())
        and all(_are_texts(options.get(name, [])) for name in CHANGES)
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
