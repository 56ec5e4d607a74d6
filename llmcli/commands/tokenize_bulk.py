"""Ids, or their number: inputs of any size, never held whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from llmcli.commands.say import say
from llmcli.commands.tokenize_request import Input, Request, each, inputs, text_of
from llmcli.errors import shown_path
from llmcli.hub import resolve
from llmcli.tokenizing.source import Source

if TYPE_CHECKING:
    from llmcli.tokenizing.bulk import Encoder, Part


def run(request: Request) -> None:
    given = inputs(request)
    bulk = Bulk(Source.from_folder(resolve(request.model, tokenizer_only=True)), request)
    if request.format == "count":
        bulk.print_counts(given)
    else:
        each(given, bulk.print_ids)


class Bulk:
    """The work on streams of one call."""

    def __init__(self, source: Source, request: Request) -> None:
        self.source, self.request = source, request
        self.errors = request.errors or "strict"
        self.said = False  # that inputs are read whole

    @cached_property
    def encoder(self) -> Encoder:
        """What large inputs need; a word does not wait for it."""
        from llmcli.tokenizing.bulk import Encoder, Job

        request = self.request
        return Encoder(Job(self.source, request.special, request.delimiter, self.errors))

    def each_part(self, blocks: Iterable[bytes], work: str) -> Iterator[tuple[Part, Any]]:
        """Each part of an input, and what the encoder's `ids` or `count` makes of it."""
        from llmcli.tokenizing.bulk import in_order, parts

        why = self.encoder.job.cut()
        if isinstance(why, str) and not self.request.quiet and not self.said:
            say(f"Inputs are read whole: {why}.")
            self.said = True
        workers = self.request.workers or n_cores()
        work_on = getattr(self.encoder, work)
        yield from in_order(work_on, parts(blocks, self.encoder.job), workers)

    def print_ids(self, input: Input) -> None:
        """The input's ids on a line."""
        blocks, small = _peeked(input)
        if small is not None and not self.request.delimiter:
            print(*self._encode(small))
            return
        between, end = "", ""
        try:
            for _, ids in self.each_part(blocks, "ids"):
                if len(ids):
                    sys.stdout.write(between + " ".join(map(str, ids.tolist())))
                    between, end = " ", "\n"
            end = "\n"
        finally:
            sys.stdout.write(end)  # after an error too, if ids were printed

    def n_tokens(self, input: Input) -> int:
        blocks, small = _peeked(input)
        if small is not None and not self.request.delimiter:
            return len(self._encode(small))
        return sum(count for _, count in self.each_part(blocks, "count"))

    def _encode(self, data: bytes) -> list[int]:
        """The ids of a small input, without the machinery for large ones."""
        return self.source.ids(text_of(data, self.errors, 0), self.request.special)

    def print_counts(self, given: list[Input]) -> None:
        """The number of tokens of each input, as soon as it is known."""
        tally = Tally(self.request)

        def work(input: Input) -> None:
            tally.add(self.n_tokens(input), input)
            sys.stdout.flush()

        each(given, work, tally.end)


class Tally:
    """Numbers of tokens as `wc` would print them: of files, and a total; bare ones of all else."""

    def __init__(self, request: Request) -> None:
        self.files = request.files
        self.several = request.files and len(request.texts) > 1
        self.total = 0

    def add(self, count: int, input: Input, line: int | None = None) -> None:
        """Print that of an input, or of a line of it."""
        self.total += count
        named = self.files and input.name != "-"
        name = f" {shown_path(input.name)}" if named else ""
        where = f":{line}" if named and line is not None else ""
        print(f"{count:>{9 if named or self.several else 0}}{name}{where}")

    def end(self) -> None:
        if self.several:
            print(f"{self.total:>9} total")


def _peeked(input: Input) -> tuple[Iterator[bytes], bytes | None]:
    """The input's blocks, and all of it where it is no more than one block."""
    blocks = input.blocks()
    first, second = next(blocks, b""), next(blocks, None)
    if second is None:
        return iter((first,) if first else ()), first
    return chain((first, second), blocks), None


def n_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
