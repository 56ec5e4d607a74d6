"""The merges of BPE step by step, by the book: how each piece of a text becomes its tokens.

Byte pair encoding: Sennrich et al., arXiv 1508.07909. Slow on purpose; its result is compared with
what the tokenizer gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from llmcli.errors import IntegrityError
from llmcli.tokenizer_file import ALPHABET, BYTE_OF
from llmcli.tokenizing.cuts import cut_places
from llmcli.tokenizing.source import Source


@dataclass(frozen=True, slots=True)
class Step:
    """One merge: the pair that stands first in the list of merges, joined wherever it stands."""

    left: bytes
    right: bytes
    rank: int  # its place in the model's list of merges, from 0
    parts: tuple[bytes, ...]  # the piece after it


@dataclass(frozen=True, slots=True)
class Piece:
    """What the split pattern cut out of the text, or an added token, which has no steps."""

    bytes: bytes
    steps: tuple[Step, ...]
    ids: tuple[int, ...]
    whole: bool  # looked up as it is: no merge was needed


class Merger:
    """Merges by the book, for one tokenizer."""

    def __init__(self, source: Source) -> None:
        self.tokenizer, self.recipe = source.tokenizer, source.recipe
        pairs = zip(self.recipe.lefts, self.recipe.rights, strict=True)
        self.ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}

    def pieces(self, text: str, special: bool = False) -> list[Piece]:
        """The pieces of `text` in order. Raises IntegrityError where they give other ids."""
        out: list[Piece] = []
        found = cut_places(self.recipe)
        for section in self.tokenizer.sections(text, special=special):
            if isinstance(section, int):
                data = self.tokenizer.bytes_of[section]
                out.append(Piece(data, (), (section,), True))
                continue
            cuts = [] if isinstance(found, str) else [m.start() for m in found.finditer(section)]
            for start, end in pairwise([0, *cuts, len(section)]):
                out += map(self._piece, self.tokenizer.pieces(section[start:end]))
        ids = [id for piece in out for id in piece.ids]
        if ids != self.tokenizer.encode(text, special=special):
            raise IntegrityError("The merges, step by step, do not give the tokenizer's ids.")
        return out

    def _piece(self, data: bytes) -> Piece:
        spelled = "".join(ALPHABET[byte] for byte in data)
        if self.recipe.ignore_merges and spelled in self.recipe.vocab:
            return Piece(data, (), (self.recipe.vocab[spelled],), True)
        parts, steps = list(spelled), []
        while True:
            known = [pair for pair in pairwise(parts) if pair in self.ranks]
            if not known:
                break
            best = min(known, key=self.ranks.__getitem__)
            parts = _joined(parts, best)
            left, right = map(_bytes, best)
            steps.append(Step(left, right, self.ranks[best], tuple(map(_bytes, parts))))
        return Piece(data, tuple(steps), tuple(self.recipe.vocab[part] for part in parts), False)


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """`parts` with `pair` joined wherever it stands, from the left."""
    out: list[str] = []
    place = 0
    while place < len(parts):
        if tuple(parts[place : place + 2]) == pair:
            out.append(parts[place] + parts[place + 1])
            place += 2
        else:
            out.append(parts[place])
            place += 1
    return out


def _bytes(token: str) -> bytes:
    return bytes(BYTE_OF[char] for char in token)
