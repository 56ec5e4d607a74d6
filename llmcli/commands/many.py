"""`generate --prompts`: many prompts in batches, results as JSON lines, resumable.

Prompts of like length share a batch, so that little of it is padding. Results come in the order of
the input: on stdout as soon as those before are done; in `--out` each batch is appended as it is
done, and the file is put in order at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.commands.changes import Changes, patches_of, tap_for
from llmcli.commands.files import regular, replacing, writing
from llmcli.commands.generate_options import Inputs
from llmcli.commands.input import name_of, read_file
from llmcli.commands.job import Job, Runner, prompt_ids
from llmcli.commands.options import Compute, DType
from llmcli.commands.say import say
from llmcli.commands.traced import Tracing, hashes, traced
from llmcli.commands.writers import drawn_json
from llmcli.errors import IntegrityError, ResourceError, UsageError, shown, shown_path
from llmcli.streaming import Sample
from llmcli.strict_json import strict
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.gpt.model import GPT
    from llmcli.gpt.tap import Tap

SCHEMA = 1
BEGINNING = f'{{"schema": {SCHEMA}, "id": '.encode()  # of each result
MAX_PROMPTS_NBYTES = 256 << 20
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of the file: where it stands, counted from 0, what it is called, what it says."""

    index: int
    id: str | int
    prompt: str


def read_prompts(path: Path) -> list[Item]:
    """The prompts of a file, or of stdin (-): JSON lines if a brace comes first, else one a line.

    Raises NotFoundError for a file that cannot be read, UsageError, naming the line, for one that
    makes no sense. Empty lines are left out; an id that is not given is the line's number from 0.
    """
    example = "Name a file of prompts, one a line: --prompts prompts.txt"
    text, name = read_file(path, MAX_PROMPTS_NBYTES, example, dash=True), name_of(path)
    is_jsonl = text.lstrip()[:1] == "{"
    if text.lstrip()[:1] == "[" and _is_json(text):
        raise UsageError(
            f"{name} is one JSON array.", 'Write an object a line: {"prompt": "Once upon a time"}'
        )
    items = [
        _item(name, index, line) if is_jsonl else Item(index, index, line.removesuffix("\r"))
        for index, line in enumerate(text.split("\n"))
        if line.strip()
    ]
    if not items:
        raise UsageError(f"{name} holds no prompt.", "Write one a line.")
    seen: set[str | int] = set()
    for item in items:
        if item.id in seen:
            raise UsageError(
                f"{name}, line {item.index + 1}: the id {shown(repr(item.id))} comes twice.",
                "Give each prompt an id of its own, or none.",
            )
        seen.add(item.id)
    return items


def _is_json(text: str | bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _item(name: str, index: int, line: str) -> Item:
    where = f"{name}, line {index + 1}"
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where} is not JSON, as a brace at the file's beginning promises.",
            'An object a line, also for texts that begin with a brace: {"prompt": "{ x"}',
        ) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("prompt"), str):
        raise UsageError(
            f"{where} has no text under the key 'prompt'.", 'For example: {"prompt": "Once"}'
        )
    id = index if raw.get("id") is None else raw["id"]
    if type(id) not in (str, int):
        raise UsageError(
            f"{where}: the id is neither text nor a whole number.",
            'For example: {"id": 7, "prompt": "Once"}',
        )
    if isinstance(id, str) and not id.isascii() and SURROGATE.search(id):
        raise UsageError(
            f"{where}: the id holds half a character, which no output can repeat.",
            'For example: {"id": "seven", "prompt": "Once"}',
        )
    return Item(index, id, raw["prompt"])


