"""A text's tokens to look at, or as rows and JSON; texts cut short, or into chunks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from llmcli.commands.tokenize_bulk import Tally
from llmcli.commands.tokenize_request import Input, Record, Request, each, inputs, records
from llmcli.errors import UsageError, shown_path
from llmcli.hub import resolve, revision_of
from llmcli.render.text import decoded, harmless, quoted
from llmcli.strict_json import strict
from llmcli.tokenizer_file import tokenizer_sha256
from llmcli.tokenizing.rows import Row, Tokens, chunks, tokens, truncated
from llmcli.tokenizing.source import Source

if TYPE_CHECKING:
    from llmcli.commands.tokenize_compare import Compare

SCHEMA = 1
COLUMNS = (
    "index", "id", "token", "bytes", "byte_start", "byte_end", "char_start", "char_end", "special"
)  # fmt: skip


def run(request: Request) -> None:
    given = inputs(request)
    texts = Texts(Source.from_folder(resolve(request.model, tokenizer_only=True)), request)
    show, terminal = texts.shower(), sys.stdout.isatty()

    def work(input: Input) -> None:
        for record in records(input, request):
            show(record)
            if terminal:
                sys.stdout.flush()

    each(given, work, texts.end)


class Texts:
    """One call's work on texts, each whole in memory."""

    def __init__(self, source: Source, request: Request) -> None:
        self.source, self.request = source, request
        self.several = request.lines or len(request.texts) > 1
        self.tally = Tally(request)
        self.objects: list[dict[str, Any]] = []
        self.shown = 0
        self.compare: Compare | None = None

    def shower(self) -> Callable[[Record], None]:
        """What is done with each text."""
        request = self.request
        if request.truncate:
            return self.truncate
        if request.chunk:
            return self.chunk
        if request.merges or request.versus:
            from llmcli.commands.tokenize_compare import Compare

            self.compare = Compare(self)
            return self.compare.merges if request.merges else self.compare.versus
        ways = {"ids": self.ids, "count": self.count, "tokens": self.tokens, "table": self.table,
                "json": self.json, "jsonl": self.jsonl, None: self.picture}  # fmt: skip
        return ways[request.format if request.format or request.pictured else "ids"]

    def rows(self, record: Record) -> Tokens:
        return tokens(self.source, record.text, self.request.special)

    def ids(self, record: Record) -> None:
        print(*self._ids(record))

    def count(self, record: Record) -> None:
        self.tally.add(len(self._ids(record)), record.input, record.line)

    def _ids(self, record: Record) -> list[int]:
        return self.source.ids(record.text, self.request.special)

    def tokens(self, record: Record) -> None:
        print(*(quoted(row.bytes) for row in self.rows(record).rows))

    def table(self, record: Record) -> None:
        found = self.rows(record)
        if self.request.pictured:
            from llmcli.render.console import console
            from llmcli.render.tokenized import table

            out = console(self.request.color)
            self.between(record)
            out.print(table([_values(row) for row in found.rows], min(out.width, 120)), end="")
            return
        self.print_rows(record, COLUMNS, (_values(row).values() for row in found.rows))

    def print_rows(
        self, record: Record, columns: Iterable[str], rows: Iterable[Iterable[Any]]
    ) -> None:
        """Tab-separated values under one head; of several texts, each row says which."""
        which = (shown_path(record.input.label), record.line or "") if self.several else ()
        if not self.shown:
            print(*("input", "line")[: len(which)], *columns, sep="\t")
        self.shown += 1
        for row in rows:
            print(*which, *row, sep="\t")

    def picture(self, record: Record) -> None:
        from llmcli.render.console import console
        from llmcli.render.drawing import tail
        from llmcli.render.tokenized import picture
        from llmcli.units import plural

        out = console(self.request.color)
        found = self.rows(record)
        self.between(record)
        facts = [tail(self.request.model, 20), plural(len(found.text.encode()), "byte"),
                 plural(len(found.text), "character")]  # fmt: skip
        if not found.exact:
            facts.append("normalized")
        cells = [(row.bytes, row.id, row.special) for row in found.rows]
        out.print(picture(cells, facts, min(out.width, 160)), end="")

    def between(self, record: Record) -> None:
        """A name above each of several texts."""
        if self.several or self.request.files:
            print(f"{chr(10) * bool(self.shown)}{harmless(record.label)}")
            sys.stdout.flush()
        self.shown += 1

    def json(self, record: Record) -> None:
        self.objects.append(self._object(record))

    def _object(self, record: Record) -> dict[str, Any]:
        found = self.rows(record)
        return {
            "input": record.input.name,
            "line": record.line,
            "text": found.text,
            "decoded": None if found.exact else found.decoded,
            "n_tokens": len(found.ids),
            "n_bytes": len(found.text.encode()),
            "n_chars": len(found.text),
            "tokens": [_fields(row) for row in found.rows],
        }

    def end(self) -> None:
        """The total of --count; the one object of --json, of the texts that could be read."""
        if self.request.format == "count":
            self.tally.end()
        if self.request.format == "json":
            facts = self.compare.facts() if self.compare else self._facts()
            print(strict({**facts, "texts": self.objects}))

    def _facts(self) -> dict[str, Any]:
        """What the JSON of all texts says beside them."""
        return {
            "schema": SCHEMA, "model": self.request.model,
            "revision": revision_of(self.source.folder),
            "tokenizer_sha256": tokenizer_sha256(self.source.folder),
            "special": self.request.special,
        }  # fmt: skip

    def jsonl(self, record: Record) -> None:
        ids = self._ids(record)
        print(strict({
            "schema": SCHEMA, "model": self.request.model, "special": self.request.special,
            "input": record.input.name, "line": record.line, "n_tokens": len(ids), "ids": ids,
        }))  # fmt: skip

    def truncate(self, record: Record) -> None:
        request = self.request
        assert request.truncate
        text = truncated(
            self.source,
            record.text,
            request.truncate,
            request.keep or "left",
            request.special,
        )
        terminal = sys.stdout.isatty()
        if terminal:
            text = harmless(text)
        if (self.several or terminal) and not text.endswith("\n"):
            text += "\n"
        sys.stdout.buffer.write(text.encode())

    def chunk(self, record: Record) -> None:
        request = self.request
        assert request.chunk
        found = self.rows(record)
        cut = chunks(found, request.chunk, request.overlap or 0)
        if isinstance(cut, int):
            where = f"{shown_path(record.label)}: the" if self.several else "The"
            most = f"{request.chunk} token{'s' * (request.chunk != 1)}"
            raise UsageError(
                f"{where} character at byte {cut} has more than {most}.", "Choose a larger --chunk."
            )
        data = found.decoded.encode()
        for index, chunk in enumerate(cut):
            first, last = found.row(chunk.start), found.row(chunk.end - 1)
            print(strict({
                "schema": SCHEMA, "model": request.model, "special": request.special,
                "input": record.input.name, "line": record.line, "chunk": index,
                "token_start": chunk.start, "token_end": chunk.end,
                "byte_start": first.byte_start, "byte_end": last.byte_end,
                "char_start": first.char_start, "char_end": last.char_end,
                "n_tokens": chunk.end - chunk.start,
                "ids": found.ids[chunk.start : chunk.end].tolist(),
                "text": data[first.byte_start : last.byte_end].decode("utf-8", "replace"),
            }))  # fmt: skip


def _values(row: Row) -> dict[str, Any]:
    values = (row.index, row.id, quoted(row.bytes), row.bytes.hex(), row.byte_start, row.byte_end,
              row.char_start, row.char_end, int(row.special))  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _fields(row: Row) -> dict[str, Any]:
    """A token as JSON; `text` is null for a part of a character."""
    return _values(row) | {"text": decoded(row.bytes), "special": row.special}
