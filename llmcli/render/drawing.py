"""What the pictures of views share: a canvas, cells of a fixed width, headings, footnotes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from llmcli.render.subject import NO_SUBJECT, Subject
from llmcli.render.text import harmless, on_one_line, quoted

if TYPE_CHECKING:
    from llmcli.inspection.values import Token

# What no line ends within: a quoted token; a number and its unit.
_WHOLE = re.compile(r'"(?:[^"\\]|\\.)*"|(?<=\d) (?:%|[KMG]?i?B\b)')
_GLUE = "\0"  # a space at which no line ends: no text holds it, once it is harmless
CHOSEN = "▶"
EIGHTHS = " ▏▎▍▌▋▊▉"
MAX_WIDTH = 160  # beyond this, lines are hard to follow


@dataclass(frozen=True, slots=True)
class Canvas:
    """What there is to draw on; without colour, digits say what colours would."""

    width: int
    color: bool
    rows: int | None = None  # --rows, where it was given
    subject: Subject = NO_SUBJECT


def fit(text: str, cells: int, right: bool = False) -> str:
    """`text` in exactly `cells` character cells; "…" stands for what is cut."""
    if cell_len(text) > cells:
        return set_cell_size(set_cell_size(text, cells - 1).rstrip() + "…", cells)
    space = " " * (cells - cell_len(text))
    return space + text if right else text + space


def tail(text: str, cells: int) -> str:
    """The end of `text` on one line of at most `cells` cells; "…" stands for what is cut."""
    line = on_one_line(text)
    if cell_len(line) <= cells:
        return line
    while cell_len(line) > cells - 1:
        line = line[1 + (cell_len(line) - cells) // 2 :]
    return "…" + line


def name(token: bytes) -> str:
    """A token in quotes, whatever it holds; none at all is padding of the vocabulary."""
    return quoted(token) if token else "(unused)"


def called(token: Token, versus: Token | None = None) -> str:
    """A token with its id, and the one that its logit is set against."""
    said = f"{name(token.text)} (id {token.id})"
    return said if versus is None else f"{said} minus {called(versus)}"


def wrapped(text: str, cells: int, indent: str = "") -> list[str]:
    """Lines of at most `cells`, all but the first indented; none ends within a quoted token."""
    kept = _WHOLE.sub(lambda whole: whole[0].replace(" ", _GLUE), harmless(text))
    lines = textwrap.wrap(kept, cells, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace(_GLUE, " ") for line in lines]


def heading(title: str, *facts: str, width: int) -> Text:
    """The first line of a view: its name, and the facts that matter most."""
    lines = wrapped(f"{title}  {' · '.join(facts)}", width, indent="  ")
    line = Text("".join(part.removesuffix(" ·") + "\n" for part in lines))
    line.stylize("bold cyan", 0, len(title))
    return line


def section(number: int, title: str, about: str) -> Text:
    """The first line of a part of a view."""
    return Text().append(f"{number}. {title}", style="bold").append(f"  {about}\n", style="dim")


def columns(*cells: tuple[str, int]) -> Text:
    """A line of column names; a negative width aligns to the right."""
    line = " ".join(fit(text, abs(width), right=width < 0) for text, width in cells)
    return Text().append(line.rstrip() + "\n", style="dim")


def deeper(canvas: Canvas, words: str, others: str = "", label: str = "deeper") -> Text:
    """The last line of a view: what to type to see more; `others` are views to name instead."""
    command = canvas.subject.command(words, canvas.width - len(label) - 4)
    out = Text().append(f"  {label}: ", style="dim").append(f"{command}\n")
    return (
        out.append(f"{' ' * (len(label) + 4)}or --view {others}\n", style="dim") if others else out
    )


def footnotes(notes: Sequence[str], width: int) -> Text:
    """The caveats, a line below a view, dimmed and wrapped."""
    out = Text("\n")
    for note in notes:
        out.append("".join(f"  {line}\n" for line in wrapped(note, width - 2)), style="dim italic")
    return out


def sides(values: Sequence[float], cells: int, least: int) -> tuple[int, int, float]:
    """Of `cells`, those left and right of zero that bars of `values` need, and what one is worth.

    Each side has `least`, for its name.
    """
    below, above = max([0.0, *(-value for value in values)]), max([0.0, *values])
    wanted = round(cells * below / ((below + above) or 1.0))
    left = max(least, min(cells - least, wanted))
    return left, cells - left, max(below / left, above / (cells - left)) or 1.0


def bar(share: float, cells: int) -> str:
    """A bar of `cells` character cells, filled to `share` in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, share)) * cells * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[part] if part else "")).ljust(cells)


def percent(prob: float) -> str:
    """Seven characters: "  4.2 %", and "<0.1 %" where a little is not nothing."""
    return " <0.1 %" if 0 < prob < 0.0005 else f"{prob:6.1%}".replace("%", " %").rjust(7)


def place(rank: int) -> str:
    """A rank, which counts from 0, in words: "the 2nd most probable (rank 1)"."""
    nth = rank + 1
    teen = 10 < nth % 100 < 14
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(nth % 10, "th")
    return f"the {f'{nth}{ending} ' if rank else ''}most probable (rank {rank})"


def signed_bar(cells: float, left: int, right: int) -> tuple[str, str]:
    """What stands left and right of zero: a bar of so many `cells` to the right, or the left."""
    if cells >= 0:
        return " " * left, bar(cells / right, right).rstrip()
    halves = round(min(-cells, left) * 2)  # in half cells: a left eighth has no mirror
    return ("▐" * (halves % 2) + "█" * (halves // 2)).rjust(left), ""


def number(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals; "–" where there is none."""
    return "–" if value is None else f"{value:z.{digits}f}"


def share(value: float | None) -> str:
    """A share of 1 in whole percent, as short as it gets: "62", "<1", "0"."""
    if value is None:
        return "–"
    return "<1" if 0 < value < 0.005 else f"{100 * value:.0f}"


def count(value: float) -> str:
    """A large count in three or four digits: 3752000 -> "3.75 M"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f}"


def _three(value: float) -> str:
    """About three digits, never an exponent."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def skipped(shown: range, total: int) -> str:
    """What a window leaves out, said in words; "" where it leaves out nothing."""
    if len(shown) == total:
        return ""
    return f"positions {shown.start} to {shown.stop - 1} of {total}; --position moves the window"
