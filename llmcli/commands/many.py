"""`generate --prompts`: many prompts in batches, results as JSON lines, resumable.

Prompts of like length share a batch, so that little of it is padding. Results come in the order of
the input: on stdout as soon as those before are done; in `--out` each batch is appended as it is
done, and the file is put in order at the end.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.commands.job import Job, prompt_ids
from llmcli.commands.loading import Place, load
from llmcli.commands.writers import as_json
from llmcli.errors import IntegrityError, NotFoundError, UsageError, shown
from llmcli.render.json import strict

if TYPE_CHECKING:
    from llmcli.gpt.generation import Step
    from llmcli.gpt.model import GPT

SCHEMA = 1
MAX_PROMPTS_NBYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of the file: where it stands, counted from 0, what it is called, what it says."""

    index: int
    id: str | int
    prompt: str


def read_prompts(path: Path) -> list[Item]:
    """The prompts of a file: JSON lines if its first character is a brace, else one a line.

    Raises NotFoundError for a file that cannot be read, UsageError, naming the line, for one that
    makes no sense. Empty lines are left out; an id that is not given is the line's number from 0.
    """
    try:
        if path.stat().st_size > MAX_PROMPTS_NBYTES:
            raise UsageError(f"{shown(str(path), 4096)} is larger than 1 GiB.", "Split it.")
        data = path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"{shown(str(path), 4096)} cannot be read: {error.strerror}."
        ) from error
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{shown(str(path), 4096)} is not UTF-8 at offset {error.start}."
        ) from error
    is_jsonl = data.lstrip()[:1] == b"{"
    items = [
        _item(path, index, line) if is_jsonl else Item(index, index, line.removesuffix("\r"))
        for index, line in enumerate(lines)
        if line.strip()
    ]
    if not items:
        raise UsageError(f"{shown(str(path), 4096)} holds no prompt.")
    seen: set[str | int] = set()
    for item in items:
        if item.id in seen:
            raise UsageError(
                f"{shown(str(path), 4096)}, line {item.index + 1}: the id {item.id!r} comes twice."
            )
        seen.add(item.id)
    return items


def _item(path: Path, index: int, line: str) -> Item:
    where = f"{shown(str(path), 4096)}, line {index + 1}"
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON.", "One object a line, or plain text.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("prompt"), str):
        raise UsageError(f"{where} has no text under the key 'prompt'.")
    id = raw.get("id", index)
    if type(id) not in (str, int):
        raise UsageError(f"{where}: the id is neither text nor a whole number.")
    return Item(index, id, raw["prompt"])


class Results:
    """Where records go: in the input's order to stdout, or batch by batch to a file."""

    def __init__(self, items: Sequence[Item], path: Path | None, num_samples: int) -> None:
        self.items, self.path, self.num_samples = items, path, num_samples
        self.done: dict[str | int, list[dict[str, Any]]] = {}
        self.shown = 0
        if path is not None:
            self._resume(path)  # and be sure, before anything is computed, that it can be written

    @property
    def seed(self) -> int | None:
        """The seed of the records that were there already."""
        return next((record["seed"] for records in self.done.values() for record in records), None)

    def add(self, batch: Sequence[tuple[Item, list[dict[str, Any]]]]) -> None:
        """Keep a finished batch; a kill from now on does not lose it."""
        self.done.update((item.id, records) for item, records in batch)
        if self.path is not None:
            lines = [strict(record) + "\n" for _, records in batch for record in records]
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise  # the disk is full: said in one place for all commands
                raise _unwritable(self.path, error) from error
            return
        while self.shown < len(self.items) and self.items[self.shown].id in self.done:
            for record in self.done.pop(self.items[self.shown].id):
                sys.stdout.write(strict(record) + "\n")
            self.shown += 1
        sys.stdout.flush()

    def close(self) -> None:
        """Put the file's records into the order of the input, in one move."""
        if self.path is None:
            return
        part = self.path.with_name(self.path.name + ".part")
        try:
            with part.open("w", encoding="utf-8") as file:
                for item in self.items:
                    for record in self.done.get(item.id, []):
                        file.write(strict(record) + "\n")
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)

    def _resume(self, path: Path) -> None:
        """Read what an earlier run finished; a last line cut off by a kill is taken away."""
        known = {item.id for item in self.items}
        if path.exists() and not path.is_file():  # to read a device may never end
            raise UsageError(f"--out {shown(str(path), 4096)} is not a regular file.")
        try:
            with path.open("a+b") as file:
                file.seek(0)
                whole = 0
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        break
                    self._take(path, number, line, known)
                    whole += len(line)
                file.truncate(whole)
                self.done = {  # a kill may have come between the samples of one prompt
                    id: rows for id, rows in self.done.items() if len(rows) == self.num_samples
                }
        except OSError as error:
            raise _unwritable(path, error) from error

    def _take(self, path: Path, number: int, line: bytes, known: set[str | int]) -> None:
        try:
            record = json.loads(line)
            id, ok = record["id"], isinstance(record["text"], str) and type(record["seed"]) is int
        except (ValueError, KeyError, TypeError, RecursionError):
            ok = False
        if not ok or id not in known:
            raise IntegrityError(
                f"{shown(str(path), 4096)}, line {number}, is no result of these prompts.",
                "Give --out another file, or remove this one.",
            )
        self.done.setdefault(id, []).append(record)


