"""What --layer, --head, --position and --token point at: the user's words -> indices and ids."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from llmcli.commands.say import say
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.config import ModelConfig
    from llmcli.tokenizer import Tokenizer

SINGULAR = re.compile(r"s\b")


def index(option: str, value: int | None, count: int, things: str) -> int | None:
    """`value` from 0, negative ones counted from the end. Raises UsageError naming the range."""
    if value is None or 0 <= value < count:
        return value
    if -count <= value < 0:
        return value + count
    there = f"are {count} {things}" if count != 1 else f"is 1 {SINGULAR.sub('', things, 1)}"
    raise UsageError(
        f"{option} {value} does not exist: there {there}.",
        f"It goes from 0 to {count - 1}, or from -1, the last, to {-count}.",
    )


def page_asked(page: int | None, every: bool | None) -> int | None:
    """The page of the guided walk to show: on a terminal the first, else None, which is all."""
    from llmcli.inspection.walk.topics import TOPICS

    if page is None:
        return 1 if sys.stdout.isatty() and not every else None
    if every:
        raise UsageError("--page shows one page and --all shows all.", "Leave one of them out.")
    if not 1 <= page <= len(TOPICS):
        raise UsageError(
            f"--page {page} does not exist: the walk has {len(TOPICS)} pages.",
            f"It goes from 1 to {len(TOPICS)}.",
        )
    return page


def say_which(option: str, text: str, id: int | None, tokenizer: Tokenizer) -> None:
    """Where a bare word was taken after a space, say so, and how it is named without."""
    from llmcli.render.text import quoted

    if id == tokenizer.id_of(f" {text}"):
        bare = tokenizer.id_of(text)
        without = "" if bare is None else f"; without the space it is id:{bare}"
        say(f"{option}: {quoted(f' {text}'.encode())}, id {id}{without}.")


def analogy_terms(
    text: str | None, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[tuple[int, int], ...]:
    """What --analogy adds up: (how often, id) of each token, in the order of the text.

    A bare word is a word: taken after a space where there is such a token. Raises UsageError where
    nothing is left of the sum.
    """
    from llmcli.commands.token_names import token_named
    from llmcli.inspection.grammar import analogy

    times: dict[int, int] = {}
    for term in analogy(text, config) if text is not None else ():
        id = None if term.quoted else tokenizer.id_of(f" {term.text}")
        if id is None:
            id = token_named("--analogy", term.text, tokenizer, n_ids=config.vocab_size)
        times[id] = times.get(id, 0) + term.sign
    left = tuple((n, id) for id, n in times.items() if n)
    if times and not left:
        raise UsageError(
            "--analogy adds up to nothing: all its tokens cancel out.",
            'For example: --analogy "king - man + woman"',
        )
    return left