class Results:
    """Where records go: in the input's order to stdout, or batch by batch to a file.

    A record counts as finished only under the same `key`, a hash of all that its text depends on.
    """

    def __init__(
        self, items: Sequence[Item], keys: dict[str | int, str], path: Path | None, num_samples: int
    ) -> None:
        self.items, self.keys, self.num_samples = items, keys, num_samples
        self.path = path
        self.done: dict[str | int, list[dict[str, Any]]] = {}  # every sample of each
        self.shown = 0
        self.in_order = path is None or self._resume(path)

    def add(self, batch: Sequence[tuple[Item, list[dict[str, Any]]]]) -> None:
        """Keep a finished batch; a kill from now on does not lose it."""
        self.done.update((item.id, records) for item, records in batch)
        if self.path is not None:
            self.in_order = False
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.writelines(strict(r) + "\n" for _, records in batch for r in records)
                file.flush()
                os.fsync(file.fileno())
            return
        while self.shown < len(self.items) and self.items[self.shown].id in self.done:
            for record in self.done.pop(self.items[self.shown].id):
                sys.stdout.write(strict(record) + "\n")
            self.shown += 1
        sys.stdout.flush()

    def close(self) -> None:
        """Tell on stdout what is done and waited for others: there are no more of them."""
        for item in self.items if self.path is None else ():
            for record in self.done.pop(item.id, []):
                sys.stdout.write(strict(record) + "\n")
        sys.stdout.flush()

    def put_in_order(self) -> None:
        """Give the file its finished records alone, in the order of the input, in one move.

        Raises ResourceError, which leaves it as it is, where the disk has no room for two of it.
        """
        if self.path is None or self.in_order:
            return
        try:
            with replacing(self.path) as file:
                for item in self.items:
                    for record in self.done.get(item.id, []):
                        file.write(f"{strict(record)}\n".encode())
        except ResourceError as error:
            raise ResourceError(
                f"{shown_path(self.path)} holds what is done, but the disk has no room to put it "
                "in order.",
                "Free as much again, and run the same command.",
            ) from error
        self.in_order = True

    def _resume(self, path: Path) -> bool:
        """Read what an earlier run finished: whether it is in order, and nothing else is there.

        The file, which is left as it is, can be written: that is made sure of.
        """
        regular(path)
        with writing(path), path.open("a+b") as file:
            file.seek(0)
            lines = file.readlines()
        whole = not lines or lines[-1].endswith(b"\n")
        if not whole and _was_cut_off(lines[-1]):
            lines.pop()
        found: dict[str | int, dict[int, dict[str, Any]]] = {}  # id -> sample -> record
        order = []
        for number, line in enumerate(lines, 1):
            record = self._record(path, number, line)
            found.setdefault(record["id"], {})[record["sample"]] = record  # of two the last counts
            order.append((record["id"], record["sample"]))
        for id, samples in found.items():
            if len(samples) == self.num_samples:
                self.done[id] = [samples[sample] for sample in sorted(samples)]
        done = [item.id for item in self.items if item.id in self.done]
        return whole and order == [(id, s) for id in done for s in range(self.num_samples)]

    def _record(self, path: Path, number: int, line: bytes) -> dict[str, Any]:
        """One result of an earlier run. Raises IntegrityError where it is none of these prompts."""
        where = f"{shown_path(path)}, line {number}"
        try:
            record: dict[str, Any] = json.loads(line)
            id, sample, key = record["id"], record["sample"], record["key"]
            known = type(id) in (str, int) and type(sample) is int and id in self.keys
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            raise IntegrityError(
                f"{where}, is no result of these prompts.",
                "Give --out another file, or remove this one.",
            )
        if key != self.keys[id] or not 0 <= sample < self.num_samples:
            raise IntegrityError(
                f"{where}, is the result of another prompt, model, seed, option or vector file, or "
                "of another version of llmcli.",
                "Give --out another file, or the same prompts and options as before.",
            )
        return record


def _was_cut_off(line: bytes) -> bool:
    """Whether a kill may have left this of a result."""
    ours = line.startswith(BEGINNING) or BEGINNING.startswith(line)
    return ours and not _is_json(line)


