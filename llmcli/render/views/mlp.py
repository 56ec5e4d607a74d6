"""A line for each of the strongest neurons: its activation, what it adds, whom it speaks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, called, columns, fit, footnotes, heading, name
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.mlp import MLPView

PART = 9  # "L47.N6399"
NUMBER = 7
EFFECT = 9
FIXED = PART + 3 * NUMBER + EFFECT + 7  # cells of a line without its tokens
TOKEN = 11
SIDE = 3  # tokens for and against at most


def draw(view: MLPView, canvas: Canvas) -> Text:
    out = heading("mlp", f"layer {view.layer} at {name(view.at.text)}, position {view.position}",
                  f"{view.n_positive} of {plural(view.n_neurons, 'neuron')} above 0",
                  f"writes {view.norm:.2f}", width=canvas.width)  # fmt: skip
    out.append(f"  adds: to the logit of {called(view.token, view.versus)}\n\n", style="dim")
    fits = max(2, (canvas.width - FIXED) // TOKEN)
    n_for = min(SIDE, fits - fits // 2)
    n_against = min(SIDE, fits // 2)
    out.append_text(columns(("  neuron", PART + 2), ("before", -NUMBER), ("after", -NUMBER),
                            ("writes", -NUMBER), ("adds", -EFFECT),
                            (" for", n_for * TOKEN), ("against", n_against * TOKEN)))  # fmt: skip
    tokens: dict[tuple[int, str], list[str]] = {}
    for row in view.promotions:
        tokens.setdefault((row.neuron, row.side), []).append(name(row.token.text))
    for neuron in view.neurons:
        out.append(f"  {fit(neuron.part, PART)}", style="cyan")
        out.append(f" {neuron.before:{NUMBER}.3f} {neuron.after:{NUMBER}.3f}")
        out.append(f" {neuron.norm:{NUMBER}.3f}")
        out.append(f" {neuron.effect:+{EFFECT}.4f}", style="green" if neuron.effect >= 0 else "red")
        for side, count, style in (("for", n_for, "green"), ("against", n_against, "red")):
            out.append(" " if side == "for" else "")
            for token in tokens[neuron.neuron, side][:count]:
                out.append(f" {fit(token, TOKEN - 1)}", style=style)
        out.append("\n")
    out.append_text(_total(view))
    return out.append_text(footnotes(view.notes, canvas.width))


def _total(view: MLPView) -> Text:
    """What adds up to the effect of the whole MLP."""
    label = PART + 3 * (NUMBER + 1)
    out = Text()
    if view.n_rest:
        rest = plural(view.n_rest, "other neuron")
        out.append(f"  {rest:{label}} {view.rest:+{EFFECT}.4f}\n", style="dim")
    out.append(f"  {'its bias':{label}} {view.bias:+{EFFECT}.4f}\n", style="dim")
    out.append(f"  {'─' * (label + EFFECT + 1)}\n", style="dim")
    return out.append(f"  {'the whole MLP':{label}} {view.effect:+{EFFECT}.4f}\n", style="bold")
