"""A recorded run brought back: its model, found again and compared, its options and changes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcli.commands.files import sha256_of, tell_damage
from llmcli.commands.job import Job
from llmcli.commands.loading import MAX_BIAS, Opened, open_model
from llmcli.commands.options import Compute, Interventions, stored_as
from llmcli.commands.traced import hashes
from llmcli.config import MIN_TEMPERATURE, RANGES, Sampling
from llmcli.errors import IntegrityError, UsageError, shown, shown_path
from llmcli.trace import CHANGES, Reader, Record, records
from llmcli.trace_lines import MAX_INT, Step


@dataclass(frozen=True)
class PastRun:
    """The texts of a trace, with the model that made them."""

    path: Path  # of the trace
    header: Mapping[str, Any]
    records: dict[int, Record]
    opened: Opened
    holed: bool  # whether a step of these texts, or a whole text, cannot be read

    @property
    def name(self) -> str:
        """What to call the trace."""
        return shown_path(self.path)

    @property
    def dtype(self) -> str:
        return str(self.header["model"]["dtype"])

    @property
    def sampling(self) -> Sampling:
        """How its tokens were drawn."""
        options = self.header["options"]
        with _header_of(self.name):
            if 0 < _within(options["temperature"], 0.0, math.inf) < MIN_TEMPERATURE:
                raise ValueError(f"temperature {options['temperature']}")
            bias = tuple((self._drawable(id), _bias(value)) for id, value in options["bias"])
            numbers: dict[str, Any] = {
                name: _within(options[name], *RANGES[name]) for name in RANGES
            }
            return Sampling(bias=bias, **numbers)

    @property
    def record(self) -> Record:
        """The text, where one was asked for; of several the first."""
        return next(iter(self.records.values()))

    @property
    def job(self) -> Job:
        """What drew the text; of several the first."""
        options = self.header["options"]
        forced = options.get("force", ())
        with _header_of(self.name):
            stop_ids = frozenset(map(self._id, options["stop_ids"]))
            hidden_ids = frozenset(map(self._id, options["hidden_ids"]))
            keep_stop, eos_ids = bool(options["keep_stop"]), frozenset(self.opened.config.eos_ids)
            if keep_stop:
                eos_ids = hidden_ids
            elif not eos_ids <= stop_ids:
                eos_ids = frozenset()  # they were ignored
            return Job(
                self.opened, self.sampling, self.header["seed"],
                int(_within(options["max_new_tokens"], 1, math.inf)),
                eos_ids=eos_ids, stop_ids=stop_ids - eos_ids,
                stops=tuple(map(str, options["stop"])), keep_stop=keep_stop,
                forced={int(_within(step, 0, MAX_INT)): self._drawable(id) for step, id in forced},
                use_cache=bool(options["cache"]), draw=self.record.begun.draw,
            )  # fmt: skip

    def _id(self, value: Any) -> int:
        """One of the model's ids, or ValueError."""
        return int(_within(value, 0, self.opened.config.vocab_size - 1))

    def _drawable(self, value: Any) -> int:
        """One of the ids that have a token, or ValueError."""
        if value not in self.opened.tokenizer.bytes_of:
            raise ValueError(f"{shown(repr(value), 40)} is no token's id")
        return self._id(value)

    def interventions(self, given: Interventions) -> Interventions:
        """What to change: what is `given`, where anything is, else what was.

        Raises IntegrityError where a file that it was read from is another now.
        """
        if given != Interventions():
            return given
        for path, hash in self.header.get("read", {}).items():
            if Path(path).is_file() and sha256_of(Path(path)) != hash:
                raise IntegrityError(
                    f"{self.name} was recorded with another {shown_path(path)} than is here.",
                    "Put the file of then in its place.",
                )
        options = self.header["options"]
        reference = options.get("reference")
        return Interventions(
            **{name: options.get(name) for name in CHANGES},
            steer_prompt=bool(options.get("steer_prompt")),
            reference=None if reference is None else Path(str(reference)),
        )

    def compute(self, given: Compute, typed: Collection[str]) -> Compute:
        """Where to compute: with weights stored as recorded, unless another way was `typed`."""
        if not {"dtype", "quantize"}.isdisjoint(typed):
            return given
        dtype, quantize = stored_as(self.dtype)
        return replace(given, dtype=dtype, quantize=quantize)

    def check_readable(self, index: int) -> None:
        """Raises IntegrityError where a step before this one of the text, or it, is missing."""
        gap = self.record.gap
        if gap is not None and index >= gap:
            raise IntegrityError(
                f"{self.name} has no readable step {gap} of run {self.record.begun.run}: what came "
                "after cannot be computed again.",
                f"Choose a step below {gap}." if gap else "Record it again.",
            )  # fmt: skip

    def step(self, index: int) -> PastStep:
        """A step of the text. Raises UsageError where there is none, IntegrityError after a gap."""
        record, run = self.record, self.record.begun.run
        n = len(record.steps)
        self.check_readable(index)
        if not 0 <= index < n:
            raise UsageError(
                f"{self.name} has no step {index} in run {run}.",
                f"Its steps go from 0 to {n - 1}." if n else "It has none.",
            )
        return PastStep(self, record, record.steps[index])


