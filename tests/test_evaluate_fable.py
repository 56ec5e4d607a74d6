"""The measures of the embedded model measure what they say."""

from __future__ import annotations

import math

import torch
from evaluate_fable import Recitation, bits_per_byte, distinct_4, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import ours


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 300), st.integers(2, 40))
def test_every_id_after_the_first_is_scored_once_in_its_first_window(n, n_ctx):
    ids = list(range(n))
    scored = [id for window, count in windows(ids, n_ctx) for id in window[-count:]]
    assert scored == ids[1:]
    assert all(len(window) <= n_ctx + 1 for window, _ in windows(ids, n_ctx))


def test_bits_per_byte_equal_a_sum_by_hand(save_gpt2):
    folder, theirs = save_gpt2()
    text = "abc" * 9
    ids = [0, *text.encode()[:27]]
    ids = [id % 97 for id in ids]
    with torch.inference_mode():
        logprobs = theirs(torch.tensor([ids])).logits.log_softmax(-1)[0]
    nats = -sum(logprobs[i, id].item() for i, id in enumerate(ids[1:]))
    told = bits_per_byte(ours(folder), lambda t: [b % 97 for b in t.encode()], 0, [text])
    assert abs(told - nats / math.log(2) / 27) < 1e-4


def test_the_longest_recited_piece_is_found_to_the_letter():
    corpus = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(5000))
    texts = ["#" * 30 + corpus[1000:1137] + "#" * 10, "#" * 50, corpus[7:31]]
    assert Recitation(corpus).longest(texts) == [137, 0, 24]


def test_distinct_4_counts_sequences_of_four_words():
    assert distinct_4(["a b c d e", "a b c d"]) == 2 / 3
    assert distinct_4(["a b"]) == 0
