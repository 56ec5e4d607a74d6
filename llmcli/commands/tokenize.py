"""`llmcli tokenize`: text to token ids and back, from one word to a corpus.

Needs only the tokenizer's files. What each way of using it does is in the `tokenize_*` modules.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmcli.commands.options import Color, ColorMode, Json, Model, Quiet, model_names
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.commands.tokenize_request import Request


Format = Literal["ids", "tokens", "count", "table", "json", "jsonl"]
Errors = Literal["strict", "replace"]
Keep = Literal["left", "right"]
Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT]...", help="Texts; - or a pipe reads stdin as it is."),
]
Files = Annotated[bool, typer.Option("--files", help="The TEXTs are paths; - is stdin.")]
FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format", rich_help_panel="Output",
        help="What to print. [default: a picture on a terminal, else ids]",
    ),
]  # fmt: skip
Count = Annotated[bool, typer.Option("--count", help="Print the number of tokens, as wc would.")]
Lines = Annotated[
    bool, typer.Option("--lines", help="Each line of the input is a text, without its end.")
]
Special = Annotated[
    bool,
    typer.Option("--special", help="Parse special tokens, and add the tokenizer's template."),
]
Jsonl = Annotated[bool, typer.Option("--jsonl", help="Print one JSON line per text.")]
Decode = Annotated[
    bool,
    typer.Option(
        "--decode", rich_help_panel="Ids to text",
        help="Print the text of ids, given as TEXTs or on stdin.",
    ),
]  # fmt: skip
ErrorsOption = Annotated[
    Errors | None,
    typer.Option(
        "--errors",
        help="Bytes that are not UTF-8: strict refuses them, replace writes U+FFFD. "
        "[default: strict; with --decode they are printed as they are]",
    ),
]
Truncate = Annotated[
    int | None,
    typer.Option(
        "--truncate", min=1, metavar="N", rich_help_panel="Cutting",
        help="The text's first N tokens.",
    ),
]  # fmt: skip
KeepOption = Annotated[
    Keep | None, typer.Option("--keep", help="Which end --truncate keeps. [default: left]")
]
Chunk = Annotated[
    int | None,
    typer.Option("--chunk", min=1, metavar="N", help="Cut into chunks of N tokens, as JSON lines."),
]
Overlap = Annotated[
    int | None,
    typer.Option("--overlap", min=0, metavar="M", help="Tokens that two chunks share."),
]
Merges = Annotated[
    bool,
    typer.Option(
        "--merges", rich_help_panel="Looking closer", help="Show the merges of each piece."
    ),
]
Versus = Annotated[
    list[str] | None,
    typer.Option(
        "--versus", metavar="MODEL", autocompletion=model_names,
        help="Compare with this model's tokens; repeatable.",
    ),
]  # fmt: skip
Vocab = Annotated[
    str | None,
    typer.Option("--vocab", metavar="PATTERN", help="The tokens that a regular expression finds."),
]
IdOption = Annotated[
    list[int] | None, typer.Option("--id", metavar="ID", help="What an id is; repeatable.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="PATH", rich_help_panel="A corpus",
        help="Write the ids as raw integers (as .npy if PATH ends so), with a .json beside it.",
    ),
]  # fmt: skip
Delimiter = Annotated[
    str | None,
    typer.Option(
        "--document-delimiter", metavar="TEXT",
        help="The text between two documents, including the line end after it, if any. It becomes "
        "the end-of-text id; --out also ends the last document with it.",
    ),
]  # fmt: skip
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=256, metavar="N", help="How many threads. [default: one per core]"
    ),
]


def tokenize(
    texts: Texts = None,
    model: Model = "fable",
    files: Files = False,
    lines: Lines = False,
    special: Special = False,
    errors: ErrorsOption = None,
    decode: Decode = False,
    truncate: Truncate = None,
    keep: KeepOption = None,
    chunk: Chunk = None,
    overlap: Overlap = None,
    merges: Merges = False,
    versus: Versus = None,
    vocab: Vocab = None,
    id: IdOption = None,
    out: Out = None,
    document_delimiter: Delimiter = None,
    workers: Workers = None,
    format: FormatOption = None,
    json: Json = False,
    jsonl: Jsonl = False,
    count: Count = False,
    color: Color = ColorMode.auto,
    quiet: Quiet = False,
) -> None:
    r"""Show a text's tokens, count them, or turn a corpus into ids.

    llmcli tokenize "Once upon a time"

    llmcli tokenize --count --files *.txt

    llmcli tokenize --files corpus/*.txt --out tokens.bin

    llmcli tokenize "the lowest" --merges

    llmcli tokenize "the lowest" --versus gpt2

    llmcli tokenize < story.txt | llmcli tokenize --decode

    Special tokens in a text are plain text unless --special is given.
    """
    from llmcli.commands.tokenize_request import Request

    chosen: list[str] = [
        name for name, given in (("json", json), ("jsonl", jsonl), ("count", count)) if given
    ]
    chosen += [format] if format else []
    if len(set(chosen)) > 1:
        raise UsageError(f"--format {' and '.join(chosen)} exclude each other.", "Choose one.")
    if document_delimiter == "":
        raise UsageError(
            "--document-delimiter needs a text that stands between documents.",
            'For example: --document-delimiter "<|endoftext|>"',
        )
    run(Request(
        texts=texts or [], files=files, model=model, format=chosen[0] if chosen else None,
        lines=lines, special=special, decode=decode, errors=errors,
        truncate=truncate, keep=keep, chunk=chunk, overlap=overlap, merges=merges,
        versus=versus or [], vocab=vocab, ids=id or [], out=out,
        delimiter=(document_delimiter or "").encode(),
        workers=workers, color=color.value, quiet=quiet,
    ))  # fmt: skip


def run(request: Request) -> None:
    """Do what was asked for; one module for each way of using the command."""
    request.check()
    request.note_unused()
    request.note_files()
    if request.out:
        from llmcli.commands import tokenize_out as way
    elif request.streams:
        from llmcli.commands import tokenize_bulk as way  # type: ignore[no-redef]
    elif request.decode:
        from llmcli.commands import tokenize_decode as way  # type: ignore[no-redef]
    elif request.vocab is not None or request.ids:
        from llmcli.commands import tokenize_vocab as way  # type: ignore[no-redef]
    else:
        from llmcli.commands import tokenize_text as way  # type: ignore[no-redef]
    way.run(request)
