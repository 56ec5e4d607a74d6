"""What --layer, --head, --position and --token point at: the user's words -> indices and ids."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llmcli.errors import IntegrityError, UsageError, shown

if TYPE_CHECKING:
    from llmcli.config import ModelConfig
    from llmcli.tokenizer import Tokenizer


def index(option: str, value: int | None, count: int, things: str) -> int | None:
    """`value` from 0, negative ones counted from the end. Raises UsageError naming the range."""
    if value is None or 0 <= value < count:
        return value
    if -count <= value < 0:
        return value + count
    raise UsageError(
        f"{option} {value} does not exist: there are {count} {things}.",
        f"It goes from 0 to {count - 1}, or from -1, the last, to {-count}.",
    )


def token_id(option: str, text: str | None, tokenizer: Tokenizer, vocab_size: int) -> int | None:
    """The id of the token that `text` names: `id:464`, a token as given, or after a space.

    Raises UsageError that shows the tokens where the text is several.
    """
    from llmcli.render.text import quoted

    if text is None:
        return None
    if text.startswith("id:") and text[3:].isascii() and text[3:].isdigit():
        id = int(text[3:][:12])
        if id >= vocab_size:
            raise UsageError(
                f"{option} {shown(text)} does not exist.", f"Ids go from 0 to {vocab_size - 1}."
            )
        return id
    for candidate in (text, f" {text}"):
        id_ = tokenizer.id_of(candidate) if text else None
        if id_ is not None and id_ < vocab_size:
            return id_
    pieces = [f"{quoted(tokenizer.token_bytes(id))} (id:{id})" for id in tokenizer.encode(text)[:8]]
    raise UsageError(
        f"{option} {quoted(text.encode())} is not one token but {len(tokenizer.encode(text))}: "
        f"{', '.join(pieces)}.",
        f"Which one? Name it by its text or id, as in {option} id:464.",
    )


def say_which(option: str, text: str | None, id: int | None, tokenizer: Tokenizer) -> None:
    """Where the token was found only after a space, or there is one of each kind, say which."""
    from llmcli.render.text import quoted

    if text is None or text.startswith("id:"):
        return
    spaced = tokenizer.id_of(f" {text}")
    with_space = quoted(f" {text}".encode())
    if spaced == id:
        print(f"{option}: {with_space}, id {id}.", file=sys.stderr)
    elif spaced is not None:
        given = quoted(text.encode())
        print(f"{option}: {given}, id {id}, as given; {with_space} is id {spaced}.",
              file=sys.stderr)  # fmt: skip


def prompt_ids(tokenizer: Tokenizer, text: str, config: ModelConfig, long: bool) -> list[int]:
    """What the model is given, as `generate` gives it; `long` lets it exceed the context.

    Raises UsageError for a prompt that is empty, or too long.
    """
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(text)]
    if not ids:
        raise UsageError(
            "The prompt is empty, and this model has no token to begin with.",
            'For example: llmcli inspect "Once upon a time"',
        )
    if max(ids) >= config.vocab_size:
        raise IntegrityError(
            f"The tokenizer gives the id {max(ids)}; the model knows ids below "
            f"{config.vocab_size}.",
            "tokenizer.json and config.json belong to different models.",
        )
    if len(ids) > config.n_ctx and not long:
        raise UsageError(
            f"The prompt has {len(ids)} tokens; the model's context holds {config.n_ctx}.",
            "Shorten it; --view tokens takes a longer text, too.",
        )
    return ids
