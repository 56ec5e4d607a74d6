"""Each filter, held against `transformers`' own, and the draw against its probabilities."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmcli.config import ORDER, Sampling
from llmcli.gpt import sampling as filters
from llmcli.gpt.sampling import (
    draw,
    filtered,
    generator_for,
    left,
    seen,
    stages,
    uniforms,
)


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(5, 50, generator=torch.Generator().manual_seed(3))


def ours(of, logits, *more):
    """Rows (B, V) through a filter of one row; what it cuts is -inf."""
    rows = []
    for row in logits.numpy():
        made = of(row, *more)
        if made.dtype == np.int64:
            made, places = np.full_like(row, -math.inf), made
            made[places] = row[places]
        rows.append(torch.from_numpy(made))
    return torch.stack(rows)


def theirs(warper, logits):
    return warper(torch.zeros(len(logits), 1, dtype=torch.long), logits.clone())


@pytest.mark.parametrize("value", [0.1, 0.7, 1.3, 5.0])
def test_temperature_equals_transformers(value, logits):
    from transformers import TemperatureLogitsWarper

    expected = theirs(TemperatureLogitsWarper(value), logits)
    torch.testing.assert_close(ours(filters.with_temperature, logits, value), expected)


@pytest.mark.parametrize("k", [1, 2, 7, 49, 50])
def test_top_k_equals_transformers(k, logits):
    from transformers import TopKLogitsWarper

    assert torch.equal(ours(filters.top_k, logits, k), theirs(TopKLogitsWarper(k), logits))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_equals_transformers(p, logits):
    from transformers import TopPLogitsWarper

    assert torch.equal(ours(filters.top_p, logits, p), theirs(TopPLogitsWarper(p), logits))


@pytest.mark.parametrize("p", [1e-4, 0.05, 0.5, 1.0])
def test_min_p_equals_transformers(p, logits):
    from transformers import MinPLogitsWarper

    assert torch.equal(ours(filters.min_p, logits, p), theirs(MinPLogitsWarper(p), logits))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_typical_p_equals_transformers(p, logits):
    from transformers import TypicalLogitsWarper

    assert torch.equal(ours(filters.typical_p, logits, p), theirs(TypicalLogitsWarper(p), logits))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_penalty_equals_transformers(penalty, logits):
    from transformers import RepetitionPenaltyLogitsProcessor

    ids = torch.randint(50, (5, 12), generator=torch.Generator().manual_seed(1))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    for row, its_ids, its_expected in zip(logits, ids.tolist(), expected, strict=True):
        counts = seen(its_ids, 0, 50)
        made = filters.with_repetition_penalty(row.numpy(), counts, penalty)
        assert made.tolist() == its_expected.tolist()


def test_bias_equals_transformers(logits):
    from transformers import SequenceBiasLogitsProcessor

    bias = {3: 2.5, 7: -1.0, 9: -100.0}
    expected = theirs(SequenceBiasLogitsProcessor({(id,): v for id, v in bias.items()}), logits)
    torch.testing.assert_close(ours(filters.with_bias, logits, bias), expected)
    assert ours(filters.with_bias, logits, {3: -math.inf}).softmax(-1)[:, 3].tolist() == [0] * 5


def test_presence_and_frequency_penalties_follow_their_formula(logits):
    """logit - presence * (count > 0) - frequency * count, as the OpenAI API documents them."""
    counts = seen([4, 4, 4, 9], 0, 50)
    by_hand = logits.clone()
    by_hand[:, 4] -= 0.5
    by_hand[:, 9] -= 0.5
    torch.testing.assert_close(ours(filters.with_presence_penalty, logits, counts, 0.5), by_hand)
    by_hand = logits.clone()
    by_hand[:, 4] -= 3 * 0.5
    by_hand[:, 9] -= 0.5
    torch.testing.assert_close(ours(filters.with_frequency_penalty, logits, counts, 0.5), by_hand)


def test_the_window_forgets_what_lies_before_it():
    assert seen([1, 1, 2, 3], 2, 5).tolist() == [0, 0, 1, 1, 0]
    assert seen([1, 1, 2, 3], 0, 5).tolist() == [0, 2, 1, 1, 0]
    assert seen([4], 0, 5).tolist() == [0, 0, 0, 0, 1]


def test_ties_in_top_k_keep_exactly_k_with_the_lowest_ids():
    logits = torch.tensor([[1.0, 5.0, 5.0, 2.0, 5.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    kept = [row.isfinite().nonzero().flatten().tolist() for row in ours(filters.top_k, logits, 2)]
    assert kept == [[1, 2], [0, 1]]
    assert ours(filters.top_k, logits, 4)[0].isfinite().nonzero().flatten().tolist() == [1, 2, 3, 4]


def test_top_p_zero_keeps_the_most_probable():
    assert filters.top_p(np.float32([0.0, 2.0, 1.0]), 0.0).tolist() == [1]


EVERYTHING = Sampling(
    bias=((3, 1.0),),
    repetition_penalty=1.2,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    temperature=0.5,
    top_k=10,
    top_p=0.8,
    min_p=0.01,
    typical_p=0.9,
)


def test_the_filters_apply_in_their_documented_order(logits):
    counts, row = seen([1, 2, 3], 0, 50), logits[0].numpy()
    names, left = zip(*stages(row, EVERYTHING, counts), strict=True)
    assert names == ORDER
    x = filters.with_bias(row, {3: 1.0})
    x = filters.with_repetition_penalty(x, counts, 1.2)
    x = filters.with_presence_penalty(x, counts, 0.1)
    x = filters.with_frequency_penalty(x, counts, 0.1)
    x = torch.from_numpy(filters.with_temperature(x, 0.5))[None]
    x = ours(filters.top_p, ours(filters.top_k, x, 10), 0.8)
    x = ours(filters.typical_p, ours(filters.min_p, x, 0.01), 0.9)
    assert left[-1].tolist() == x[0].tolist()
    assert filtered(row, EVERYTHING, counts).tolist() == x[0].tolist()


def test_filters_that_are_off_change_nothing(logits):
    row = logits[0].numpy()
    assert list(stages(row, Sampling())) == []
    assert filtered(row, Sampling()) is row


def test_temperature_zero_leaves_one_token(logits):
    left = ours(filtered, logits, Sampling(temperature=0, top_k=9, top_p=0.1))
    assert torch.equal(left.softmax(-1).argmax(-1), logits.argmax(-1))
    assert left.isfinite().sum(-1).tolist() == [1] * 5


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(temperature=0, bias=((3, 99.0),), top_k=2),
        Sampling(temperature=0.7, bias=((3, -math.inf), (7, 2.0))),
        Sampling(top_k=7),
        Sampling(top_p=0.8),
        Sampling(temperature=2, min_p=0.1, typical_p=0.7),
        EVERYTHING,
    ],
    ids=str,
)
def test_what_is_left_is_what_the_filters_do_not_cut(sampling, logits):
    counts = seen([1, 2, 3], 0, 50)
    for of, expected in zip(logits, ours(filtered, logits, sampling, counts), strict=True):
        row = left(of.numpy(), sampling, counts)
        assert row.ids.tolist() == expected.isfinite().nonzero().flatten().tolist()
        logprobs = expected.log_softmax(-1)
        assert torch.allclose(torch.from_numpy(row.logprobs), logprobs[row.ids], atol=1e-6)
        told = torch.tensor(row.logprobs_of(range(50)))
        assert torch.allclose(told, logprobs, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"top_k": 5, "top_p": 0.9, "min_p": 0.1}])
def test_of_a_row_without_any_number_nothing_is_left(more, logits):
    nothing = Sampling(bias=tuple((id, -math.inf) for id in range(50)), **more)
    assert [len(left(row, nothing).ids) for row in logits.numpy()] == [0] * 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0), Sampling(top_k=4), Sampling(top_k=1), Sampling(top_p=0.5),
     Sampling(min_p=0.1), Sampling(typical_p=0.5), EVERYTHING],
    ids=str,
)  # fmt: skip
def test_a_logit_that_is_no_number_is_seen_in_what_is_left(value, sampling, logits):
    for row in logits.numpy():
        row[11] = value
        assert np.isnan(left(row, sampling, seen([1, 11], 0, 50)).logprobs).all()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(bias=((3, -math.inf),), top_k=9)])
def test_what_is_not_drawable_is_left_out_as_if_forbidden(sampling, logits):
    able = np.array([0, 3, 4, *range(20, 45)])
    others = tuple((id, -math.inf) for id in range(50) if id not in able)
    forbidden = replace(sampling, bias=(*sampling.bias, *others))
    for row in logits.numpy():
        made, expected = left(row, sampling, drawable=able), left(row, forbidden)
        assert made.ids.tolist() == expected.ids.tolist()
        np.testing.assert_allclose(made.logprobs, expected.logprobs, atol=1e-6)
    first = left(logits.numpy()[0], sampling, drawable=slice(20))
    assert first.ids.tolist() == left(logits.numpy()[0][:20], sampling).ids.tolist()


def test_draws_follow_the_probabilities():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    drawn = [draw(probs.numpy(), point) for point in uniforms(generator_for(5, 0), 4000)]
    counts = torch.tensor(drawn).bincount(minlength=6).float()
    assert counts[probs == 0].sum() == 0
    chi_squared = ((counts - 4000 * probs) ** 2 / (4000 * probs))[probs > 0].sum()
    assert chi_squared < 13.8  # 2 degrees of freedom: exceeded once in 1,000 seeds; this one is set


def test_a_row_draws_its_own_numbers_whatever_the_others_do():
    first = [torch.rand(3, generator=generator_for(1, row)).tolist() for row in range(4)]
    again = [torch.rand(3, generator=generator_for(1, row)).tolist() for row in (3, 0)]
    assert again == [first[3], first[0]]
    assert len({tuple(numbers) for numbers in first}) == 4


def test_a_probability_of_one_is_always_drawn():
    for point in (0.0, 0.3, 1 - 2**-53):
        assert [draw(probs, point) for probs in torch.eye(9).numpy()] == list(range(9))


def test_top_k_of_logits_that_are_already_cut_stays_cut():
    logits = torch.tensor([[1.0, -math.inf, 0.0, -math.inf]])
    assert ours(filters.top_k, logits, 3).isfinite().tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("levels", [None, 4])
def test_top_p_of_a_large_vocabulary_is_that_of_a_full_sort(p, spread, levels):
    logits = spread * torch.randn(3, 2000, generator=torch.Generator().manual_seed(1))
    if levels:  # many equal logits: the lowest ids stay
        logits = (logits * levels).round() / levels
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    probs = logits.softmax(dim=-1).gather(-1, order)
    kept = probs.cumsum(dim=-1) - probs < p
    expected = torch.zeros_like(kept).scatter(-1, order, kept)
    assert torch.equal(ours(filters.top_p, logits, p) > -torch.inf, expected)
