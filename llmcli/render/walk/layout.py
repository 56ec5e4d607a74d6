"""What a page is made of: paragraphs, which are wrapped, and tables, whose lines are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcli.render.drawing import fit, name

if TYPE_CHECKING:
    from llmcli.inspection.values import Token


@dataclass(frozen=True, slots=True)
class Words:
    """A page: strings are paragraphs, lists are tables; `deeper` goes after `llmcli`."""

    title: str
    body: list[str | list[str]]
    deeper: tuple[str, ...]  # {} stands for the prompt, and the model where it is not the default


def tok(token: Token, cells: int = 14) -> str:
    """A token in a table."""
    return fit(name(token.text), cells)


def said(token: Token) -> str:
    """A token in a sentence."""
    return name(token.text)


def nums(values: Sequence[float], digits: int = 3, cells: int = 8) -> str:
    return " ".join(f"{value:z{cells}.{digits}f}" for value in values)


def pct(share: float) -> str:
    """A probability in percent; only what is nothing is written as nothing."""
    return " <0.01 %" if 0 < share < 5e-5 else f"{100 * share:6.2f} %"


def tiny(value: float) -> str:
    """A difference that is nothing, or next to nothing."""
    return "0" if value == 0 else f"{value:.1e}"


def small(values: Sequence[float]) -> str:
    """A small example's numbers, in brackets."""
    return f"({', '.join(f'{value:g}' for value in values)})"
