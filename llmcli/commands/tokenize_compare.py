"""How tokens come about, merge by merge, and how several tokenizers cut the same text."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from llmcli.commands.tokenize_request import Record
from llmcli.errors import UsageError
from llmcli.hub import resolve
from llmcli.render.text import quoted
from llmcli.tokenizing.merges import Merger, Piece
from llmcli.tokenizing.rows import Tokens, tokens
from llmcli.tokenizing.source import Source

if TYPE_CHECKING:
    from llmcli.commands.tokenize_text import Texts

SCHEMA = 2
STEPS = "piece", "step", "rank", "left", "right", "result"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text at whose ends all the tokenizers cut, and each one's tokens in it."""

    byte_start: int
    byte_end: int
    tokens: tuple[tuple[bytes, ...], ...]  # per tokenizer
    ids: tuple[tuple[int, ...], ...]

    @property
    def same(self) -> bool:
        """Whether all cut it the same way."""
        return len(set(self.tokens)) == 1


class Compare:
    """`--merges` and `--versus` for the texts of one call."""

    def __init__(self, texts: Texts) -> None:
        self.texts, self.source, self.request = texts, texts.source, texts.request
        self.models = [(self.request.model, self.source)]
        for name in self.request.versus:
            folder = resolve(name, tokenizer_only=True)
            self.models.append((name, Source.from_folder(folder)))

    def facts(self) -> dict[str, Any]:
        """What the JSON of all texts says beside them."""
        model = {"model": self.request.model} if self.request.merges else {}
        return {"schema": SCHEMA, **model, "special": self.request.special}

    # --- merges ----------------------------------------------------------------------------------

    def merges(self, record: Record) -> None:
        request = self.request
        pieces = Merger(self.source).pieces(record.text, request.special)
        if request.format == "json":
            self.texts.objects.append({
                "input": record.input.name, "line": record.line, "text": record.text,
                "pieces": [_piece(piece) for piece in pieces],
            })  # fmt: skip
        elif request.pictured:
            from llmcli.render.console import console
            from llmcli.render.tokenized import merges

            out = console(request.color)
            shown = [(piece.bytes, piece.whole, piece.ids,
                      [(s.left, s.right, s.rank, s.parts) for s in piece.steps])
                     for piece in pieces]  # fmt: skip
            self.texts.between(record)
            out.print(merges(shown, request.model, min(out.width, 120)), end="")
        else:
            steps = (
                (number, *row) for number, piece in enumerate(pieces) for row in _merge_rows(piece)
            )
            self.texts.print_rows(record, STEPS, steps)

    # --- versus ----------------------------------------------------------------------------------

    def versus(self, record: Record) -> None:
        found, request = self._tokens(record.text), self.request
        names, counts = [name for name, _ in self.models], [len(each.ids) for each in found]
        if request.format == "json":
            self.texts.objects.append({
                "input": record.input.name, "line": record.line, "text": record.text,
                "models": [{"model": name, "n_tokens": count}
                           for name, count in zip(names, counts, strict=True)],
                "spans": [_span(span) for span in _spans(found)],
            })  # fmt: skip
        elif request.pictured:
            from llmcli.render.console import console
            from llmcli.render.tokenized import versus

            out = console(request.color)
            spans = [(span.same, span.tokens) for span in _spans(found)]
            self.texts.between(record)
            out.print(versus(names, counts, spans, len(record.text.encode()),
                             min(out.width, 160)), end="")  # fmt: skip
        else:
            columns = ("byte_start", "byte_end", "same", *names)
            self.texts.print_rows(record, columns, _span_rows(counts, _spans(found)))

    def _tokens(self, text: str) -> list[Tokens]:
        """Raises UsageError where a tokenizer makes another text of `text`: nothing aligns then."""
        found = [tokens(source, text, self.request.special) for _, source in self.models]
        for (name, _), each in zip(self.models, found, strict=True):
            if each.decoded != found[0].decoded:
                raise UsageError(
                    f"{name} normalizes this text to another than {self.models[0][0]} does.",
                    "Give each normalized text by itself.",
                )
        return found


def _spans(found: list[Tokens]) -> Iterator[Span]:
    """The stretches of one text that all have cut, in order."""
    ends = [each.ends() for each in found]
    start, places = 0, [0] * len(found)
    for end in chain(_borders(found[0].decoded, ends), [None]):
        ids = []
        for i, each in enumerate(found):
            first = places[i]
            places[i] = len(each.ids) if end is None else bisect_right(ends[i], end, first)
            ids.append(tuple(each.ids[first : places[i]]))
        if any(ids):
            cut = (
                tuple(map(each.bytes_of.__getitem__, part))
                for each, part in zip(found, ids, strict=True)
            )
            yield Span(start, start if end is None else end, tuple(cut), tuple(ids))
        start = end or start


def _borders(text: str, ends: list[array[int]]) -> Iterator[int]:
    """Where all cut `text` between two of its characters, or at its end; not at its start."""
    data = text.encode() + b"."
    cuts = merge(*((end for end, _ in groupby(each)) for each in ends))
    for end, same in groupby(cuts):
        if end and len(list(same)) == len(ends) and data[end] & 0xC0 != 0x80:
            yield end


def _piece(piece: Piece) -> dict[str, Any]:
    return {
        "piece": quoted(piece.bytes),
        "ids": list(piece.ids),
        "looked_up_whole": piece.whole,
        "steps": [
            {"rank": step.rank, "left": quoted(step.left), "right": quoted(step.right),
             "parts": [quoted(part) for part in step.parts]}
            for step in piece.steps
        ],
    }  # fmt: skip


def _merge_rows(piece: Piece) -> list[tuple[Any, ...]]:
    """The bytes as they are, then each merge: step, rank, left, right, result."""
    start = [piece.bytes] if piece.whole else [bytes([byte]) for byte in piece.bytes]
    rows: list[tuple[Any, ...]] = [(0, "", "", "", " ".join(map(quoted, start)))]
    for number, step in enumerate(piece.steps, 1):
        parts = " ".join(map(quoted, step.parts))
        rows.append((number, step.rank, quoted(step.left), quoted(step.right), parts))
    return rows


def _span_rows(counts: list[int], found: Iterable[Span]) -> Iterator[tuple[Any, ...]]:
    """Each stretch, and what they come to."""
    all_same = True
    for span in found:
        all_same = all_same and span.same
        cells = (" ".join(map(quoted, tokens)) for tokens in span.tokens)
        yield (span.byte_start, span.byte_end, int(span.same), *cells)
    yield ("total", "", int(all_same), *counts)


def _span(span: Span) -> dict[str, Any]:
    return {
        "byte_start": span.byte_start, "byte_end": span.byte_end, "same": span.same,
        "tokens": [[quoted(token) for token in tokens] for tokens in span.tokens],
        "ids": [list(ids) for ids in span.ids],
    }  # fmt: skip
