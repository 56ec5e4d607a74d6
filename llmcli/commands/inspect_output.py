"""How views leave: as pictures, as TSV, as one JSON object, and into files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.commands.files import write
from llmcli.commands.options import ColorMode

if TYPE_CHECKING:
    from llmcli.commands.made import Made
    from llmcli.inspection.values import View
    from llmcli.render.console import Picture
    from llmcli.render.drawing import Canvas


def canvas_for(color: ColorMode, rows: int | None = None) -> Canvas:
    """What there is to draw on."""
    from llmcli.render.console import console
    from llmcli.render.drawing import MAX_WIDTH, Canvas

    out = console(color.value)
    colored = out.color_system is not None and not out.no_color
    return Canvas(min(out.width, MAX_WIDTH), colored, rows)


def is_plain(view: View) -> bool:
    """Whether it is text when piped, too, and no rows."""
    from llmcli.inspection.catalogue import VIEWS

    return view.name in VIEWS and VIEWS[view.name].plain


def draw(view: View, canvas: Canvas) -> Any:
    """The view as a renderable."""
    return import_module(f"llmcli.render.views.{view.name}").draw(view, canvas)


def pictures(made: Made, canvas: Canvas) -> Iterator[Picture]:
    """Each view's, the first of each kind under what it is of, but for the model as it is."""
    from llmcli.inspection.catalogue import VIEWS
    from llmcli.render.drawing import fit

    steady = {name for name, entry in VIEWS.items() if not entry.changes}
    changes = made.about.get("changes", ())
    changed = fit(f"changed: {'  '.join(changes)}", canvas.width - 6).rstrip() if changes else ""
    parts = [
        ("", [view for view in made.views if view.name in steady]),
        ("untouched", made.untouched),
        (changed, [view for view in made.views if view.name not in steady]),
        ("difference", made.differences),
    ]
    for title, views in parts:
        subject = replace(made.subject, changes=()) if title == "untouched" else made.subject
        for i, view in enumerate(views):
            yield "" if i else title, draw(view, replace(canvas, subject=subject))


def show(made: Made, canvas: Canvas | None, color: ColorMode, as_json: bool) -> None:
    """What was made on stdout: JSON, or the pictures one below the other; TSV without a canvas."""
    from llmcli.render.console import console, print_all

    if as_json:
        print_json(made)
    elif canvas is not None:
        print_all(console(color.value), pictures(made, canvas))
    else:
        print_tsv(made)


def print_tsv(made: Made) -> None:
    """Rows, each view under a `# view` line where there are several; some views are plain text."""
    from llmcli.render.console import console
    from llmcli.render.forms import tsv

    plain = replace(canvas_for(ColorMode.never), subject=made.subject)
    kinds = {"untouched": made.untouched, "view": made.views, "difference": made.differences}
    for kind, views in kinds.items():
        for view in views:
            if len(made.all) > 1:
                print(f"# {kind} {getattr(view, 'of', view.name)}")
            if is_plain(view):
                console(ColorMode.never.value).print(draw(view, plain), end="")
            else:
                sys.stdout.write(tsv(view))


def print_json(made: Made) -> None:
    from llmcli.render.forms import document
    from llmcli.strict_json import strict

    about = dict(made.about)
    for key, views in (("baseline", made.untouched), ("difference", made.differences)):
        if views:
            about[key] = document(views, {})["views"]
    sys.stdout.write(strict(document(made.views, about)) + "\n")


def save_pictures(made: Made, path: Path, canvas: Canvas) -> None:
    """The same in colour, as SVG or HTML by the name of the file."""
    from llmcli.render.export import html, svg

    export = svg if path.suffix == ".svg" else html
    page = export(pictures(made, replace(canvas, color=True)), canvas.width)
    write(path, page.encode("utf-8", "replace"))