@dataclass(frozen=True)
class PastStep:
    """One step of a trace, and what the model had read before it."""

    run: PastRun
    record: Record
    step: Step

    @property
    def options(self) -> tuple[str, ...]:
        """What names it on the command line."""
        run = self.record.begun.run
        which = ("--run", f"{run}") if run else ()
        return "--trace", str(self.run.path), *which, "--step", f"{self.step.index}"

    @property
    def prompt_ids(self) -> list[int]:
        return list(self.record.begun.ids)

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.record.ids[: self.step.index]

    @property
    def text(self) -> str:
        tokenizer = self.run.opened.tokenizer
        return tokenizer.decode(self.ids[len(tokenizer.prefix_ids) :])


def open_past(
    path: Path, run: int | None, model: str | None = None, quiet: bool = False
) -> PastRun:
    """The trace in `path`, or one `run` of it, with its model, or the one called `model`.

    Raises IntegrityError where that is not the model of the trace, saying what differs.
    """
    reader = Reader(path)
    found = records(reader, run)
    if not found:
        raise UsageError(f"{reader.name} has a header and no run.", "Record it again.")
    tell_damage(reader, quiet)
    opened = open_model(model or reader.header["model"]["name"])
    _check_same(reader, opened)
    for record in found.values():
        _check_ids(reader.name, record, opened)
    gaps = any(record.gap is not None for record in found.values())
    lost = run is None and any(not damage.is_end for damage in reader.damaged)
    return PastRun(path, reader.header, found, opened, gaps or lost)


def _check_same(reader: Reader, opened: Opened) -> None:
    recorded, here = reader.header["model"], hashes(opened)
    # What an older trace does not say of a file is taken to be as it is here.
    files = {name: here["files"].get(name, {}) | file for name, file in recorded["files"].items()}
    recorded = recorded | {"files": files}
    whats = {"files": "weights", "tokenizer_sha256": "tokenizer"}
    for key, what in whats.items():
        names = sorted(recorded[key].keys() | here[key].keys())
        for name in names:
            if recorded[key].get(name) != here[key].get(name):
                raise IntegrityError(
                    f"{reader.name} is of another model: {shown(recorded['name'])} had another "
                    f"{what} file {shown(name)} than {shown(opened.name)} has here.",
                    "Name the model that it was recorded with: -m FOLDER.",
                )


def _check_ids(name: str, record: Record, opened: Opened) -> None:
    begun, config = record.begun, opened.config
    if not begun.ids or len(begun.ids) + len(record.steps) > config.n_ctx + 1:
        raise IntegrityError(
            f"{name}, run {begun.run}: {len(begun.ids)} and {len(record.steps)} tokens do not "
            f"fit a context of {config.n_ctx}.", "The file is damaged.",
        )  # fmt: skip
    tokenizer = opened.tokenizer
    for id in {*begun.ids, *record.ids} - tokenizer.bytes_of.keys():
        raise IntegrityError(
            f"{name}, run {begun.run}: the id {id} is none of the tokenizer's {len(tokenizer)}.",
            "The file is damaged.",
        )


@contextmanager
def _header_of(name: str) -> Iterator[None]:
    """Options that are missing or make no sense are a damaged header, not a bug."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{name} has a damaged header: its options make no sense ({error}).",
            "Record it again.",
        ) from error


def _within(value: Any, low: float, high: float) -> float:
    """A number in its range, a whole one where `low` is; else ValueError."""
    whole = type(low) is int
    if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
        raise ValueError(f"{shown(repr(value), 40)} is not from {low} to {high}")
    return int(value) if whole else float(value)


def _bias(value: Any) -> float:
    return -math.inf if value is None else _within(value, -MAX_BIAS, MAX_BIAS)
