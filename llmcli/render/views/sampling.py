"""The sampling microscope: what each filter cuts, and how the candidates fare."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import (
    CHOSEN,
    Canvas,
    bar,
    columns,
    fit,
    footnotes,
    heading,
    name,
    number,
    percent,
)

if TYPE_CHECKING:
    from llmcli.inspection.sampling import Fate, SamplingView

STAGE = 20
TOKEN = 16
CELL = 11


def draw(view: SamplingView, canvas: Canvas) -> Text:
    out = heading(
        "sampling",
        f"the choice after position {view.position}",
        f"seed {view.seed}",
        width=canvas.width,
    )
    out.append("\n").append_text(_stages(view, canvas.width))
    out.append("\n").append_text(_candidates(view, canvas.width))
    out.append("\n").append_text(_draw(view))
    return out.append_text(footnotes(view.notes, canvas.width))


def _stages(view: SamplingView, width: int) -> Text:
    cells = max(6, min(24, width - STAGE - TOKEN - 38))
    out = columns(("  stage", STAGE), ("kept", -7), ("cut", -7), ("", cells), ("entropy", -7),
                  ("likeliest", TOKEN), ("", -7))  # fmt: skip
    for stage in view.stages:
        label = fit(stage.stage.replace("_", "-"), STAGE - 2)
        cut = "–" if stage.stage == view.stages[0].stage else percent(stage.cut_mass)
        out.append(f"  {label} ", style="cyan")
        out.append(f"{stage.kept:>7} {cut:>7} ")
        out.append(bar(stage.cut_mass, cells), style="red")
        out.append(f" {stage.entropy_bits:7.2f} {fit(name(stage.top.text), TOKEN)}")
        out.append(f"{percent(stage.top_prob)}\n")
    return out


def _candidates(view: SamplingView, width: int) -> Text:
    """The probability of the likeliest tokens at each stage; the last stages that fit."""
    stages = [stage.stage for stage in view.stages]
    fits = max(2, (width - TOKEN - 19) // (CELL + 1))
    shown = stages if len(stages) <= fits else [stages[0], *stages[1 - fits :]]
    out = columns(("  rank", -6), ("token", TOKEN + 1), ("logit", -8),
                  *((stage.replace("_", "-"), -CELL) for stage in shown))  # fmt: skip
    for rank, group in groupby(view.candidates, key=lambda fate: fate.rank):
        fates: dict[str, Fate] = {fate.stage: fate for fate in group}
        first = fates[stages[0]]
        taken = first.token.id == (view.forced or view.drawn).id
        style = "bold green" if taken else ""
        out.append(f"{CHOSEN if taken else ' '} {rank:>4} ", style=style or "cyan")
        out.append(f"{fit(name(first.token.text), TOKEN + 1)} {number(first.logit):>8}",
                   style=style)  # fmt: skip
        for stage in shown:
            fate = fates[stage]
            text = "cut" if fate.logit is None else percent(fate.prob).strip()
            out.append(f" {fit(text, CELL, right=True)}",
                       style="dim" if fate.logit is None else style)  # fmt: skip
        out.append("\n")
    return out


def _draw(view: SamplingView) -> Text:
    out, mark, style = Text(), f"{CHOSEN} ", "bold green"
    if view.forced is not None and view.forced_model_prob is not None:
        out.append(f"{mark}forced  {fit(name(view.forced.text), TOKEN)} ", style=style)
        out.append(f"with {percent(view.forced_model_prob).strip()} before the filters\n")
        mark, style = "  ", ""
    out.append(f"{mark}drawn   {fit(name(view.drawn.text), TOKEN)} ", style=style)
    after, before = percent(view.drawn_prob).strip(), percent(view.drawn_model_prob).strip()
    out.append(f"with {after} after the filters, {before} before\n")
    same = ", the same" if view.greedy.id == view.drawn.id else ""
    out.append(f"  greedy  {fit(name(view.greedy.text), TOKEN)} always the likeliest{same}\n")
    return out
