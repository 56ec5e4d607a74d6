"""The guided walk, a screen a page: its words, wrapped, and the command that goes deeper."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, fit, heading, wrapped
from llmcli.render.text import harmless
from llmcli.render.walk import early, late

if TYPE_CHECKING:
    from llmcli.inspection.explain import Explain, Page


def draw(view: Explain, canvas: Canvas) -> Text:
    out = Text()
    for i, page in enumerate(view.pages):
        out.append("\n" if i else "").append_text(_page(view, page, canvas.width))
    return out


def _page(view: Explain, page: Page, width: int) -> Text:
    module = early if hasattr(early, page.topic) else late
    words = getattr(module, page.topic)(page.facts)
    out = heading("explain", f"{page.page} of {view.n_pages}", words.title, width=width)
    for part in words.body:
        if isinstance(part, str):
            out.append("".join(f"  {line}\n" for line in wrapped(part, min(width, 100) - 4)))
        else:
            out.append("".join(f"    {fit(x, width - 4).rstrip()}\n" for x in part), style="cyan")
    for command in words.deeper:
        out.append("  deeper: ", style="dim").append(f"{_command(view, command, width - 10)}\n")
    if page.page < view.n_pages:
        out.append(f"  next: --page {page.page + 1}, or --all\n", style="dim")
    return out


def _command(view: Explain, command: str, room: int) -> str:
    model = "" if view.model in ("", "fable") else f" -m {shlex.quote(view.model)}"
    head, braces, rest = command.partition(" {}")
    if not braces:
        fits = len(command) + len(model) + 7 <= room
        return harmless(f"llmcli {command}{model if fits else folded(model)}")
    text = view.text.decode("utf-8", "replace")
    full = f"llmcli {head} {shlex.quote(text)}{model}{rest}"
    if text.isprintable() and len(full) <= room:
        return full
    begin = f"llmcli {head} {shlex.quote(text)}"
    if not text.isprintable() or len(begin) + 2 > room:
        begin = f'llmcli {head} "..."'
    lines = [part for part in (begin, model.strip(), rest.strip()) if part]
    return " \\\n            ".join(map(harmless, lines))


def folded(options: str) -> str:
    """Options on a line of their own, as a shell takes them."""
    return f" \\\n           {options}"
