"""The default screen: how the next token comes about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from llmcli.render.drawing import (
    Canvas,
    bar,
    columns,
    deeper,
    fit,
    footnotes,
    heading,
    name,
    number,
    percent,
    section,
)
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.next import Next, PromptToken

TOKEN = 16
MAX_TOKEN = 20  # of the prompt's tokens


def draw(view: Next, canvas: Canvas) -> Text:
    out = heading(
        "next",
        f"what follows {name(view.token.text)}, position {view.position} of "
        f"{plural(view.n_tokens, 'token')}",
        f"{plural(view.n_layer, 'layer')} × {plural(view.n_head, 'head')}",
        width=canvas.width,
    )
    cells = max(10, min(40, canvas.width - 2 * TOKEN - 30))
    for part in (_prompt(view, canvas), _lens(view, cells), _sources(view, cells),
                 _candidates(view, cells)):  # fmt: skip
        out.append("\n").append_text(part)
    out.append_text(footnotes(view.notes, canvas.width))
    at = f" --position {view.position}" if view.position < view.n_tokens - 1 else ""
    others = "explain, attention, attribution, why, sampling, residual"
    return out.append_text(deeper(canvas, f"inspect {{}}{at} --view lens", others))


def _prompt(view: Next, canvas: Canvas) -> Text:
    hidden = view.n_tokens - len(view.prompt)
    about = "the prompt: a place, then tokens, below them ids"
    out = section(1, "tokens", about + (f"; {hidden} more not shown" if hidden else ""))
    margin = max(4, len(str(view.n_tokens)) + 2)  # where each line has its first place
    for line in _lines(view, canvas.width - margin):
        tokens, ids = Text(), Text(" " * margin)
        tokens.append(f"{line[0].position:>{margin}}", style="dim")
        for place in line:
            here = place.position == view.position
            token, id = (fit(said, _width(view, place)) for said in _said(view, place))
            tokens.append(" ").append(token.rstrip(), style="reverse" if here else "")
            tokens.append(" " * (cell_len(token) - cell_len(token.rstrip())))
            ids.append(f" {id}", style="dim")
        for row in (tokens, ids):
            row.rstrip()
            out.append_text(row).append("\n")
    return out


def _said(view: Next, place: PromptToken) -> tuple[str, str]:
    """A token, and below it its id, which points to the one asked about."""
    pointer = " ▲" if place.position == view.position else ""
    return name(place.token.text), f"{place.token.id}{pointer}"


def _width(view: Next, place: PromptToken) -> int:
    return min(MAX_TOKEN, max(map(cell_len, _said(view, place))))


def _lines(view: Next, width: int) -> list[list[PromptToken]]:
    """The places in as many lines as they need."""
    lines: list[list[PromptToken]] = [[]]
    used = 0
    for place in view.prompt:
        if lines[-1] and used + _width(view, place) + 1 > width:
            lines.append([])
            used = 0
        lines[-1].append(place)
        used += _width(view, place) + 1
    return lines


def _lens(view: Next, cells: int) -> Text:
    shown = len(view.lens) - 1  # the first is the embedding
    some = f", {shown} of {view.n_layer}" if shown < view.n_layer else ""
    out = section(2, f"layer by layer{some}", "its best guess; KL: how far from the model's own")
    out.append_text(columns(("  after", 9), ("says", TOKEN), ("", cells), ("prob", -7),
                            ("KL bits", -9)))  # fmt: skip
    for row in view.lens:
        out.append(f"  {fit(row.after, 6)} ", style="cyan")
        out.append(f" {fit(name(row.top.text), TOKEN)} ")
        out.append(bar(row.top_prob, cells), style="blue")
        out.append(f" {percent(row.top_prob)} {fit(number(row.kl_bits), 9, right=True)}\n")
    return out


def _sources(view: Next, cells: int) -> Text:
    out = section(3, "attention", "where this position reads: mean of all heads, and the keenest")
    out.append_text(columns(("  place", 9), ("token", TOKEN), ("", cells), ("mean", -7),
                            ("", 2), ("keenest head", 16)))  # fmt: skip
    for row in view.sources:
        out.append(f"  {fit(str(row.position), 5, right=True)}  ", style="cyan")
        out.append(f" {fit(name(row.token.text), TOKEN)} ")
        out.append(bar(row.weight, cells), style="magenta")
        head = f"L{row.layer}.H{row.head}"
        out.append(f" {percent(row.weight)}    {fit(head, 7)}{percent(row.head_weight)}\n")
    return out


def _candidates(view: Next, cells: int) -> Text:
    about = f"the most probable, before any filter; {view.entropy_bits:.2f} bits of doubt"
    out = section(4, "the next token", about)
    out.append_text(columns(("   rank", 9), ("token", TOKEN), ("", cells), ("prob", -7),
                            ("logit", -9)))  # fmt: skip
    for row in view.candidates:
        style = "bold green" if row.rank == 0 else ""
        out.append(f"  {fit(str(row.rank), 5, right=True)}  ", style="cyan")
        out.append(f" {fit(name(row.token.text), TOKEN)} ", style=style)
        out.append(bar(row.prob, cells), style="green")
        out.append(f" {percent(row.prob)} {fit(number(row.logit), 9, right=True)}\n", style=style)
    return out
