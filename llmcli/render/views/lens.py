"""The logit lens as a table: layers down, positions across, each cell on the colour of its prob."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import (
    Canvas,
    bar,
    called,
    columns,
    fit,
    footnotes,
    heading,
    name,
    number,
    percent,
    share,
    skipped,
)
from llmcli.render.heat import on_heat
from llmcli.units import plural, window

if TYPE_CHECKING:
    from llmcli.inspection.lens import Lens, LensRow

CELL = 13  # a token, a space, a probability in percent
LABEL = 7
KL = 8


def room(width: int) -> int:
    """How many positions fit into `width` columns."""
    return max(1, (width - LABEL - KL) // CELL)


def draw(view: Lens, canvas: Canvas) -> Text:
    if view.token is not None:
        return _fate(view, canvas)
    places = [place.position for place in view.prompt]
    shown = window(len(places), places.index(view.position), room(canvas.width))
    places = places[shown.start : shown.stop]
    out = heading("lens", "what each position would say next, were a layer the last",
                  plural(view.n_tokens, "token"), width=canvas.width)  # fmt: skip
    out.append("\n").append_text(_header(view, shown))
    for line in _by_layer(view):
        out.append(fit(line[0].after, LABEL), style="cyan")
        for row in line[shown.start : shown.stop]:
            style = on_heat(row.top_prob) if canvas.color else ""
            cell = f"{fit(name(row.top.text), CELL - 5)} {fit(share(row.top_prob), 3, right=True)}"
            out.append(cell, style=style).append(" ")
        kl = next(row.kl_bits for row in line if row.position == view.position)
        out.append(f"{kl:{KL - 1}.2f}\n")
    span = range(places[0], places[-1] + 1)
    if left_out := skipped(span, view.n_tokens):
        out.append(f"  {left_out}\n", style="dim")
    about = (
        f"A cell holds a token and its probability in %; KL is that of position {view.position}."
    )
    return out.append_text(footnotes([about, *view.notes], canvas.width))


def _header(view: Lens, shown: range) -> Text:
    """Position numbers, and the tokens that stand there."""
    places = view.prompt[shown.start : shown.stop]
    first = "".join(fit(str(place.position), CELL) for place in places)
    second = "".join(fit(name(place.token.text), CELL - 1) + " " for place in places)
    out = Text().append(f"{'after':<{LABEL}}{first}{'KL bits':>{KL}}\n", style="dim")
    return out.append(f"{'':{LABEL}}{second.rstrip()}\n", style="bold")


def _by_layer(view: Lens) -> list[list[LensRow]]:
    lines: dict[str, list[LensRow]] = {}
    for row in view.rows:
        lines.setdefault(row.after, []).append(row)
    return list(lines.values())


def _fate(view: Lens, canvas: Canvas) -> Text:
    """One token's rank and logit at each layer, at one position."""
    assert view.token is not None
    here = next(place.token for place in view.prompt if place.position == view.position)
    out = heading("lens", f"the fate of {called(view.token)}",
                  f"after {name(here.text)}, position {view.position}",
                  width=canvas.width)  # fmt: skip
    cells = max(8, min(30, canvas.width - 68))
    out.append("\n").append_text(
        columns(("after", LABEL), ("rank", -6), ("logit", -8), ("prob", -7), ("", cells),
                ("the best there", 16), ("prob", -7), ("KL bits", -8))
    )  # fmt: skip
    for line in _by_layer(view):
        row = next(row for row in line if row.position == view.position)
        prob = row.token_prob or 0.0
        out.append(fit(row.after, LABEL), style="cyan")
        out.append(f" {row.token_rank:>6} {number(row.token_logit):>8} {percent(prob)} ",
                   style="bold green" if row.token_rank == 0 else "")  # fmt: skip
        out.append(bar(prob, cells), style="green")
        out.append(f" {fit(name(row.top.text), 16)} {percent(row.top_prob)} {row.kl_bits:8.2f}\n")
    return out.append_text(footnotes(view.notes, canvas.width))
