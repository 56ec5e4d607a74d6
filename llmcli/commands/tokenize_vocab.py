"""What a vocabulary holds: the tokens that a pattern finds, and what an id is."""

from __future__ import annotations

import re
import sys
from typing import Any

from llmcli.commands.tokenize_request import Request
from llmcli.errors import UsageError
from llmcli.hub import resolve
from llmcli.render.text import decoded, quoted
from llmcli.strict_json import strict
from llmcli.tokenizer import Tokenizer
from llmcli.tokenizer_file import ALPHABET, BYTE_OF
from llmcli.tokenizing.source import Source

SCHEMA = 1


def run(request: Request) -> None:
    source = Source.from_folder(resolve(request.model, tokenizer_only=True))
    tokenizer = source.tokenizer
    ids = request.ids if request.ids else found(tokenizer, request.vocab or "")
    tokenizer.decode_bytes(ids)  # refuses those that are not there
    entries = Entries(source)
    facts = [entries.of(id) for id in ids]
    if request.format == "json":
        print(strict({"schema": SCHEMA, "model": request.model, "tokens": facts}))
    elif request.pictured:
        from llmcli.render.console import console
        from llmcli.render.tokenized import vocabulary

        out = console(request.color)
        out.print(vocabulary(facts, len(tokenizer), min(out.width, 120)), end="")
    else:
        sys.stdout.write(tsv(facts))


def found(tokenizer: Tokenizer, pattern: str) -> list[int]:
    """The ids of the tokens in whose text the regular expression `pattern` is found."""
    pattern = pattern.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    try:
        search = re.compile(pattern).search
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"--vocab {pattern!r:.80} is no regular expression ({error}).",
            r"Escape what is meant literally: \( \[ \. \*",
        ) from None
    texts = (
        (id, data.decode("utf-8", "surrogateescape")) for id, data in tokenizer.bytes_of.items()
    )
    return sorted(id for id, text in texts if search(text))


class Entries:
    """The facts about ids: bytes, kind, and the merge that makes them."""

    def __init__(self, source: Source) -> None:
        tokenizer, recipe = source.tokenizer, source.recipe
        self.tokenizer = tokenizer
        self.special = set(tokenizer.special_ids.values())
        self.added = {token.id for token in recipe.added}
        self.merges: dict[str, tuple[int, str, str]] = {}
        for rank, (left, right) in enumerate(zip(recipe.lefts, recipe.rights, strict=True)):
            self.merges.setdefault(left + right, (rank, left, right))
        self.around = {*tokenizer.prefix_ids, *tokenizer.suffix_ids}

    def of(self, id: int) -> dict[str, Any]:
        data = self.tokenizer.bytes_of[id]
        spelled = "".join(ALPHABET[byte] for byte in data)
        kind = "special" if id in self.special else "added" if id in self.added else None
        merge = None
        if kind is None and len(data) > 1 and spelled in self.merges:
            rank, left, right = self.merges[spelled]
            merge = {"rank": rank, "left": _half(left), "right": _half(right)}
        if kind is None:
            kind = "byte" if len(data) == 1 else "merged" if merge else "unreachable"
        return {
            "id": id, "token": quoted(data), "bytes": data.hex(), "kind": kind,
            "text": decoded(data), "merge": merge,
            "end_of_text": id == self.tokenizer.eot_id, "template": id in self.around,
        }  # fmt: skip


def _half(spelled: str) -> str:
    return quoted(bytes(BYTE_OF[char] for char in spelled))


def tsv(facts: list[dict[str, Any]]) -> str:
    rows = ["id\ttoken\tbytes\tkind\tmerge_rank\tleft\tright"]
    for fact in facts:
        merge = fact["merge"] or {"rank": "", "left": "", "right": ""}
        rows.append(
            f"{fact['id']}\t{fact['token']}\t{fact['bytes']}\t{fact['kind']}\t"
            f"{merge['rank']}\t{merge['left']}\t{merge['right']}"
        )
    return "\n".join(rows) + "\n"
