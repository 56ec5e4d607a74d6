"""The guided walk, a screen a page: its words, wrapped, and the command that goes deeper."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, deeper, fit, footnotes, heading, wrapped
from llmcli.render.walk import early, late

if TYPE_CHECKING:
    from llmcli.inspection.explain import Explain, Page


def draw(view: Explain, canvas: Canvas) -> Text:
    out = Text()
    canvas = replace(canvas, subject=replace(canvas.subject, changes=()))  # which it leaves out
    for i, page in enumerate(view.pages):
        out.append("\n" if i else "").append_text(_page(view, page, canvas))
    if view.notes:
        out.append_text(footnotes(view.notes, min(canvas.width, 100)))
    return out


def _page(view: Explain, page: Page, canvas: Canvas) -> Text:
    width = canvas.width
    module = early if hasattr(early, page.topic) else late
    words = getattr(module, page.topic)(page.facts)
    out = heading("explain", f"{page.page} of {view.n_pages}", words.title, width=width)
    for part in words.body:
        if isinstance(part, str):
            out.append("".join(f"  {line}\n" for line in wrapped(part, min(width, 100) - 4)))
        else:
            out.append("".join(f"    {fit(x, width - 4).rstrip()}\n" for x in part), style="cyan")
    for command in words.deeper:
        out.append_text(deeper(canvas, command))
    if page.page < view.n_pages:
        asked = {"--layer": view.layer, "--head": view.head}
        which = "".join(f" {option} {i}" for option, i in asked.items() if i is not None)
        out.append_text(deeper(canvas, f"inspect {{}} --page {page.page + 1}{which}", label="next"))
    return out