def _unwritable(path: Path, error: OSError) -> NotFoundError:
    return NotFoundError(f"{shown(str(path), 4096)} cannot be written: {error.strerror}.")


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
    place: Place,
    path: Path,
    out: Path | None,
    truncate: str | None,
    batch_size: int,
    num_samples: int,
    keep_seed: bool,
    quiet: bool,
) -> None:
    """Generate for all prompts in `path` that `out` does not hold yet, a batch after the other."""
    items = read_prompts(path)
    results = Results(items, out, num_samples)
    if results.seed is not None and not keep_seed:
        job = replace(job, seed=results.seed)  # what an earlier run drew
    todo = [item for item in items if item.id not in results.done]
    encoded = _encode_all(job, todo, truncate)
    if todo:
        longest = max(map(len, encoded)) + job.max_new_tokens
        model = load(job.opened, place, batch_size * num_samples, longest)
    started, n_done, n_tokens = time.perf_counter(), 0, 0
    for batch in batches(list(zip(todo, encoded, strict=True)), batch_size):
        records = run_batch(job, model, batch, num_samples)
        results.add([(item, records[item.id]) for item, _ in batch])
        n_done += len(batch)
        n_tokens += sum(record["n_tokens"] for rows in records.values() for record in rows)
        if not quiet:
            rate = n_tokens / (time.perf_counter() - started)
            print(f"{n_done} of {len(todo)} prompts, {rate:.0f} tok/s", file=sys.stderr)
    results.close()


def run_batch(
    job: Job, model: GPT, batch: Sequence[tuple[Item, list[int]]], num_samples: int = 1
) -> dict[str | int, list[dict[str, Any]]]:
    """One batch's records by id: a function of its arguments, so that anyone may compute it."""
    rows = [(item, ids, sample) for item, ids in batch for sample in range(num_samples)]
    streams = job.streams(len(rows))
    texts = [""] * len(rows)
    tokens: list[list[Step]] = [[] for _ in rows]
    reasons: list[str | None] = [None] * len(rows)
    prompts = [ids for _, ids, _ in rows]
    for piece in job.run(model, prompts, [(i.index, s) for i, _, s in rows], streams):
        row = piece.step.row
        texts[row] += piece.text
        tokens[row].append(piece.step)
        reasons[row] = piece.finish_reason
    records: dict[str | int, list[dict[str, Any]]] = {item.id: [] for item, _ in batch}
    for row, (item, ids, sample) in enumerate(rows):
        record: dict[str, Any] = {
            "schema": SCHEMA, "id": item.id, "sample": sample, "seed": job.seed,
            "text": texts[row], "finish_reason": reasons[row], "n_prompt": len(ids),
            "n_tokens": len(tokens[row]),
        }  # fmt: skip
        if job.top_probs:
            record["tokens"] = [
                {"step": step.index, **as_json(step, job.opened.tokenizer)} for step in tokens[row]
            ]
        records[item.id].append(record)
    return records


def _encode_all(job: Job, items: Sequence[Item], truncate: str | None) -> list[list[int]]:
    """The ids of each prompt, all before the first is run: a mistake is told at once."""
    encoded = []
    for item in items:
        try:
            encoded.append(prompt_ids(job.opened, item.prompt, truncate))
        except UsageError as error:
            raise UsageError(f"Prompt {item.id!r}: {error.fact}", error.remedy) from error
    return encoded
