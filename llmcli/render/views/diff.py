"""Two recorded runs: what was different, the KL of each common step, the step where they part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.beside import sparkline
from llmcli.render.drawing import Canvas, bar, columns, fit, footnotes, heading, name, percent, tail
from llmcli.render.text import on_one_line
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.diff import Diff

WHAT, TOKEN = 20, 16
NOTHING = 1e-6  # bits: less is what another order of summing costs


def draw(view: Diff, canvas: Canvas) -> Text:
    out = heading("diff", f"{tail(view.file, 30)} and {tail(view.other_file, 30)}, run {view.run}",
                  width=canvas.width)  # fmt: skip
    out.append("\n").append_text(_facts(view, canvas.width))
    out.append("\n").append_text(_verdict(view, canvas.width))
    if view.steps:
        out.append_text(_kl(view, canvas.width))
    if view.candidates:
        out.append("\n").append_text(_candidates(view, canvas))
    return out.append_text(footnotes(view.notes, canvas.width))


def _facts(view: Diff, width: int) -> Text:
    if not view.facts:
        return Text("  The same model, options, machine and prompt.\n")
    cells = (width - WHAT - 4) // 2
    out = columns(("  differs", WHAT), ("this", cells), ("other", cells))
    for row in view.facts:
        out.append(f"  {fit(row.what, WHAT - 2)}", style="cyan")
        for value in (row.this, row.other):
            out.append(f" {fit(on_one_line(value), cells)}")
        out.rstrip()
        out.append("\n")
    return out


def _verdict(view: Diff, width: int) -> Text:
    counts = f"{view.n_tokens} and {plural(view.other_n_tokens, 'token')}"
    if not view.same_prompt:
        return Text(f"  The prompts differ, so no step can be compared ({counts}).\n")
    if view.first_difference is not None:
        said = f"They part at step {view.first_difference}"
    elif view.n_tokens == view.other_n_tokens:
        said = "The same tokens"
    else:
        said = f"The same {plural(view.n_common, 'token')}, where one ends"
    out = Text().append(f"  {said} ({counts})", style="bold")
    return out.append(f"\n  {tail(view.text, width - 4)}\n", style="dim")


def _kl(view: Diff, width: int) -> Text:
    if (view.max_kl_bits or 0.0) < NOTHING:
        return Text(f"  The same distributions at {plural(len(view.steps), 'step')}.\n")
    out = Text(f"  KL(this ‖ other) per step: mean at least {view.mean_kl_bits:.3g} bits, ")
    out.append(f"most {view.max_kl_bits:.3g} at step {view.max_kl_step}\n")
    line = sparkline([row.kl_bits for row in view.steps])
    room = width - 4
    for start in range(0, min(len(line), 4 * room), room):
        out.append(f"  {line[start : start + room]}\n", style="yellow")
    if len(line) > 4 * room:
        out.append(f"  {len(line) - 4 * room} steps more; a pipe has them\n", style="dim")
    return out


def _candidates(view: Diff, canvas: Canvas) -> Text:
    cells = max(4, min(20, (canvas.width - TOKEN - 46) // 2))
    wide = cells + 17
    out = Text().append(f"  step {view.first_difference}", style="bold")
    out.append("  the probability, and after the filters\n", style="dim")
    out.append_text(columns(("  token", TOKEN + 3), ("this", wide), ("other", wide)))
    for i, row in enumerate(view.candidates):
        if i >= (canvas.rows or 12) and not (row.chosen or row.other_chosen):
            continue
        mark = "▶" if row.chosen or row.other_chosen else " "
        out.append(f" {mark} {fit(name(row.token.text), TOKEN)}")
        sides = (
            (row.prob, row.drawn_prob, row.chosen, "blue"),
            (row.other_prob, row.other_drawn_prob, row.other_chosen, "green"),
        )
        for prob, drawn, chosen, color in sides:
            style = f"bold {color}" if chosen else color
            if prob is None or drawn is None:
                out.append(" " + fit("–", wide), style="dim")
                continue
            out.append(f" {bar(prob, cells)}", style=style)
            out.append(f" {percent(prob)} {percent(drawn)} ", style="bold" if chosen else "")
        out.rstrip()
        out.append("\n")
    return out
