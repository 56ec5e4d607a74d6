"""What a view is made of: plain values, no tensor. Imported without torch.

A view is a frozen dataclass. Its fields of numbers, texts and tokens are facts; a field of type
tuple[Row, ...], Row a dataclass, is a table; `notes` are footnotes. Nothing else is needed for TSV
and JSON: `render.forms` derives both, so that a picture can show no number that they lack, but
sums of the rows that it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

LONG_FLOPS = 100e9  # a second or so: from here on the cost is announced


@dataclass(frozen=True, slots=True)
class Token:
    """A vocabulary entry; its text is bytes, as it need not be whole characters."""

    id: int
    text: bytes


class Row:
    """Base of the rows of tables; `key` names the fields that say what a row is about.

    `about` names fields that are about another, a token or a head: where that is another one in
    two runs, they cannot be compared.
    """

    __slots__ = ()
    key: ClassVar[tuple[str, ...]]
    about: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

    @property
    def its(self) -> tuple[Any, ...]:
        """What the row is about: the values of its `key`."""
        return tuple(getattr(self, name) for name in self.key)


class View:
    """Base of all views; `name` is what --view takes, `about` is that of `Row`.

    `compared` names the facts that a change of the run may change; the others are sizes, and how
    well numbers add up. `cut` names the tables that list the largest rows only.
    """

    __slots__ = ()
    name: ClassVar[str]
    compared: ClassVar[tuple[str, ...]] = ()
    cut: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    notes: tuple[str, ...]
    __dataclass_fields__: ClassVar[dict[str, Any]]


def gflop(flops: float) -> str:
    """What a view is about to compute, in words of two digits: "2.8 GFLOP"."""
    return f"{float(f'{flops / 1e9:.2g}'):g} GFLOP"
