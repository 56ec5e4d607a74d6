"""A report in words and small tables: the same text on a terminal and in a pipe."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import (
    Canvas,
    called,
    columns,
    deeper,
    fit,
    footnotes,
    heading,
    name,
    percent,
    place,
    wrapped,
)
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.why import Side, Why

TOKEN = 14
SIDE = 24


def draw(view: Why, canvas: Canvas) -> Text:
    out = heading(
        "why", f"{called(view.token)} after {name(view.after.text)}, "
        f"position {view.position} of {plural(view.n_tokens, 'token')}", width=canvas.width,
    )  # fmt: skip
    for part in (_standing(view, canvas), _parts(view), _removals(view, canvas)):
        out.append("\n").append_text(part)
    out.append_text(footnotes(view.notes, canvas.width))
    token = f"--token id:{view.token.id} --versus id:{view.rival.id}"
    place = f" --position {view.position}" if view.position < view.n_tokens - 1 else ""
    words = f"inspect {{}}{place} {token} --view attribution"
    return out.append_text(deeper(canvas, words, "lens, ablation"))


def _standing(view: Why, canvas: Canvas) -> Text:
    """Rank and rival, then the way through the layers."""
    relation = "behind" if view.rival_rank < view.rank else "ahead of"
    text = (
        f"It is {place(view.rank)} of {view.vocab_size}: {percent(view.prob).strip()}, {relation} "
        f"{name(view.rival.text)} (rank {view.rival_rank}, {percent(view.rival_prob).strip()})."
    )
    if view.enters is None:
        text += f" It is not among the first {view.top_k}."
    else:
        since = "from the start" if view.enters == "embed" else f"since layer {view.enters}"
        text += f" It has been among the first {view.top_k} {since}."
    ranks = "Its rank after each layer, 0 the first:" + "".join(
        f"  {stage.after}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{stage.rank}" for stage in view.layers
    )
    out = Text("".join(f"  {line}\n" for line in wrapped(text, canvas.width - 4)))
    for line in wrapped(ranks, canvas.width - 4):
        out.append("  " + line.replace("\N{NO-BREAK SPACE}", " ") + "\n", style="dim")
    return out


def _parts(view: Why) -> Text:
    out = Text().append("  Heads and MLPs", style="bold")
    out.append(
        f"  what they add to its lead over {name(view.rival.text)}: {view.lead:+.4f} in all\n",
        style="dim",
    )
    out.append_text(columns(("  for", SIDE), ("against", SIDE)))
    for pair in zip_longest(view.parts_for, view.parts_against):
        for side, style in zip(pair, ("green", "red"), strict=True):
            out.append(_side(side), style=style)
        out.rstrip()
        out.append("\n")
    shown = len(view.parts_for) + len(view.parts_against)
    rest = plural(view.n_parts - shown, "other part")
    return out.append(f"  {rest} (embeddings, biases, weaker ones) {view.rest:+.4f}\n", style="dim")


def _side(side: Side | None) -> str:
    return " " * SIDE if side is None else f"  {fit(side.part, 10)}{side.adds:+9.4f}   "


def _removals(view: Why, canvas: Canvas) -> Text:
    shown = len(view.removals)
    out = Text().append("  Without one token", style="bold")
    if view.n_candidates is None:
        return out.append("  none: the run is changed\n", style="dim")
    if not shown:
        return out.append("  none: the first and the last one always stay\n", style="dim")
    which = f"the {shown} most attended of {view.n_candidates}"
    out.append(f"  {which if shown < view.n_candidates else 'each'}, read again in "
               f"{view.n_batches} batch{'es' * (view.n_batches > 1)}\n", style="dim")  # fmt: skip
    token = max(TOKEN, min(24, (canvas.width - 52) // 2))
    out.append_text(columns(("  place", 7), ("token", token), ("attention", -9),
                            ("bits", -7), ("prob", -7), ("rank", -5), ("lead", -7),
                            (" says", token)))  # fmt: skip
    for row in view.removals:
        out.append(f"  {row.position:>5} ", style="cyan")
        out.append(f"{fit(name(row.token.text), token)}  {percent(row.attention)} ")
        out.append(f"{row.change_bits:+7.2f}", style="green" if row.change_bits < 0 else "red")
        out.append(f" {percent(row.prob)} {row.rank:>5} {row.lead:+7.2f} ")
        out.append(f" {fit(name(row.top.text), token - 2)}".rstrip() + "\n")
    return out.append(
        "  bits: what its log-probability gains; below zero, the token speaks for it\n", style="dim"
    )
