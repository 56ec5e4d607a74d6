"""A download as it runs: bars on a terminal, lines in a log; and tables of models."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console, JustifyMethod, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column, Table
from rich.text import Text

from llmcli.render.console import console
from llmcli.render.text import harmless
from llmcli.units import sized

NAME_CELLS = 24
NARROW = 76  # columns; below, amounts and speed are left out
LINE_EVERY_S = 10.0


def lasting(seconds: float) -> str:
    """A time for people: "42 s", "3 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def short(file: str, cells: int = NAME_CELLS) -> str:
    """A file's name in `cells` cells; of a shard, the number is what counts."""
    if len(file) > cells:
        file = file.removesuffix(".safetensors")
    return file if len(file) <= cells else file[: cells - 1] + "…"


class Lines:
    """For a log: a line per file, and one every ten seconds while a large one comes."""

    def __init__(self) -> None:
        self.began: dict[str, tuple[float, int]] = {}  # file -> when, and at which byte
        self.told = 0.0
        self.model = ""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def planned(self, model: str, commit: str, nbytes: int) -> None:
        if model != self.model:
            self.model = model
            self.say(f"{model} at {commit[:12]}")

    def at(self, file: str, position: int, nbytes: int) -> None:
        now = time.monotonic()
        began, first = self.began.setdefault(file, (now, position))
        self.told = max(self.told, began)
        if now - self.told < LINE_EVERY_S or position == nbytes:
            return
        self.told = now
        speed = (position - first) / (now - began)
        left = f", {lasting((nbytes - position) / speed)} left" if speed else ""
        self.say(
            f"{file}: {position / nbytes:.0%} of {sized(nbytes)}, {sized(speed)}/s{left}".replace(
                "%", " %"
            )
        )

    def checking(self, file: str, position: int, nbytes: int) -> None:
        pass

    def done(self, file: str, nbytes: int, fetched: bool) -> None:
        self.say(f"{file}: {sized(nbytes)}{', verified' if fetched else ', here'}")

    def say(self, text: str) -> None:
        print(harmless(text), file=sys.stderr, flush=True)


class Quiet(Lines):
    """Says nothing."""

    def say(self, text: str) -> None:
        pass


class Bars:
    """For a terminal: what is done above, and below it the file that comes, and the total."""

    def __init__(self, color: str = "auto") -> None:
        self.console: Console = console(color, stderr=True)
        self.progress = _Fitting(self.console)
        self.file = self.progress.add_task("", total=None, visible=False, checking=False)
        self.total = self.progress.add_task("total", total=None, visible=False, checking=False)
        self.model, self.shown = "", ("", False)
        self.positions: dict[str, int] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        for task in (self.file, self.total):
            self.progress.update(task, visible=False)
        self.progress.stop()

    def planned(self, model: str, commit: str, nbytes: int) -> None:
        if model != self.model:
            self.model, self.positions = model, {}
            self.progress.reset(self.total, total=nbytes, visible=True)
            self._print(f"{model} at {commit[:12]}", "bold")
        self.progress.update(self.total, total=nbytes)

    def at(self, file: str, position: int, nbytes: int) -> None:
        self._show(file, position, nbytes, checking=False)
        was_here = file not in self.positions and position > 0
        self.positions[file] = position
        completed = sum(self.positions.values())
        if was_here:  # what was here before says nothing about the speed
            self.progress.reset(self.total, completed=completed)
        self.progress.update(self.total, completed=completed)

    def checking(self, file: str, position: int, nbytes: int) -> None:
        self._show(file, position, nbytes, checking=True)

    def done(self, file: str, nbytes: int, fetched: bool) -> None:
        self.at(file, nbytes, nbytes)
        self.progress.update(self.file, visible=False)
        self.shown = ("", False)
        state = "" if fetched else "  was here"
        self._print(f"  ✓ {file:<40} {sized(nbytes):>10}{state}", "green")

    def say(self, text: str) -> None:
        self._print(f"  ! {text}", "yellow")

    def _show(self, file: str, position: int, nbytes: int, checking: bool) -> None:
        """The bar of the file; it begins anew for another file, and for the check of this one."""
        if self.shown != (file, checking):
            self.shown = (file, checking)
            self.progress.reset(
                self.file,
                total=nbytes,
                completed=position,
                visible=True,
                description=file,
                checking=checking,
            )
        self.progress.update(self.file, completed=position)

    def _print(self, text: str, style: str) -> None:
        self.console.print(Text(harmless(text), style=style), soft_wrap=True)


class _Fitting(Progress):
    """As wide as the terminal is at each refresh: what it wraps is never wiped out."""

    def __init__(self, out: Console) -> None:
        self.out = out
        super().__init__(console=out, transient=True, expand=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        with suppress(OSError):  # room for the ^C that a terminal echoes, else it wraps the bars
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            self.out.width = max(columns - 3, 1)
        more = [] if self.out.width < NARROW else [_Column(_amount), _Column(_speed)]
        self.columns = (
            _Column(lambda task: short(task.description), justify="left"),
            BarColumn(bar_width=None),
            _Column(lambda task: f"{task.percentage:3.0f} %"),
            *more,
            _Column(_left),
        )
        return super().get_renderables()


class _Column(ProgressColumn):
    """One fact of a task, never wrapped."""

    def __init__(self, fact: Callable[[Task], str], justify: JustifyMethod = "right") -> None:
        super().__init__(Column(no_wrap=True, justify=justify))
        self.fact = fact

    def render(self, task: Task) -> Text:
        return Text(self.fact(task), no_wrap=True)


def _amount(task: Task) -> str:
    done, total = sized(task.completed), sized(task.total or 0)
    return f"{done.removesuffix(total[-4:])} of {total}"


def _speed(task: Task) -> str:
    if task.fields["checking"]:
        return "checking"
    return f"{sized(task.speed)}/s" if task.speed else ""


def _left(task: Task) -> str:
    left = task.time_remaining
    return "" if left is None or task.fields["checking"] else f"{lasting(left)} left"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int]) -> Table:
    """Rows under a head; the columns `numbers` stand to the right. Nothing is cut."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for i, name in enumerate(head):
        made.add_column(name, justify="right" if i in numbers else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(harmless(str(cell))) for cell in row))
    return made
