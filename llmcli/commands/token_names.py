"""Tokens as users name them: by their text, or by their id."""

from __future__ import annotations

import re

from llmcli.errors import UsageError, shown
from llmcli.tokenizer import Tokenizer

ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def token_named(
    option: str,
    text: str,
    tokenizer: Tokenizer,
    *,
    digits: bool = False,
    spaced: bool = False,
    n_ids: int | None = None,
) -> int:
    """The id of the token that `text` names: `id:464`, or the text of one token.

    With `digits` a bare number is an id too. With `spaced` a bare word is the token after a space,
    if there is one, as within a text; in double quotes it is as given. Ids are those below `n_ids`,
    by default those of a token. Raises UsageError that shows the tokens where the text is several.
    """
    from llmcli.render.text import quoted

    if not text:
        raise UsageError(
            f"{option}: no token has an empty text.",
            f"Name it by its text or id, as in {option} id:464.",
        )
    known = tokenizer.bytes_of.keys() if n_ids is None else range(n_ids)
    number = text.removeprefix("id:")
    if number.isascii() and number.isdigit() and (digits or number != text):
        id = whole_number(number)
        if id not in known:
            raise UsageError(
                f"{option}: there is no token with id {shown(number, 30)}.",
                f"Ids go from 0 to {max(known)}, {len(known)} in all.",
            )
        return id
    if spaced and len(text) > 2 and text[0] == text[-1] == '"':
        text = ESCAPED.sub(_unescaped, text[1:-1])  # as it is shown
        data = text.encode("utf-8", "surrogateescape")  # it may be a part of a character
        if (found := tokenizer.id_of(data)) is not None:
            return found
        if data != text.encode("utf-8", "replace"):
            raise UsageError(
                f"{option}: no token consists of the bytes {quoted(data)}.",
                "llmcli tokenize --vocab lists those that there are.",
            )
    elif spaced and text[0].isalnum() and (found := tokenizer.id_of(f" {text}")) is not None:
        return found
    if (found := tokenizer.id_of(text)) is not None:
        return found
    ids = tokenizer.encode(text)
    if len(ids) == 1:
        return ids[0]
    spaced_id = tokenizer.id_of(f" {text}")
    pieces = [f"{quoted(tokenizer.token_bytes(id))} (id:{id})" for id in ids[:8]]
    raise UsageError(
        f"{option}: {quoted(text.encode())} is not one token but {len(ids)}: {', '.join(pieces)}.",
        f"Which one? Name it by its text or id: id:{text if text.isdigit() else ids[0]}."
        if spaced_id is None
        else f"{quoted(f' {text}'.encode())} (id:{spaced_id}), with the space, is one.",
    )


def _unescaped(found: re.Match[str]) -> str:
    """What an escape stands for; bytes that are no text by themselves as Python hides them."""
    c = found[1]
    if len(c) == 3:
        return bytes.fromhex(c[1:]).decode("utf-8", "surrogateescape")
    if len(c) > 1:
        return chr(int(c[1:], 16))
    return ESCAPES.get(c, c)


def whole_number(digits: str) -> int:
    """The number that ASCII `digits` write; one of more than 18 digits is as good as infinite."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 18 else 10**18
