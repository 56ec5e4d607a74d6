r"""Where a text may be cut so that the ids of its parts are the ids of the whole.

Proven for the split patterns that `tokenizer_file` knows. A cut lies between two characters `a` and
`b`. It changes nothing if (1) no piece holds `a` and `b` side by side, (2) no lookahead that is
tried at the cut sees `b`, (3) no added token holds the two, (4) no normal form joins them.

Before a blank that follows no white space. (1) In every known alternative a white space stands
first, or after white space, or is a line end after punctuation (`[\r\n]*`, `[\r\n/]*`): so blanks
may always follow, and line ends after a letter or digit, or after anything where no such
alternative is there. (2) Lookaheads stand after white space only, and `a` is none. (4) `b` is
ASCII, which nothing composes with, and no normal form lets a character that is no white space end
in one (the tests look at every character).
After a line end and before a letter or digit, where `\s*[\r\n]+` stands before the lookahead:
(1) what follows a line end inside a piece is a line end or a slash; (2) that alternative takes any
run of white space that ends in a line end, so the lookahead is not tried; (4) a line end composes
with nothing, and NFC and NFD leave a letter or digit one (NFKC does not).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmcli.tokenizer import normalize
from llmcli.tokenizer_file import DIGITS_LOOKAHEAD, KNOWN_ALTERNATIVES, Recipe, alternatives

_NEWLINES = {r"\s*[\r\n]+", r"\s*[\r\n]"}
_LOOKAHEAD = r"\s+(?!\S)"


def cut_places(recipe: Recipe, special: bool = False) -> re.Pattern[str] | str:
    """Its empty matches are the places to cut; or why no place is proven, as half a sentence."""
    parts = alternatives(recipe.pattern)
    if not set(parts) <= KNOWN_ALTERNATIVES.keys() | {DIGITS_LOOKAHEAD}:
        return "its split pattern has no proven place to cut"
    if special and any(token.lstrip or token.rstrip for token in recipe.added):
        return "a special token takes the white space around it"
    rules = [r"(?<=\S)(?=[ \t])"]
    if any(part.endswith((r"[\r\n]*", r"[\r\n/]*")) for part in parts):
        rules.append(r"(?<=[A-Za-z0-9])(?=[\r\n])")
    else:
        rules.append(r"(?<=\S)(?=[\r\n])")
    if _newlines_first(parts) and set(recipe.normal_forms) <= {"NFC", "NFD"}:
        rules.append(r"(?<=\n)(?=[^\W_])")
    if recipe.prefix_space:  # it goes before every part that does not start with a space
        rules = [r"(?<=\S)(?= )"]
    places = re.compile("|".join(rules))
    for token in recipe.added:
        for content in (token.content, normalize(token.content, recipe.normal_forms)):
            if any(0 < match.start() < len(content) for match in places.finditer(content)):
                return f"its added token {content!r} holds a place to cut"
    return places


@dataclass(frozen=True, slots=True)
class Lookahead:
    """How to do without a split pattern's lookahead, which costs half of the time.

    `\\s+(?!\\S)` leaves the last white space of a run to what follows. With a mark before that
    character, where the text is cut as well, `pattern` gives the same pieces without looking.
    No mark is needed where the run is one character, or the text's end, or, with `newlines`, ends
    in a line end; none is allowed before a digit, with `digits`.
    """

    pattern: str
    newlines: bool
    digits: bool


def without_lookahead(recipe: Recipe) -> Lookahead | None:
    """The recipe's split pattern with marks for its lookahead; None where that is not proven."""
    parts = alternatives(recipe.pattern)
    looking = [part for part in parts if part in (_LOOKAHEAD, DIGITS_LOOKAHEAD)]
    if (
        not set(parts) <= KNOWN_ALTERNATIVES.keys() | {DIGITS_LOOKAHEAD}
        or len(looking) != 1
        or parts[-2:] != [looking[0], r"\s+"]
    ):
        return None
    return Lookahead(
        "|".join([*parts[:-2], r"\s+"]), _newlines_first(parts), looking[0] == DIGITS_LOOKAHEAD
    )


def _newlines_first(parts: list[str]) -> bool:
    """Whether any run of white space that ends in a line end is taken before a lookahead."""
    first = next((part for part in parts if part in _NEWLINES or "(?!" in part), "")
    return first in _NEWLINES
