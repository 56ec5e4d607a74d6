"""A corpus as a file of ids, and the JSON beside it that says what it is made from."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from llmcli import __version__
from llmcli.commands.files import refuse_inputs, regular, replacing
from llmcli.commands.say import say
from llmcli.commands.tokenize_bulk import Bulk
from llmcli.commands.tokenize_request import Input, Request, each, inputs
from llmcli.errors import NotFoundError, UsageError, shown_path
from llmcli.hub import resolve, revision_of
from llmcli.strict_json import strict
from llmcli.tokenizer_file import tokenizer_sha256
from llmcli.tokenizing.output import TokenFile, dtype_for
from llmcli.tokenizing.source import Source
from llmcli.units import sized

SCHEMA = 1
BEGINNING = b'{"schema": '  # of what stands beside the ids
TICK_S = 0.2  # between two looks at the progress


def run(request: Request) -> None:
    given, out = inputs(request), request.out
    assert out is not None
    folder = resolve(request.model, tokenizer_only=True)
    read = [Path(str(input.name)) for input in given if input.name not in (None, "-")]
    for option, path in (("--out", out), ("Beside --out", sidecar_of(out))):
        regular(path)
        refuse_inputs(option, path, read)
        refuse_inputs(option, path, folder.iterdir(), "the model consists of")
    _refuse_strangers(sidecar_of(out))
    write(Bulk(Source.from_folder(folder), request), given, out)


def _refuse_strangers(sidecar: Path) -> None:
    """Raises UsageError where the file that nobody named is there already, and not one of ours."""
    try:
        with sidecar.open("rb") as file:
            start = file.read(len(BEGINNING))
    except OSError:  # there is none, or to write it says why not
        return
    if start and start != BEGINNING:
        raise UsageError(
            f"Beside --out, {shown_path(sidecar)} is there already, and not by this command.",
            "Name another --out.",
        )


def write(bulk: Bulk, given: list[Input], out: Path) -> None:
    """The ids of all inputs, each document ended by the end-of-text id, under the name `out`.

    A file that cannot be read is said and left out; bytes that are not UTF-8 end it all.
    """
    dtype = dtype_for(bulk.source.tokenizer.vocab_size)
    meter = Meter(sum(input.nbytes() for input in given), bulk.request.quiet)
    with replacing(out) as file:
        written = TokenFile(file, dtype, npy=out.suffix == ".npy")
        corpus = Corpus(bulk, written, meter)
        code = 0
        try:
            each(given, corpus.add, skip=(NotFoundError,))
        except typer.Exit as failed:  # of an input that cannot be read; the others are in
            code = failed.exit_code
        finally:
            elapsed_s = meter.end()
        if not corpus.inputs:
            raise typer.Exit(code)
        written.finish()
        facts = corpus.facts(out, dtype)
        with replacing(sidecar_of(out)) as sidecar:
            sidecar.write((strict(facts) + "\n").encode())
    if bulk.request.format == "json":
        print(strict(facts))
    if not bulk.request.quiet:
        speed = facts["bytes"] / max(elapsed_s, 1e-9)
        say(
            f"{shown_path(out)}: {facts['tokens']:,} tokens ({dtype}) "
            f"of {facts['documents']:,} document{'s' * (facts['documents'] != 1)}, "
            f"{sized(facts['bytes'])} in {elapsed_s:.1f} s, {sized(speed)}/s",
        )
    if code:
        raise typer.Exit(code)


class Corpus:
    """What has been written so far, and of which inputs."""

    def __init__(self, bulk: Bulk, written: TokenFile, meter: Meter) -> None:
        self.bulk, self.written, self.meter = bulk, written, meter
        self.inputs: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.n_documents = 0

    def add(self, input: Input) -> None:
        """The input's ids, and the end-of-text id unless it ends with one."""
        import numpy as np

        digest, start = hashlib.sha256(), self.written.n_tokens
        delimiter = self.bulk.request.delimiter
        n_bytes = n_documents = 0
        open_document = False  # whether the last one still lacks its end
        blocks = hashed(input.blocks(), digest, self.meter.add)
        try:
            for part, ids in self.bulk.each_part(blocks, "ids"):
                self.written.append(ids)
                n_bytes += len(part.data)
                n_documents += part.data.count(delimiter) if delimiter else 0
                open_document = bool(part.data.split(delimiter)[-1] if delimiter else n_bytes)
        except NotFoundError:
            self.written.rewind(start)
            self.skipped.append(input.name or "")
            raise
        if open_document:
            n_documents += 1
            self.written.append(np.array(self.bulk.encoder.end(ids), np.uint32))
        self.n_documents += n_documents
        self.inputs.append({
            "name": input.name, "bytes": n_bytes, "sha256": digest.hexdigest(),
            "documents": n_documents, "first_token": start,
            "tokens": self.written.n_tokens - start,
        })  # fmt: skip

    def facts(self, out: Path, dtype: str) -> dict[str, Any]:
        """What the file beside the ids says."""
        bulk, request, source = self.bulk, self.bulk.request, self.bulk.source
        return {
            "schema": SCHEMA,
            "llmcli": __version__,
            "file": out.name,
            "format": "npy" if out.suffix == ".npy" else "raw, little-endian",
            "dtype": dtype,
            "tokens": self.written.n_tokens,
            "documents": self.n_documents,
            "bytes": sum(each["bytes"] for each in self.inputs),
            "model": request.model,
            "revision": revision_of(source.folder),
            "tokenizer_sha256": tokenizer_sha256(source.folder),
            "vocab_size": source.tokenizer.vocab_size,
            "end_of_text_id": source.tokenizer.eot_id,
            "document_delimiter": request.delimiter.decode("utf-8", "replace") or None,
            "special": request.special,
            "errors": bulk.errors,
            "inputs": self.inputs,
            "skipped": self.skipped,
        }


class Meter:
    """Progress on stderr, where that is a terminal: share, size, speed, time left."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.done = total, 0
        self.started = self.shown = time.monotonic()
        self.live = sys.stderr.isatty() and not quiet

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        now = time.monotonic()
        if self.live and now - self.shown > TICK_S:
            self.shown = now
            sys.stderr.write(f"\r\x1b[2K{self.line(now - self.started)}")
            sys.stderr.flush()

    def line(self, elapsed_s: float) -> str:
        speed = self.done / max(elapsed_s, 1e-9)
        text = f"{sized(self.done)}  {sized(speed)}/s"
        if self.total <= self.done:
            return text
        left_s = round((self.total - self.done) / max(speed, 1e-9))
        return f"{self.done / self.total:4.0%}  {text}  {left_s // 60}:{left_s % 60:02} left"

    def end(self) -> float:
        """Clear the line: the seconds that it all took."""
        if self.live:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        return time.monotonic() - self.started


def hashed(
    blocks: Iterable[bytes], digest: hashlib._Hash, seen: Callable[[int], None]
) -> Iterator[bytes]:
    """The blocks, each added to `digest` and its size told to `seen`."""
    for block in blocks:
        digest.update(block)
        seen(len(block))
        yield block


def sidecar_of(out: Path) -> Path:
    return out.with_name(out.name + ".json")
