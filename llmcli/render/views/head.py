"""One head at one position: five steps, every number of the sums in sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from llmcli.render.drawing import Canvas, bar, columns, fit, footnotes, heading, name, section
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.head import Head, Key, Push

INDENT = 8  # the index of a line's first number
TOKEN = 14
SCORE = 10


KEYS = 3  # written out, where nobody says how many


def draw(view: Head, canvas: Canvas) -> Text:
    keenest = sorted(view.keys, key=lambda key: -key.exp)[: canvas.rows or KEYS]
    view = replace(view, keys=tuple(key for key in view.keys if key in keenest))
    out = heading(
        "head", f"L{view.layer}.H{view.head}",
        f"what {name(view.token.text)} at position {view.position} reads",
        plural(view.n_visible, "place"), width=canvas.width,
    )  # fmt: skip
    for part in (_query(view, canvas), _keys(view, canvas), _scores(view, canvas),
                 _values(view, canvas), _projection(view, canvas)):  # fmt: skip
        out.append("\n").append_text(part)
    return out.append_text(footnotes(view.notes, canvas.width))


def _numbers(values: Sequence[float], digits: int, width: int) -> Text:
    """A vector in lines of eight or sixteen numbers, the index of its first before each."""
    shown = [f"{value:.{digits}f}" for value in values]
    cell = 1 + max(map(len, shown))
    fits = max(1, (width - INDENT) // cell)
    per_line = 1 << (fits.bit_length() - 1)
    out = Text()
    for start in range(0, len(shown), per_line):
        out.append(f"{start:>{INDENT - 1}} ", style="cyan")
        line = "".join(text.rjust(cell) for text in shown[start : start + per_line])
        out.append(f"{line}\n")
    return out


def _n_rest(view: Head) -> int:
    """How many of the places it reads are not written out."""
    return view.n_visible - sum(key.visible for key in view.keys)


def _place(key: Key) -> Text:
    return Text().append(f"{key.position:>5} ", style="cyan").append(name(key.token.text))


def _query(view: Head, canvas: Canvas) -> Text:
    about = f"norm_1(x) W_Q + b_Q: {view.n_embd} numbers of the stream become {view.head_dim}"
    return section(1, "the query q", about).append_text(_numbers(view.q, 3, canvas.width))


def _keys(view: Head, canvas: Canvas) -> Text:
    hidden = _n_rest(view)
    about = "norm_1(x) W_K + b_K at each place" + (f"; {hidden} more with --rows" if hidden else "")
    out = section(2, "the keys k", about)
    for key in view.keys:
        out.append_text(_place(key))
        out.append("   q · k = ").append(f"{key.dot:.4f}\n", style="bold")
        out.append_text(_numbers(key.k, 3, canvas.width))
    return out


def _scores(view: Head, canvas: Canvas) -> Text:
    divisor = f"{view.divisor:.7g}"
    about = f"score = q · k / {divisor}; e^(score - {view.greatest:.4f}); share of sum"
    out = section(3, "the weights", about)
    out.append_text(columns(
        ("place", -5), ("token", TOKEN), ("q · k", -SCORE), (f"/ {divisor}", -SCORE),
        ("e^", -SCORE), ("weight", -SCORE), ("model's own", -12),
    ))  # fmt: skip
    cells = canvas.width - 6 - TOKEN - 4 * (SCORE + 1) - 13
    for key in view.keys:
        out.append(f"{key.position:>5} ", style="cyan")
        out.append(fit(name(key.token.text), TOKEN))
        score = "masked" if key.score is None else f"{key.score:.4f}"
        out.append(f" {key.dot:{SCORE}.4f} {score:>{SCORE}} {key.exp:{SCORE}.6f} ")
        out.append(f"{key.weight:{SCORE}.6f}", style="bold")
        out.append(f" {key.model_weight:12.6f}", style="dim")
        out.append(f" {bar(key.weight, cells - 1).rstrip()}".rstrip() + "\n", style="magenta")
    if n_rest := _n_rest(view):
        rest = fit(plural(n_rest, "other"), TOKEN + 2 * (SCORE + 1))
        exp = view.total - sum(key.exp for key in view.keys)
        out.append(f"      {rest} {exp:{SCORE}.6f} {exp / view.total:{SCORE}.6f}\n")
    out.append(f"      {fit('sum', TOKEN + 2 * (SCORE + 1))} {view.total:{SCORE}.6f}\n")
    masked = view.n_tokens - view.n_visible
    if masked:
        out.append(f"      {plural(masked, 'place')} masked: score -∞, weight 0\n", style="dim")
    return out


def _values(view: Head, canvas: Canvas) -> Text:
    out = section(4, "the values v", "norm_1(x) W_V + b_V; each times its weight, added up: z")
    for key in view.keys:
        if not key.visible:
            continue
        out.append_text(_place(key)).append(f"   {key.weight:.6f} ×\n", style="bold")
        out.append_text(_numbers(key.v, 3, canvas.width))
    if n_rest := _n_rest(view):
        out.append(f"      {plural(n_rest, 'other')}, weighted and added up\n")
        mixed = (sum(key.weight * key.v[d] for key in view.keys) for d in range(view.head_dim))
        rest = [z - part for z, part in zip(view.z, mixed, strict=True)]
        out.append_text(_numbers(rest, 4, canvas.width))
    out.append("      z", style="bold").append(
        f"   the model's own differs by {view.z_error:.1e} at most\n", style="dim"
    )
    return out.append_text(_numbers(view.z, 4, canvas.width))


def _projection(view: Head, canvas: Canvas) -> Text:
    c = view.component
    about = f"z W_O: {view.head_dim} numbers become {view.n_embd}, here the largest, number {c}"
    out = section(5, "into the stream", about)
    out.append(f"      W_O into number {c}\n").append_text(_numbers(view.w_out, 4, canvas.width))
    out.append("      z · W_O = ").append(f"{view.written:.4f}", style="bold")
    replaced = ", as it is changed" if abs(view.model_written - view.written) > 0.01 else ""
    out.append(f"   the model's own {view.model_written:.4f}{replaced}\n", style="dim")
    out.append(
        f"      all {view.n_embd} numbers have the norm {view.norm:.3f}; "
        f"the stream they are added to {view.stream_norm:.3f}\n"
    )
    if not view.pushes:
        return out.append("      so it raises no token and lowers none\n")
    half = (len(view.pushes) + 1) // 2
    for label, some in (("raises", view.pushes[:half]), ("lowers", view.pushes[half:])):
        out.append_text(_pushes(label, some, canvas.width))
    return out


def _pushes(label: str, pushes: Sequence[Push], width: int) -> Text:
    """The tokens on one line, as many as it holds."""
    out = Text().append(f"      {label} ", style="dim")
    for push in pushes:
        text = f" {name(push.token.text)} {push.adds:+.2f} "
        if cell_len(out.plain) + cell_len(text) > width:
            break
        out.append(text)
    out.rstrip()
    return out.append("\n")