def first_seed(path: Path | None) -> int | None:
    """The seed of the first record in the file, if there is one: what an earlier run drew."""
    if path is None or not os.path.isfile(path):  # to read a pipe or a device may never end
        return None
    try:
        with path.open("rb") as file:
            seed = json.loads(file.readline())["seed"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return seed if type(seed) is int and seed >= 0 else None


def key_of(job: Job, item: Item, ids: Sequence[int], computed: Sequence[Any]) -> str:
    """A hash of all that the record of `item` depends on; of weights, of samples of them."""
    depends: list[Any] = [
        item.index, list(ids), job.seed, job.options, sorted(job.hidden_ids), job.top_probs or 0,
        computed,
    ]  # fmt: skip
    return hashlib.sha256(strict(depends).encode()).hexdigest()[:16]


def how_computed(
    job: Job, compute: Compute, batch_size: int, num_samples: int, changes: Changes
) -> list[Any]:
    """What all records of a run depend on beside its job."""
    opened = job.opened
    # As it was asked for: to find out what auto stands for would import torch.
    exact = compute.quantize is None and compute.dtype in (DType.auto, DType.float32)
    return [
        opened.revision, asdict(opened.config), hashes(opened),
        compute.device, compute.dtype, compute.quantize, num_samples,
        None if exact else batch_size,  # what is rounded depends on what it is computed beside
        *([dict(changes.words), changes.hashes()] if changes else []),
    ]  # fmt: skip


def batches(
    items: Sequence[tuple[Item, list[int]]], batch_size: int
) -> Iterator[list[tuple[Item, list[int]]]]:
    """`items`, each with its ids, in batches of prompts of like length, the longest first.

    The longest first: if memory is short, that shows at once and not at the end.
    """
    ordered = sorted(items, key=lambda pair: -len(pair[1]))
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def run_many(
    job: Job,
    compute: Compute,
    inputs: Inputs,
    changes: Changes,
    tracing: Tracing | None,
    keep_seed: bool,
    quiet: bool,
) -> None:
    """Generate for all prompts that `--out` does not hold yet, one batch after another.

    Without `keep_seed` the seed is that of the results there are.
    """
    assert inputs.prompts is not None
    out, num_samples, batch_size = inputs.out, inputs.num_samples, inputs.batch_size or 16
    changes.check_for_many()
    items = read_prompts(inputs.prompts)
    if not keep_seed and (drawn := first_seed(out)) is not None:
        job = replace(job, seed=drawn)
    encoded = _encode_all(job, items, inputs.truncate_prompt, quiet)
    computed = how_computed(job, compute, batch_size, num_samples, changes)
    keys = {item.id: key_of(job, item, encoded[item.id], computed) for item in items}
    results = Results(items, keys, out, num_samples)
    todo = [(item, encoded[item.id]) for item in items if item.id not in results.done]
    if not todo:
        results.put_in_order()
        if not quiet:
            say("All results are there" + (": no trace is written." if tracing else "."))
        return
    if tracing and results.done and tracing.path.exists():
        raise UsageError(
            f"{shown_path(tracing.path)} is there already, and some results are done.",
            "Give --trace another name: the trace will hold what is still to do.",
        )
    lengths = [len(ids) for _, ids in todo]
    n_rows, once = min(batch_size, len(todo)) * num_samples, len(todo) <= batch_size
    model = job.load(compute, lengths, n_rows, once, quiet)
    some = todo[0][1]  # the changes are the same for any of them
    patch = patches_of(changes.plan(job.opened, some), model, some, quiet)
    tap = tap_for(patch, model, tracing.points if tracing else ())
    results.put_in_order()  # what could not run has left the file as it was
    started, n_done, n_filled = time.perf_counter(), 0, 0
    n_tokens: list[int] = []  # of each text
    names = {item.index: item.id for item in items}
    with closing(results), traced(job, tracing, model, changes, tap, names) as run:
        for batch in batches(todo, batch_size):
            records = run_batch(job, run, model, batch, keys, num_samples, tap)
            results.add([(item, records[item.id]) for item, _ in batch])
            n_done += len(batch)
            made = [record for of_one in records.values() for record in of_one]
            n_tokens += [record["n_tokens"] for record in made]
            n_filled += sum(job.filled(r["finish_reason"], r["n_tokens"]) for r in made)
            if not quiet:
                rate = sum(n_tokens) / (time.perf_counter() - started)
                say(f"{n_done} of {plural(len(todo), 'prompt')}, {rate:.0f} tok/s")
    results.put_in_order()
    if n_filled and not quiet:
        n_ctx = job.opened.config.n_ctx
        ends = f"{plural(n_filled, 'text')} end{'s' * (n_filled == 1)}"
        say(f"{ends} where the context of {n_ctx} tokens is full.")
    if (unreached := job.unreached(n_tokens)) and not quiet:
        say(unreached)


def run_batch(
    job: Job,
    run: Runner,
    model: GPT,
    batch: Sequence[tuple[Item, list[int]]],
    keys: dict[str | int, str],
    num_samples: int,
    tap: Tap,
) -> dict[str | int, list[dict[str, Any]]]:
    """One batch's records by id: a function of its arguments, so that anyone may compute it."""
    rows = [(item, ids, number) for item, ids in batch for number in range(num_samples)]
    streams = job.streams(len(rows))
    samples = [Sample() for _ in rows]
    prompts = [ids for _, ids, _ in rows]
    for piece in run(model, prompts, [(i.index, s) for i, _, s in rows], streams, tap):
        samples[piece.step.row].pieces.append(piece)
    records: dict[str | int, list[dict[str, Any]]] = {item.id: [] for item, _ in batch}
    for (item, ids, number), sample in zip(rows, samples, strict=True):
        record: dict[str, Any] = {
            "schema": SCHEMA, "id": item.id, "sample": number, "key": keys[item.id],
            "seed": job.seed, "text": sample.text, "finish_reason": sample.finish_reason,
            "n_prompt": len(ids), "n_tokens": len(sample.pieces),
        }  # fmt: skip
        if job.top_probs:
            record["tokens"] = [drawn_json(piece.step, job.opened) for piece in sample.pieces]
        records[item.id].append(record)
    return records


def _encode_all(
    job: Job, items: Sequence[Item], truncate: str | None, quiet: bool
) -> dict[str | int, list[int]]:
    """The ids of each prompt, all before the first is run: a mistake is told at once."""
    encoded: dict[str | int, list[int]] = {}
    cut: list[str] = []
    for item in items:
        try:
            ids = prompt_ids(job.opened, item.prompt, truncate, cut.append, job.max_new_tokens)
            job.check_forced(len(ids))
        except UsageError as error:
            raise UsageError(
                f"Prompt {shown(repr(item.id))}: {error.fact}", error.remedy
            ) from error
        encoded[item.id] = ids
    if cut and not quiet:
        say(f"Cut to what the context holds: {len(cut)} of {plural(len(items), 'prompt')}.")
    return encoded
