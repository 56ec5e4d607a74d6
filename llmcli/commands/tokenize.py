"""`llmcli tokenize`: a text's token ids. Needs only the tokenizer's files."""

from __future__ import annotations

from typing import Annotated

import typer

from llmcli.commands.options import Model


def tokenize(
    text: Annotated[
        str | None, typer.Argument(help="The text; - or a pipe reads stdin as it is.")
    ] = None,
    model: Model = "fable",
) -> None:
    """Print a text's token ids on one line.

    llmcli tokenize "Once upon a time"

    llmcli tokenize < story.txt | wc -w
    """
    from llmcli.commands.input import read_text
    from llmcli.hub import resolve
    from llmcli.tokenizer import Tokenizer

    given = read_text(text, 'llmcli tokenize "Once upon a time"')
    tokenizer = Tokenizer.from_folder(resolve(model, tokenizer_only=True))
    print(*tokenizer.encode(given))
