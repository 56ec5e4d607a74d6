"""Sizes as people read them, and the pace of tokens."""

from __future__ import annotations

import pytest

from llmcli.units import Pace, rate, sized


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (12, "12 B"), (665, "665 B"), (1024, "1.00 KiB"), (15_006_272, "14.3 MiB"),
     (1023 * 1024, "1,023 KiB"), (548_105_171, "523 MiB"), (6_434_771_392, "5.99 GiB"),
     (10_239, "10.0 KiB"), (1_048_575, "1.00 MiB"), (2e15, "1,819 TiB")],
)  # fmt: skip
def test_sizes_are_for_people(nbytes, text):
    assert sized(nbytes) == text


def test_a_rate_leaves_out_all_that_comes_before_the_third_step():
    two_rows = Pace.of([9.0, 9.0, 5.0, 5.0, 7.0, 1.0, 1.0])  # one of which ends early
    assert (two_rows.first_s, two_rows.second_s, two_rows.last_s) == (1, 5, 9)
    assert rate(two_rows) == 3 / 4
    assert rate(two_rows, Pace.of([20, 21, 22])) == 4 / 5
    assert rate(Pace.of([1, 2])) is rate() is None
