"""The loop from ids to Steps."""

from __future__ import annotations

import pytest
import torch
from test_model import ours

from llmcli.config import Sampling
from llmcli.errors import IntegrityError, UsageError
from llmcli.gpt.generation import generate
from llmcli.gpt.tap import Probe

GREEDY = Sampling(temperature=0)
WILD = Sampling(temperature=1.5)
PROMPT = [5, 9, 2, 44]


@pytest.fixture
def model(save_gpt2):
    return ours(save_gpt2()[0])


def run(model, prompts=(PROMPT,), sampling=WILD, **options):
    return list(generate(model, prompts, sampling, **{"max_new_tokens": 12, "seed": 1} | options))


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
        assert abs(a.chosen.logprob - b.chosen.logprob) < 1e-4


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
        assert abs(step.chosen.logprob - row[step.id].item()) < 1e-4
        assert [c.id for c in step.top] == row.topk(5).indices.tolist()
        assert step.rank == (row > row[step.id]).sum()
        assert abs(step.entropy_bits + (row.exp() * row).sum().item() / 0.693147) < 1e-3
        drawn = torch.tensor([c.drawn_logprob for c in step.top]).exp()
        assert drawn[3:].tolist() == [0, 0]
        assert abs(drawn.sum() - 1) < 1e-5


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
    assert ids(together, 0) == ids(run(model, [prompts[0]]))
    padded = [s.chosen.logprob for s in together if s.row == 0]
    alone = [s.chosen.logprob for s in run(model, [prompts[0]])]
    assert torch.allclose(torch.tensor(padded), torch.tensor(alone), atol=1e-4)
    assert len(together) == 36


def test_a_row_that_the_caller_ends_yields_no_more(model):
    ended: set[int] = set()
    seen = []
    for step in generate(model, [PROMPT, PROMPT], WILD, max_new_tokens=5, seed=1, ended=ended):
        seen.append((step.index, step.row))
        if step.index == 1 and step.row == 0:
            ended.add(0)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (3, 1), (4, 1)]


def test_a_prompt_longer_than_the_context_names_both_numbers(model):
    with pytest.raises(UsageError, match=r"49 tokens.*holds 48"):
        run(model, prompts=[[1] * 49])


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(UsageError):
        run(model, prompts=[[]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_an_integrity_error(model, value):
    model.norm_f.bias.data[0] = value
    with pytest.raises(IntegrityError):
        run(model)
