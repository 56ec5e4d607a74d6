"""Two texts side by side: the untouched one and the changed one, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmcli.render.text import harmless

MARK = "▶"  # before the first token that differs, for eyes and terminals without colour
LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Column:
    """One text: what it is, its pieces by step, what was held back, and how odd it is."""

    title: str
    pieces: Sequence[str]
    rest: str
    perplexity: float | None  # under the untouched model

    @property
    def told(self) -> str:
        """The perplexity in words."""
        if self.perplexity is None:
            return "perplexity –"
        return f"perplexity {self.perplexity:.4g}"


def picture(
    columns: Sequence[Column], first: int | None, kl: Sequence[float], echo: str, width: int
) -> RenderableType:
    """Two columns, the first differing token marked in both; below them the KL of each step."""
    table = Table.grid(padding=(0, 2), expand=True)
    for _ in columns:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*(Text(harmless(column.title), style="bold cyan") for column in columns))
    table.add_row(*(_body(column, first, echo) for column in columns))
    table.add_row(*(Text(column.told, style="dim") for column in columns))
    below = _below(first, kl, width, whole=len({len(column.pieces) for column in columns}) == 1)
    below.rstrip()  # in a group each part ends its line
    return Group(table, below)


def _body(column: Column, first: int | None, echo: str) -> Text:
    out = Text(harmless(echo), style="dim")
    body = Text()
    waiting = False
    for step, piece in enumerate(map(harmless, column.pieces)):
        waiting = waiting or step == first
        marked = waiting and bool(piece)  # a token that makes no character yet has no place
        if marked:
            core = piece.lstrip()
            body.append(piece[: len(piece) - len(core)])
            body.append(MARK + core, style="bold reverse")
            waiting = False
        else:
            body.append(piece)
    body.append(harmless(column.rest))
    return out.append_text(Text(style="not dim").append_text(body)) if echo else body


def _below(first: int | None, kl: Sequence[float], width: int, whole: bool) -> Text:
    out = Text("\n")
    if first is None:
        out.append(f"The two texts have the same tokens{'' if whole else ', as far as both go'}.\n")
    else:
        out.append(f"{MARK} first different token: step {first}\n")
    if not kl:
        return out
    most = max(kl)
    out.append(
        f"KL(untouched ‖ changed) per step: mean {sum(kl) / len(kl):.3g} bits, "
        f"most {most:.3g} at step {kl.index(most)}\n"
    )
    line = sparkline(kl)
    for start in range(0, len(line), width):
        out.append(line[start : start + width] + "\n", style="yellow")
    return out.append("The perplexity of both texts is that under the untouched model.\n", "dim")


def sparkline(values: Sequence[float]) -> str:
    """One character a value, as high as it is beside the largest."""
    most = max(values) or 1.0
    return "".join(LEVELS[min(7, int(8 * value / most))] for value in values)


def text(columns: Sequence[Column], first: int | None, kl: Sequence[float], echo: str) -> str:
    """The same for a pipe: each text under a line with its facts, tabs between them."""
    facts = ["", ""]
    if kl:
        where = "none" if first is None else str(first)
        facts[1] = f"\tfirst_difference\t{where}\tmean_kl_bits\t{sum(kl) / len(kl):.6g}"
    return "".join(
        f"# {column.title}\t{column.told.replace(' ', chr(9))}{more}\n"
        f"{echo}{''.join(column.pieces)}{column.rest}\n"
        for column, more in zip(columns, facts, strict=True)
    )
