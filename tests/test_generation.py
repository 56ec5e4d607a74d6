"""The loop from ids to Steps."""

from __future__ import annotations

import math

import pytest
import torch
from test_model import ours

from llmcli.config import Sampling
from llmcli.errors import IntegrityError, UsageError
from llmcli.gpt.generation import generate
from llmcli.gpt.sampling import generator_for
from llmcli.gpt.tap import Probe

GREEDY = Sampling(temperature=0)
WILD = Sampling(temperature=1.5)
PROMPT = [5, 9, 2, 44]


@pytest.fixture
def model(save_gpt2):
    return ours(save_gpt2()[0])


def run(model, prompts=(PROMPT,), sampling=WILD, seed=1, **options):
    generators = [generator_for(seed, row) for row in range(len(prompts))]
    return list(generate(model, prompts, sampling, generators, **{"max_new_tokens": 12} | options))


def ids(steps, row=0):
    return [step.id for step in steps if step.row == row]


def test_greedy_equals_transformers(save_gpt2):
    folder, theirs = save_gpt2()
    expected = theirs.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert ids(run(ours(folder), sampling=GREEDY)) == expected[0, len(PROMPT) :].tolist()


def test_the_same_seed_gives_the_same_ids_and_another_seed_others(model):
    assert ids(run(model)) == ids(run(model))
    assert ids(run(model)) != ids(run(model, seed=2))


def test_without_cache_the_draws_are_the_same(model):
    cached, plain = run(model), run(model, use_cache=False)
    assert ids(cached) == ids(plain)
    for a, b in zip(cached, plain, strict=True):
        assert abs(a.facts.chosen.logprob - b.facts.chosen.logprob) < 1e-4


def test_one_prefill_then_one_token_per_step_and_none_wasted(model):
    fed = []
    probe = Probe(3, patch={"embed": lambda value, start: (fed.append(value.shape[1]), value)[1]})
    run(model, tap=probe)
    assert fed == [4] + [1] * 11


def test_logprobs_are_the_models_own(model):
    steps = run(model, top_probs=5, sampling=Sampling(temperature=0.7, top_k=3))
    sequence = PROMPT + ids(steps)
    with torch.inference_mode():
        logprobs = model(torch.tensor([sequence])).log_softmax(-1)[0]
    for step in steps:
        row = logprobs[len(PROMPT) - 1 + step.index]
        assert abs(step.facts.chosen.logprob - row[step.id].item()) < 1e-4
        assert [c.id for c in step.facts.top] == row.topk(5).indices.tolist()
        assert step.facts.rank == (row > row[step.id]).sum()
        assert abs(step.facts.entropy_bits + (row.exp() * row).sum().item() / 0.693147) < 1e-3
        drawn = torch.tensor([c.drawn_logprob for c in step.facts.top]).exp()
        assert drawn[3:].tolist() == [0, 0]
        assert abs(drawn.sum() - 1) < 1e-5


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_bias_that_forbids_all_ids_is_an_error(model, temperature):
    bias = tuple((id, -math.inf) for id in range(model.config.vocab_size))
    with pytest.raises(UsageError, match="No token is left"):
        run(model, sampling=Sampling(bias=bias, temperature=temperature))


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"top_k": 5}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("top_probs", [0, None])
def test_logits_that_are_no_numbers_are_said_to_be_whatever_the_filters(model, more, top_probs):
    model.norm_f.weight = torch.nn.Parameter(torch.full_like(model.norm_f.weight, math.nan))
    with pytest.raises(IntegrityError, match="not numbers"):
        run(model, sampling=Sampling(**more), top_probs=top_probs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("n_ids", [None, 45], ids=["of a token", "of the padding"])
def test_one_logit_that_is_no_number_is_enough(model, value, temperature, n_ids):
    def one_wrong(logits, start):
        return logits.index_fill(-1, torch.tensor([50]), value)

    tap = Probe(2, patch={"logits": one_wrong})
    how = Sampling(temperature=temperature, top_p=0.9)
    with pytest.raises(IntegrityError, match="not numbers"):
        run(model, sampling=how, top_probs=None, tap=tap, drawable=slice(n_ids))


@pytest.mark.parametrize("sampling", [GREEDY, WILD], ids=["greedy", "wild"])
def test_without_facts_the_ids_are_the_same(model, sampling):
    prompts = [[7, 3], PROMPT, [8] * 9]
    known = run(model, prompts, sampling, stop_ids={11})
    bare = run(model, prompts, sampling, stop_ids={11}, top_probs=None)
    assert [(s.row, s.index, s.id) for s in bare] == [(s.row, s.index, s.id) for s in known]
    with pytest.raises(ValueError, match="without its facts"):
        bare[0].facts  # noqa: B018


def test_a_stop_id_ends_the_row_and_is_its_last_step(model):
    free = ids(run(model))
    steps = run(model, stop_ids={free[4]})
    assert ids(steps) == free[: free.index(free[4]) + 1]
    assert steps[-1].finish_reason == "stop"
    assert all(step.finish_reason is None for step in steps[:-1])


def test_the_last_token_allowed_ends_with_length(model):
    assert [s.finish_reason for s in run(model, max_new_tokens=3)] == [None, None, "length"]


def test_a_full_context_ends_with_length(model):
    steps = run(model, prompts=[[1] * 45], max_new_tokens=99)
    assert len(steps) == 4  # positions 45, 46, 47 are fed; the fourth token has no place to be fed
    assert steps[-1].finish_reason == "length"
    assert len(run(model, prompts=[[1] * 48])) == 1


def test_a_row_of_a_ragged_batch_equals_its_single_run(model):
    prompts = [[7, 3], PROMPT, [8] * 9]
    together = run(model, prompts)
    generators = [generator_for(1, 0)]
    alone = list(generate(model, [prompts[0]], WILD, generators, max_new_tokens=12))
    assert ids(together, 0) == ids(alone)
    padded = [s.facts.chosen.logprob for s in together if s.row == 0]
    single = [s.facts.chosen.logprob for s in alone]
    assert torch.allclose(torch.tensor(padded), torch.tensor(single), atol=1e-4)
    assert len(together) == 36


@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_end_one_by_one_and_leave_the_others_alone(model, use_cache):
    """Each row stops at an id of its own; the rest of the batch goes on as if nothing had been."""
    prompts = [[7, 3], PROMPT, [8] * 9, [1], [2, 2]]
    free = run(model, prompts, max_new_tokens=20, use_cache=use_cache)
    stop_ids = {ids(free, 1)[2], ids(free, 4)[5], ids(free, 0)[9]}
    stopped = run(model, prompts, max_new_tokens=20, stop_ids=stop_ids, use_cache=use_cache)
    for row in range(5):
        whole = ids(free, row)
        end = next((i + 1 for i, id in enumerate(whole) if id in stop_ids), 20)
        assert ids(stopped, row) == whole[:end]
        a = torch.tensor([s.facts.chosen.logprob for s in stopped if s.row == row])
        b = torch.tensor([s.facts.chosen.logprob for s in free if s.row == row])[:end]
        assert torch.allclose(a, b, atol=1e-4)
    assert len(stopped) < len(free)


def test_a_row_that_the_caller_ends_yields_no_more(model):
    ended: set[int] = set()
    seen = []
    generators = [generator_for(1, row) for row in range(2)]
    for step in generate(model, [PROMPT, PROMPT], WILD, generators, max_new_tokens=5, ended=ended):
        seen.append((step.index, step.row))
        if step.index == 1 and step.row == 0:
            ended.add(0)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (3, 1), (4, 1)]


