"""A model folder, what its tokenizer's files say, and the tokenizer made of that.

The tokenizer does not keep the recipe: only `tokenize` looks into it, others save its memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmcli.tokenizer import Tokenizer
from llmcli.tokenizer_file import Recipe, read_recipe


@dataclass(frozen=True, slots=True)
class Source:
    """A folder's tokenizer beside its recipe, for what looks into either."""

    folder: Path
    recipe: Recipe
    tokenizer: Tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> Source:
        """Raises NotFoundError, IntegrityError, UnsupportedModelError."""
        recipe = read_recipe(folder)
        return cls(folder, recipe, Tokenizer(recipe))

    def ids(self, text: str, special: bool) -> list[int]:
        """The ids of `text`; with `special` those of special tokens in it, and the template's."""
        before, after = self.tokenizer.around(special)
        return [*before, *self.tokenizer.encode(text, special=special), *after]
