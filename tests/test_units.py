"""Sizes as people read them."""

from __future__ import annotations

import pytest

from llmcli.units import sized


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (12, "12 B"), (665, "665 B"), (1024, "1.00 KiB"), (15_006_272, "14.3 MiB"),
     (1023 * 1024, "1,023 KiB"), (548_105_171, "523 MiB"), (6_434_771_392, "5.99 GiB"),
     (2e15, "1,862,645 GiB")],
)  # fmt: skip
def test_sizes_are_for_people(nbytes, text):
    assert sized(nbytes) == text