def test_a_forced_id_is_taken_and_its_probability_told(model):
    free = run(model)
    steps = run(model, forced={2: 50})
    assert ids(steps)[:2] == ids(free)[:2]
    assert ids(steps)[2] == 50
    assert [step.forced for step in steps] == [i == 2 for i in range(12)]
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT + ids(steps)[:2]]))[0, -1]
    assert abs(steps[2].facts.chosen.logprob - logits.log_softmax(-1)[50].item()) < 1e-4
    assert (
        ids(run(model, prompts=[PROMPT + ids(steps)[:3]], sampling=GREEDY))
        == ids(run(model, prompts=[PROMPT + ids(steps)[:2]], sampling=GREEDY, forced={0: 50}))[1:]
        + ids(run(model, prompts=[PROMPT + ids(steps)[:3]], sampling=GREEDY))[-1:]
    )


def test_kept_is_the_share_of_probability_that_the_filters_leave(model):
    step = run(model, sampling=Sampling(top_k=3), top_probs=97)[0]
    probs = [math.exp(choice.logprob) for choice in step.facts.top]
    assert abs(sum(probs) - 1) < 1e-5
    assert abs(step.facts.kept - sum(probs[:3])) < 1e-5
    assert [c.id for c in step.facts.drawn_top] == [c.id for c in step.facts.top[:3]]


def test_a_repetition_penalty_counts_the_prompt_within_its_window(model):
    greedy = ids(run(model, sampling=GREEDY))[0]
    harsh = Sampling(temperature=0, bias=((greedy, 20.0),), presence_penalty=1e6, penalty_window=3)
    prompt = [greedy, 5, 6, 7]
    assert ids(run(model, prompts=[prompt], sampling=harsh, max_new_tokens=5)).index(greedy) == 0
    assert greedy not in ids(run(model, prompts=[[*prompt[1:], greedy]], sampling=harsh))[:3]


def test_a_prompt_longer_than_the_context_names_both_numbers(model):
    with pytest.raises(UsageError, match=r"49 tokens.*holds 48"):
        run(model, prompts=[[1] * 49])


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"top_k": 3}], ids=str)
def test_logits_that_a_filter_makes_infinite_are_no_numbers_either(model, more):
    model.norm_f.weight = torch.nn.Parameter(model.norm_f.weight * 1e37)
    assert run(model, sampling=Sampling(**more))  # they are finite
    with pytest.raises(IntegrityError, match="not numbers"):
        run(model, sampling=Sampling(temperature=0.001, **more))


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(UsageError):
        run(model, prompts=[[]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_an_integrity_error(model, value):
    model.norm_f.bias.data[0] = value
    with pytest.raises(IntegrityError):
        run(model)
