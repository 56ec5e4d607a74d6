"""Three lists side by side: nearest by cosine, by dot product, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, columns, fit, footnotes, heading, name, percent

if TYPE_CHECKING:
    from llmcli.inspection.neighbors import Neighbors, Term

RANK = 5
VALUE = 9
GAP = 2
MAX_TOKEN = 24


def draw(view: Neighbors, canvas: Canvas) -> Text:
    out = heading("neighbors", _sum(view.terms), f"norm {view.norm:.2f}",
                  f"the mean of all tokens is {view.mean_norm:.2f}",
                  width=canvas.width)  # fmt: skip
    token = min(MAX_TOKEN, (canvas.width - RANK - 2 * GAP) // 3 - VALUE - 2)
    cell = token + VALUE + 2
    out.append("\n").append_text(_titles(cell))
    lists: list[list[tuple[str, str, bool]]] = [
        [(name(row.token.text), f"{row.cosine:.3f}", row.asked) for row in view.by_cosine],
        [(name(row.token.text), f"{row.dot:.3f}", row.asked) for row in view.by_dot],
        [(name(row.token.text), percent(row.prob), row.asked) for row in view.returns],
    ]
    for rank, line in enumerate(zip(*lists, strict=True)):
        out.append(f"{rank:>{RANK - 1}} ", style="cyan")
        out.append_text(_line(line, token))
    if len(view.fates) > 1:
        out.append("\n").append_text(_fates(view, token))
    back = percent(view.share_returned).strip()
    out.append("\n  round trip  ", style="bold")
    out.append(f"{view.n_returned} of {view.n_tried} tokens come back as the likeliest ({back})\n")
    return out.append_text(footnotes(view.notes, canvas.width))


def _sum(terms: Sequence[Term]) -> str:
    """The sum as it was asked for: `" king" - " man" + 2 " woman"`."""
    said = []
    for i, term in enumerate(terms):
        sign = "- " if term.times < 0 else "+ " if i else ""
        times = "" if abs(term.times) == 1 else f"{abs(term.times)} "
        said.append(f"{sign}{times}{name(term.token.text)}")
    ids = f" (id {terms[0].token.id})" if len(terms) == 1 else ""
    return " ".join(said) + ids


def _titles(cell: int) -> Text:
    out = Text(" " * RANK)
    for title in ("by cosine", "by dot product", "embed, then unembed"):
        out.append(fit(title, cell) + " " * GAP, style="bold")
    out.rstrip()
    return out.append("\n")


def _line(cells: Sequence[tuple[str, str, bool]], token: int) -> Text:
    """One rank of all lists; what was asked about is marked."""
    out = Text()
    for text, value, asked in cells:
        out.append(f"{fit(text, token)}{'*' if asked else ' '}", style="bold" if asked else "")
        out.append(f"{fit(value, VALUE, right=True)} {' ' * GAP}")
    out.rstrip()
    return out.append("\n")


def _fates(view: Neighbors, token: int) -> Text:
    """The rank of each token asked about in each list."""
    out = columns(("  its rank", RANK + token), ("cosine", -2 * VALUE), ("dot product", -2 * VALUE),
                  ("unembedded", -2 * VALUE))  # fmt: skip
    for fate in view.fates:
        found = (
            (f"{fate.cosine_rank}", f"{fate.cosine:.3f}"),
            (f"{fate.dot_rank}", f"{fate.dot:.3f}"),
            (f"{fate.return_rank}", percent(fate.return_prob)),
        )
        out.append(f"{'':{RANK}}{fit(name(fate.token.text), token)}")
        for rank, value in found:
            out.append(f" {rank:>{VALUE}}", style="cyan").append(fit(value, VALUE, right=True))
        out.append("\n")
    return out
