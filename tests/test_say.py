"""What is said on stderr: as it is, but for a terminal's width; and ranks in words."""

from __future__ import annotations

import pytest

from llmcli.commands import say as module
from llmcli.commands.say import say
from llmcli.render.drawing import place

LONG = "Not used by --view next: --page, --layer, --head, --position."


def test_a_terminal_gets_whole_words(monkeypatch, capsys):
    say(LONG)
    assert capsys.readouterr().err == f"{LONG}\n"
    monkeypatch.setattr(module, "_columns", lambda: 24)
    say(f"short\n{LONG}\n  ^ here")
    first, *lines, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("short", "  ^ here")
    assert " ".join(lines) == LONG
    assert max(map(len, lines)) <= 24
    say("x" * 100)
    assert capsys.readouterr().err == "x" * 100 + "\n"  # a path can be copied


@pytest.mark.parametrize(
    ("rank", "words"),
    [(0, "the most"), (1, "the 2nd most"), (2, "the 3rd most"), (3, "the 4th most"),
     (10, "the 11th most"), (11, "the 12th most"), (20, "the 21st most"), (110, "the 111th most"),
     (1601, "the 1602nd most")],
)  # fmt: skip
def test_a_rank_in_words(rank, words):
    assert place(rank) == f"{words} probable (rank {rank})"
