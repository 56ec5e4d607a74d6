"""Stop strings and whole characters, whatever the borders between tokens."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.streaming import StopMatcher


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def fed(matcher: StopMatcher, parts: list[str]) -> str:
    return "".join(matcher.feed(part) for part in parts) + matcher.flush()


def by_hand(text: str, stops: list[str], keep: bool) -> str:
    """The definition, a character at a time: cut when some stop has just become complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[:end] if keep else text[: end - max(map(len, complete))]
    return text


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
    keep=st.booleans(),
)
def test_any_stop_in_any_text_with_any_borders(text, stops, cuts, keep):
    assert fed(StopMatcher(stops, keep), pieces(text, cuts)) == by_hand(text, stops, keep)


def test_a_stop_after_a_false_start_is_found():
    assert fed(StopMatcher(["AB"]), ["A", "A", "B", "C"]) == "A"


def test_what_cannot_become_a_stop_is_shown_at_once():
    matcher = StopMatcher(["END"])
    assert [matcher.feed(t) for t in ["The ", "EN", "try E", "ND x"]] == ["The ", "", "ENtry ", ""]
    assert matcher.stopped
    assert matcher.feed("more") == ""


def test_what_was_held_back_for_nothing_is_flushed():
    matcher = StopMatcher(["END"])
    assert matcher.feed("the EN") == "the "
    assert matcher.flush() == "EN"
