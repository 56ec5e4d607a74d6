"""Steering drawn: examples left and right of the middle; texts beside those of a random vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmcli.render.drawing import Canvas, columns, fit, footnotes, heading, name, number, signed_bar
from llmcli.render.text import harmless
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.steer import ExampleRow, SteerSweep, SteerVector, Trial

METHODS = {"mean": "the difference of means", "pca": "the first principal component of the pairs"}
EXAMPLES = 24  # lines of them, where nobody says
SIGNS = {"positive": "+", "negative": "-"}


def draw(view: SteerVector | SteerSweep, canvas: Canvas) -> RenderableType:
    if hasattr(view, "trials"):
        return _sweep(cast("SteerSweep", view), canvas)
    return _vector(view, canvas)


# --- a vector from examples ----------------------------------------------------------------------


def _vector(view: SteerVector, canvas: Canvas) -> Text:
    total = view.n_positive + view.n_negative
    out = heading("steer", f"{METHODS[view.method]} after layer {view.layer}",
                  f"{view.n_positive} positive, {view.n_negative} negative",
                  width=canvas.width)  # fmt: skip
    held_out = "" if view.held_out_apart is None else f", {view.held_out_apart} held out"
    out.append(
        f"  norm {view.norm:.2f}, the stream's {view.stream_norm:.1f}; {view.apart} of {total} "
        f"examples on their own side{held_out}\n\n",
        style="dim",
    )
    for part in (_layers(view), _examples(view, canvas), _nearest(view, canvas.width)):
        out.append_text(part).append("\n")
    out.right_crop(1)
    return out.append_text(footnotes(view.notes, canvas.width))


def _layers(view: SteerVector) -> Text:
    total = view.n_positive + view.n_negative
    out = columns(("  layer", 7), ("norm", -9), ("stream", -9), ("apart", -9), ("held out", -9))
    for row in view.layers:
        own = row.layer == view.layer
        unseen = "–" if row.held_out_apart is None else f"{row.held_out_apart}/{total}"
        out.append(f"{'▶' if own else ' '} {row.layer:<5}", style="bold cyan" if own else "cyan")
        out.append(f" {row.norm:9.2f} {row.stream_norm:9.1f} {f'{row.apart}/{total}':>9}")
        out.append(f" {unseen:>9}\n")
    return out


def _examples(view: SteerVector, canvas: Canvas) -> Text:
    """The examples of both kinds, those nearest to the other kind first."""
    most = canvas.rows or EXAMPLES
    shown = [
        row
        for side, sign in (("positive", 1), ("negative", -1))
        for row in sorted(
            (row for row in view.examples if row.side == side), key=lambda row: sign * row.place
        )[: max(1, most // 2)]
    ]
    left = max(10, min(16, (canvas.width - 40) // 4))
    per_cell = max(abs(row.place) for row in shown) / left or 1.0
    room = canvas.width - 2 * left - 26
    out = columns(("", 1), ("example", room), ("place", -8), ("held out", -9),
                  ("negative".rjust(left), left), (" positive", left))  # fmt: skip
    for row in shown:
        out.append_text(_example(row, room, left, per_cell))
    if len(shown) < len(view.examples):
        out.append(
            f"  the {len(shown)} of {len(view.examples)} nearest to the other side, more with "
            "--rows\n",
            style="dim",
        )
    return out


def _example(row: ExampleRow, room: int, left: int, per_cell: float) -> Text:
    style = "green" if row.side == "positive" else "red"
    minus, plus = signed_bar(row.place / per_cell, left, left)
    unseen = "–" if row.held_out is None else f"{row.held_out:+.2f}"
    out = Text().append(f"{SIGNS[row.side]} ", style=style)
    out.append(fit(harmless(row.text), room)).append(f" {row.place:+8.2f} {unseen:>9} ")
    return out.append(minus, style=style).append("│", style="dim").append(plus + "\n", style=style)


def _nearest(view: SteerVector, width: int) -> Text:
    out = Text().append("nearest tokens, by cosine in the unembedding\n", style="dim")
    for side, word in (("positive", "toward"), ("negative", "away")):
        line = Text().append(f"  {word:<6}", style="cyan")
        for near in (near for near in view.nearest if near.side == side):
            told = f" {name(near.token.text)} {near.cosine:+.2f}"
            if line.cell_len + cell_len(told) <= width:
                line.append(told)
        out.append_text(line).append("\n")
    return out


# --- a vector at growing strengths ---------------------------------------------------------------


def _sweep(view: SteerSweep, canvas: Canvas) -> RenderableType:
    drawn = "greedy" if view.greedy else f"seed {view.seed}"
    out = heading("steer", f"after layer {view.layer}, from position {view.position} on",
                  plural(len(view.trials), "strength"), drawn,
                  width=canvas.width)  # fmt: skip
    out.append(
        f"  norm {view.norm:.2f} × strength, the stream's {view.stream_norm:.1f}\n", style="dim"
    )
    table = Table.grid(padding=(0, 2), expand=True)
    for _ in range(2):
        table.add_column(ratio=1, overflow="fold")
    table.add_row(Text("untouched", style="bold cyan"))
    table.add_row(Text(f"perplexity {view.untouched_perplexity:.4g}", style="dim"))
    table.add_row(Text(harmless(view.untouched_text)))
    for trial in view.trials:
        table.add_row()
        for row in _trial(trial):
            table.add_row(*row)
    notes = footnotes(view.notes, canvas.width)
    notes.rstrip()  # in a group each part ends its line
    return Group(out, table, notes)


def _trial(trial: Trial) -> list[tuple[Text, Text]]:
    titles = [Text(f"{title} {trial.strength:g}", style="bold cyan")
              for title in ("strength", "random,")]  # fmt: skip
    facts = [
        Text(f"KL {number(kl, 3)} bits, perplexity {perplexity:.4g}", style="dim")
        for kl, perplexity in (
            (trial.kl_bits, trial.perplexity),
            (trial.control_kl_bits, trial.control_perplexity),
        )
    ]
    texts = [Text(harmless(text)) for text in (trial.text, trial.control_text)]
    return [(titles[0], titles[1]), (facts[0], facts[1]), (texts[0], texts[1])]
