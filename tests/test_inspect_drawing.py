"""What the pictures of views share: cells, sizes, bars, the scale of colours."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from llmcli.inspection.mlp import MLPView
from llmcli.inspection.next import Guess, Next, PromptToken
from llmcli.inspection.replay import Replay, ReplayStep
from llmcli.inspection.tokens import TokenRow, Tokens
from llmcli.inspection.values import Token
from llmcli.render.beside import Column
from llmcli.render.beside import picture as beside
from llmcli.render.drawing import Canvas, count, fit, heading, signed_bar, wrapped
from llmcli.render.heat import half_blocks, heat
from llmcli.render.text import quoted
from llmcli.render.views.mlp import draw as draw_mlp
from llmcli.render.views.next import draw as draw_next
from llmcli.render.views.replay import draw as draw_replay
from llmcli.render.views.tokens import draw as draw_tokens
from llmcli.units import plural


def test_fit_counts_cells_not_characters():
    assert fit("ab", 4) == "ab  "
    assert fit("ab", 4, right=True) == "  ab"
    assert fit("大きな", 6) == "大きな"
    assert fit("大きな", 5) == "大き…"
    assert fit("大きな", 4) == "大… "


def test_sizes_are_written_short():
    assert [count(n) for n in (7, 999, 1500, 7_497_728, 124_439_808)] == [
        "7", "999", "1.50 k", "7.50 M", "124 M",
    ]  # fmt: skip
    assert [plural(n, "byte") for n in (0, 1, 4096, 12_345)] == [
        "0 bytes", "1 byte", "4096 bytes", "12,345 bytes",
    ]  # fmt: skip


def test_bars_grow_both_ways_from_the_middle():
    assert signed_bar(2, 4, 6) == ("    ", "██")
    assert signed_bar(-2, 4, 6) == ("  ██", "")
    assert signed_bar(-0.5, 4, 6) == ("   ▐", "")
    assert signed_bar(-9, 4, 6) == ("████", "")


def test_the_scale_grows_brighter_throughout():
    steps = [heat(i / 50) for i in range(51)]
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in steps]
    assert lightness == sorted(lightness)
    assert half_blocks(None, None)[0] == " "
    assert half_blocks(0.5, None)[0] == "▀"
    assert half_blocks(None, 0.5)[0] == "▄"


def test_different_bytes_are_never_quoted_the_same():
    """A control character, its escape spelled out, and both beside a byte that is no text."""
    parts = [b"a", b"\\", b'"', b"\xe2", b"\\xe2", b"\n", b"\\n", b"\x1b", b"\\x1b", b"x1b",
             b"\x80", b"\xc2\x80"]  # fmt: skip
    tokens = {a + b + c for a in parts for b in parts for c in parts}
    assert len({quoted(token) for token in tokens}) == len(tokens)


def test_the_screen_of_a_long_prompt_keeps_to_its_width():
    places = tuple(PromptToken(i, Token(1000 + i, b" token")) for i in range(24))
    guesses = tuple(Guess(after, Token(5, b"a"), 0.5, 1.0) for after in ["embed", *"01357"])
    view = Next(n_tokens=1024, n_layer=8, n_head=1, position=23, token=Token(5, b"a"),
                entropy_bits=1.0, prompt=places, lens=guesses, sources=(), candidates=(),
                notes=())  # fmt: skip
    lines = draw_next(view, Canvas(80, False)).plain.splitlines()
    assert "1000 more not shown" in lines[2]
    assert lines[5].startswith('     8 " token" " token"')
    assert [line.split().index("▲") for line in lines if "▲" in line] == [8]  # of 16 to 23
    assert any(line.startswith("2. layer by layer, 5 of 8 ") for line in lines)
    assert max(map(cell_len, lines)) <= 80


@pytest.mark.parametrize("cells", range(16, 60))
def test_no_line_ends_within_a_quoted_token_or_between_a_number_and_its_unit(cells):
    tokens = ['" time"', '" a b c"', r'"\" x"', r'"\\"', '"  "']
    text = "It is " + " and then ".join(tokens) + " with 12.5 % of 80.0 KiB."
    lines = wrapped(text, cells)
    assert " ".join(lines) == text
    assert max(map(len, lines)) <= cells
    for kept in (*tokens, "12.5 %", "80.0 KiB"):
        assert any(kept in line for line in lines), kept


def test_a_heading_that_is_too_wide_goes_on_below():
    at = Token(0, b"<|endoftext|>")
    view = MLPView(
        n_tokens=1, layer=7, position=0, at=at, activation="gelu", n_neurons=1024, n_positive=278,
        norm=13.32, token=at, versus=None, rest=0.0, n_rest=0, bias=0.0, effect=0.0, neurons=(),
        promotions=(), notes=(),
    )  # fmt: skip
    lines = draw_mlp(view, Canvas(80, False)).plain.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert lines[1] == "  writes 13.32"
    assert heading("check", "all pass", width=80).plain == "check  all pass\n"


def test_a_part_of_a_text_is_marked_where_it_was_cut():
    rows = tuple(
        TokenRow(i, Token(i, b" w%d" % i), "", None, None, None, None, None, None) for i in range(9)
    )
    view = Tokens(n_tokens=9, n_bytes=27, n_scored=0, perplexity=None, bits_per_token=None,
                  bits_per_byte=None, n_windows=1, stride=0, position=4, rows=rows,
                  notes=())  # fmt: skip
    for n, text in ((9, "  w0 w1 w2 w3 w4 w5 w6 w7 w8"), (3, " … w3 w4 w5…")):
        assert draw_tokens(view, Canvas(80, True, rows=n)).plain.splitlines()[2] == text


@pytest.mark.parametrize("drawn", [None, Token(2, b"b")])
def test_a_replay_names_what_was_drawn_only_where_something_was(drawn):
    worst = ReplayStep(step=0, run=0, token=Token(1, b"a"), logprob=-1.0, max_difference=0.5,
                  drawn=drawn)  # fmt: skip
    view = Replay(file="x", how="forced", model="m", dtype="float32", n_runs=1, n_compared=1,
                  n_identical=0, max_difference=0.5, tolerance=1.0, passed=True, verdict="the same",
                  facts=(), runs=(), worst=(worst,), notes=())  # fmt: skip
    assert ("drawn here" in draw_replay(view, Canvas(80, False)).plain) == (drawn is not None)


def test_control_characters_at_the_mark_are_escaped():
    """White space in the eyes of Python, but not of a terminal."""
    sides = [Column("untouched", ["a", "\x85\x1c\u2028b"], "", 1.0), Column("c", ["a"], "", 2.0)]
    console = Console(width=80, file=io.StringIO())
    console.print(beside(sides, 1, [0.5], "", 80), end="")
    assert not {"\x85", "\x1c", "\u2028"} & set(console.file.getvalue())


def test_two_columns_end_with_one_line_end():
    sides = [Column("untouched", ["a"], "", 1.0), Column("changed", ["b"], "", 2.0)]
    console = Console(width=80, file=io.StringIO())
    console.print(beside(sides, 0, [0.5], "", 80), end="")
    assert console.file.getvalue().endswith("the untouched model.\n")
    assert not console.file.getvalue().endswith("\n\n")
