"""The numbers of the views, held against `transformers` and against plain torch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FABLE
from test_model import ours

from llmcli.config import Sampling, read_config
from llmcli.errors import IntegrityError
from llmcli.gpt.facts import facts_of
from llmcli.gpt.generation import generate
from llmcli.gpt.model import F as functional
from llmcli.gpt.sampling import generator_for, left
from llmcli.gpt.weights import load_model
from llmcli.inspection import attention, attribution, check, lens, model, next, sampling, tokens
from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run, rank_in, rank_of
from llmcli.inspection.walk.after import cache, choosing, repeating
from llmcli.inspection.walk.run import Walk
from llmcli.units import window

IDS = [5, 17, 33, 5, 17, 60, 2, 8, 5, 17]


def run_of(gpt, ids=IDS, **more) -> Run:
    return Run(gpt, ids, lambda id: b"%d" % id, **more)


@pytest.fixture
def pair(save_gpt2):
    """A run of ours, and everything that `transformers` says of the same ids."""
    folder, theirs = save_gpt2(seed=5)
    return run_of(ours(folder)), theirs_of(theirs, IDS), theirs


def theirs_of(theirs, ids):
    theirs.set_attn_implementation("eager")
    with torch.inference_mode():
        return theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)


def assert_views_equal_transformers(run, out, theirs):
    """Patterns, lens, logits and surprisal within 1e-4 of theirs."""
    T, position = len(run.ids), len(run.ids) - 1
    ask = Ask(position=position, token=run.ids[0])
    for layer, pattern in attention.patterns(run, ask).items():
        torch.testing.assert_close(pattern, out.attentions[layer][0], atol=1e-4, rtol=0)
    # Their last hidden state has passed the final norm; ours of the lens has not yet.
    streams = list(lens.stream_after(run).values())
    for stream, hidden in zip(streams[:-1], out.hidden_states[:-1], strict=True):
        torch.testing.assert_close(stream, hidden[0], atol=1e-4, rtol=0)
    with torch.inference_mode():
        last = theirs.transformer.ln_f(streams[-1])
        torch.testing.assert_close(last, out.hidden_states[-1][0], atol=1e-4, rtol=0)
        expected = [theirs.lm_head(theirs.transformer.ln_f(h[0])) for h in out.hidden_states[:-1]]
    expected.append(out.logits[0])
    made = lens.view(run, ask)
    final = out.logits[0].log_softmax(-1)
    for i, logits in enumerate(expected):
        logprobs = logits.log_softmax(-1)
        kl = (final.exp() * (final - logprobs)).sum(-1) / math.log(2)
        for row, place in zip(made.rows[i * T : (i + 1) * T], range(T), strict=True):
            assert row.position == place
            assert row.top_prob == pytest.approx(float(logprobs[place].max().exp()), abs=1e-4)
            assert row.kl_bits == pytest.approx(float(kl[place]), abs=1e-3)
            assert row.token_logit == pytest.approx(float(logits[place, ask.token]), abs=1e-4)
    rows = tokens.view(run, ask).rows
    for place in range(1, T):
        surprisal = -float(final[place - 1, run.ids[place]]) / math.log(2)
        assert rows[place].surprisal_bits == pytest.approx(surprisal, abs=1e-3)
    torch.testing.assert_close(run.logits(range(T)), out.logits[0], atol=1e-4, rtol=0)


def test_views_equal_transformers_on_a_random_model(pair):
    assert_views_equal_transformers(*pair)


def test_views_equal_transformers_on_fable():
    from transformers import GPT2LMHeadModel

    ids = list(range(100, 130))
    theirs = GPT2LMHeadModel.from_pretrained(FABLE, dtype=torch.float32).eval()
    run = run_of(load_model(FABLE, read_config(FABLE)), ids)
    assert_views_equal_transformers(run, theirs_of(theirs, ids), theirs)


# --- attribution ---------------------------------------------------------------------------------


@pytest.mark.parametrize("versus", [None, 44])
def test_the_parts_add_up_to_the_logit(pair, versus):
    run, out, _ = pair
    made = attribution.view(run, Ask(position=4, token=9, versus=versus))
    logits = out.logits[0, 4].double()
    expected = float(logits[9] - (0 if versus is None else logits[versus]))
    assert made.logit == pytest.approx(expected, abs=1e-4)
    assert math.fsum(part.value for part in made.parts) == pytest.approx(expected, abs=1e-4)
    assert abs(made.residual) <= made.tolerance
    n_layer, n_head = run.config.n_layer, run.config.n_head
    assert made.n_parts == len(made.parts) == 3 + n_layer * (n_head + 3)


def test_each_part_is_what_the_logit_loses_without_it(pair):
    """Taking a part's vector off the final stream, at the same scale, takes its value off."""
    run, _, _ = pair
    parts, final = attribution.written(run, 7)
    values = attribution.account(run.model, parts, final, token=3, versus=None)
    logit = sum(values.values())
    norm, head = run.model.norm_f, run.model.head.weight[3].double()
    scale = (final.double().var(unbiased=False) + run.config.norm_eps).sqrt()
    for name, vector in parts.items():
        x = final.double() - vector
        without = ((x - x.mean()) / scale * norm.weight.double() + norm.bias.double()) @ head
        assert logit - float(without) == pytest.approx(values[name], abs=1e-5), name


def test_an_account_that_does_not_add_up_is_an_error(pair, monkeypatch):
    real = attribution.through_norm
    monkeypatch.setattr(attribution, "through_norm", lambda *a: 1.01 * real(*a))
    with pytest.raises(IntegrityError, match="does not add up"):
        attribution.view(pair[0], Ask(position=4, token=9))


def test_rest_and_shown_parts_are_all_parts(pair):
    run = pair[0]
    every = attribution.view(run, Ask(position=4, token=9))
    some = attribution.view(run, Ask(position=4, token=9, rows=5))
    assert [p.part for p in some.parts] == [p.part for p in every.parts[:5]]
    assert some.n_rest == every.n_parts - 5
    assert some.rest == pytest.approx(sum(p.value for p in every.parts[5:]), abs=1e-9)


# --- attention -----------------------------------------------------------------------------------


def test_roles_of_made_up_heads():
    ids = torch.tensor([1, 2, 3, 1, 2, 3])
    T = len(ids)
    first = torch.zeros(T, T)
    first[:, 0] = 1
    duplicate, induction = torch.eye(T), torch.eye(T)
    duplicate[3:] = torch.eye(T)[:3]
    induction[3:] = torch.eye(T)[1:4]
    previous = torch.zeros(T, T)
    previous[0, 0] = 1
    previous[torch.arange(1, T), torch.arange(T - 1)] = 1
    scores = attention.role_scores(
        torch.stack([previous, first, duplicate, induction]), attention.role_keys(ids)
    )
    for head, role in enumerate(scores):
        assert scores[role][head] == pytest.approx(1.0)
    assert scores["previous"][1] == pytest.approx(1 / 5)  # position 1: its first is its previous
    assert scores["induction"][0] == 0  # it would read 1, 2, 3 where the other reads 2, 3, 4


@pytest.mark.parametrize("ids", [[1, 2], [1, 2, 3, 4], [1, 2, 1, 2, 1, 2]], ids=str)
def test_a_head_that_reads_all_alike_has_no_role(ids):
    """On a short prompt a third of what it reads is the first token."""
    T, keys = len(ids), attention.role_keys(torch.tensor(ids))
    even = attention.even_pattern(torch.ones(1, T, T))
    assert even.sum(dim=-1).tolist() == [[pytest.approx(1.0)] * T]
    assert attention._head_rows(0, even, keys)[0].role == ""
    first = torch.zeros(1, T, T)
    first[:, :, 0] = 1
    assert attention._head_rows(0, first, keys)[0].role == ("first" if T > 3 else "")


def test_a_prompt_without_repetition_has_no_duplicate_score(pair):
    made = attention.view(run_of(pair[0].model, [1, 2, 3]), Ask(position=2))
    assert {row.duplicate for row in made.heads} == {None}
    assert any("repeats no token" in note for note in made.notes)


def test_equal_logits_rank_by_id_everywhere():
    """bfloat16 logits tie all the time; a trace tells both ranks of one step."""
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    for id in range(0, 200, 7):
        ranks = rank_of(logits, torch.full((3,), id)).tolist()
        facts = facts_of(
            logits.numpy(), [left(row, Sampling()) for row in logits.numpy()], [id] * 3, 3
        )
        assert ranks == [fact.rank for fact in facts]
        assert ranks[0] == rank_in(logits[0], id)
        assert ranks[0] == logits[0].sort(descending=True, stable=True).indices.tolist().index(id)


def test_small_maps_are_exact_up_to_their_size_and_largest_beyond():
    small = torch.rand(2, 16, 16)
    assert torch.equal(attention.small_maps(small), small)
    large = torch.rand(1, 32, 32)
    blocks = large.view(1, 16, 2, 16, 2).amax(dim=(2, 4))
    assert torch.equal(attention.small_maps(large), blocks)
    ragged = attention.small_maps(torch.rand(1, 21, 21))
    assert ragged.shape == (1, 11, 11)


def test_one_head_lists_its_weights_and_its_strongest_sources(pair):
    run, out, _ = pair
    made = attention.view(run, Ask(position=9, layer=1, head=2, rows=2))
    pattern = out.attentions[1][0, 2]
    for query in made.queries:
        row = pattern[query.position, : query.position + 1]
        torch.testing.assert_close(torch.tensor(query.weights), row, atol=1e-4, rtol=0)
    best = [source for source in made.sources if source.position == 9]
    assert [source.source for source in best] == pattern[9].topk(2).indices.tolist()


# --- cost ----------------------------------------------------------------------------------------


def test_a_view_leaves_attention_fused_where_it_shows_none(pair, monkeypatch):
    run = pair[0]
    fused = []
    real = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional,
        "scaled_dot_product_attention",
        lambda *a, **k: (fused.append(1), real(*a, **k))[1],
    )
    lens.view(run, Ask(position=9))
    assert len(fused) == run.config.n_layer
    fused.clear()
    attention.view(run, Ask(position=9, layer=1, head=0))
    assert len(fused) == run.config.n_layer - 1


# --- tokens --------------------------------------------------------------------------------------


def test_a_long_text_is_scored_in_windows(pair):
    run, _, theirs = pair
    ids = torch.randint(97, (110,), generator=torch.Generator().manual_seed(1)).tolist()
    made = tokens.view(run_of(run.model, ids), Ask(position=0))
    n_ctx = run.config.n_ctx  # 48, so windows begin every 24
    assert (made.n_windows, made.stride, made.n_scored) == (4, 24, 109)
    expected, done = [], 1
    for start in range(0, 110, 24):
        end = min(start + n_ctx, 110)
        with torch.inference_mode():
            logprobs = theirs(torch.tensor([ids[start:end]])).logits[0].log_softmax(-1)
        expected += [-float(logprobs[i - 1 - start, ids[i]]) for i in range(done, end)]
        done = end
        if end == 110:
            break
    assert [row.surprisal_bits for row in made.rows[1:]] == pytest.approx(
        [nats / math.log(2) for nats in expected], abs=1e-3
    )
    assert made.perplexity == pytest.approx(math.exp(sum(expected) / 109), rel=1e-4)


def test_one_token_has_no_surprisal_and_no_perplexity(pair):
    made = tokens.view(run_of(pair[0].model, [4]), Ask(position=0))
    assert made.perplexity is None
    assert made.rows[0].surprisal_bits is None


def test_what_stands_before_the_text_has_no_bytes(pair):
    made = tokens.view(run_of(pair[0].model, [4, 60, 17], n_prefix=1), Ask(position=0))
    assert made.n_bytes == len(b"6017")
    made = tokens.view(run_of(pair[0].model, [4, 60, 17]), Ask(position=0))
    assert made.n_bytes == len(b"46017")


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_draw_is_the_first_of_generate(pair, seed):
    run = pair[0]
    how = Sampling(temperature=1.4, top_k=40, top_p=0.9, repetition_penalty=1.3)
    ask = Ask(position=len(IDS) - 1, sampling=how, seed=seed)
    made = sampling.view(run, ask)
    step = next_step(run.model, how, seed)
    assert made.drawn.id == step.id
    assert made.drawn_prob == pytest.approx(math.exp(step.facts.chosen.drawn_logprob), abs=1e-5)
    assert [stage.stage for stage in made.stages] == [
        "model", "repetition_penalty", "temperature", "top_k", "top_p",
    ]  # fmt: skip


@pytest.mark.parametrize("drawable", [slice(60), np.array([*range(50), *range(55, 60)])], ids=str)
def test_ids_of_no_token_are_drawn_by_no_view_as_by_no_run(drawable, pair):
    whole = pair[0]
    padded = replace(whole, drawable=drawable)  # as if the others only padded the vocabulary
    able = np.arange(97)[drawable].tolist()
    last = len(IDS) - 1
    assert int(whole.logits(range(last, last + 1))[0].argmax()) >= 60
    ask = Ask(position=last, sampling=Sampling(temperature=50.0))
    for seed in range(8):
        made = sampling.view(padded, replace(ask, seed=seed))
        assert {made.greedy.id, made.drawn.id} <= {*able}
        (step,) = generate(whole.model, [IDS], ask.sampling, [generator_for(seed, 0, 0)],
                           max_new_tokens=1, drawable=drawable)  # fmt: skip
        assert made.drawn.id == step.id
    probs = whole.logits(range(last, last + 1))[0].softmax(dim=-1)
    model, unused = made.stages[:2]
    assert (model.stage, model.kept, unused.stage, unused.kept) == (
        "model", 97, "unused", len(able)
    )  # fmt: skip
    assert unused.cut_mass == pytest.approx(1 - float(probs[able].sum()))
    assert made.drawn_model_prob == pytest.approx(float(probs[made.drawn.id]))
    walk = Walk(padded)
    chosen, steps = choosing(walk).rows, repeating(walk).steps
    assert {row.token.id for row in [*chosen, *steps]} <= {*able}
    assert chosen[0].prob == steps[0].prob == pytest.approx(float(probs[steps[0].token.id]))
    assert cache(walk).token.id == steps[0].token.id


def next_step(gpt, how, seed):
    (step,) = generate(gpt, [IDS], how, [generator_for(seed, 0, 0)], max_new_tokens=1)
    return step


def test_each_stage_says_what_it_cuts(pair):
    run = pair[0]
    made = sampling.view(run, Ask(position=3, sampling=Sampling(top_k=7, temperature=0.5)))
    probs = (run.logits(range(3, 4))[0] / 0.5).softmax(-1).sort(descending=True).values
    cut = {stage.stage: stage for stage in made.stages}
    assert cut["top_k"].kept == 7
    assert cut["top_k"].cut_mass == pytest.approx(float(probs[7:].sum()), abs=1e-5)
    assert cut["temperature"].cut_mass == 0
    assert made.greedy.id == int(run.logits(range(3, 4))[0].argmax())


# --- check, next, model --------------------------------------------------------------------------


def test_the_checks_pass(pair, save_gpt2):
    assert check.view(pair[0], Ask(position=9)).passed
    folder, _ = save_gpt2(seed=1)
    half = load_model(folder, read_config(folder), "bfloat16")
    made = check.view(run_of(half, load_fp32=lambda: ours(folder)), Ask(position=9))
    assert made.passed
    assert [row.check for row in made.comparisons][-1] == "bfloat16 = float32"
    assert 0 < made.comparisons[-1].difference < 1e-3


def test_a_difference_fails_its_check(pair, monkeypatch):
    real = check.cached
    monkeypatch.setattr(check, "cached", lambda run: real(run) + 0.1)
    made = check.view(pair[0], Ask(position=9))
    assert not made.passed
    assert [row.passed for row in made.comparisons] == [True, False, True, True]


def test_a_row_of_attention_from_q_and_k_is_the_patterns_row(pair):
    run = pair[0]
    patterns, parts = run.record("*.pattern"), run.record("*.q", "*.k")
    for layer in range(run.config.n_layer):
        for position in (0, 3, len(run.ids) - 1):
            made = next.attention_row(run, parts, layer, position)
            expected = patterns[f"{layer}.pattern"][:, position, : position + 1]
            torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_the_first_screen_sees_patterns_that_are_replaced(pair):
    run = pair[0]

    def uniform(pattern, start):
        return torch.full_like(pattern, 1 / pattern.shape[-1])

    changed = replace(run, patch={"1.pattern": uniform})
    seen = changed.record(*next.attention_points(changed))
    row = next.attention_row(changed, seen, 1, 4)
    torch.testing.assert_close(row, torch.full_like(row, 1 / len(run.ids)))


def test_the_story_agrees_with_the_views_it_shortens(pair):
    run, out, _ = pair
    made = next.view(run, Ask(position=6))
    rows = [row for row in lens.view(run, Ask(position=6)).rows if row.position == 6]
    assert [(g.after, g.top.id) for g in made.lens] == [(row.after, row.top.id) for row in rows]
    assert [g.kl_bits for g in made.lens] == pytest.approx([r.kl_bits for r in rows], abs=1e-4)
    mean = torch.stack(out.attentions)[:, 0, :, 6].mean(dim=(0, 1))
    assert [s.position for s in made.sources] == mean.topk(5).indices.tolist()
    assert [s.weight for s in made.sources] == pytest.approx(mean.topk(5).values.tolist(), abs=1e-4)
    assert [c.token.id for c in made.candidates] == out.logits[0, 6].topk(5).indices.tolist()


def test_the_model_view_counts_what_transformers_counts(save_gpt2):
    for tied in (True, False):
        folder, theirs = save_gpt2(seed=2, tie_word_embeddings=tied)
        made = model.view(folder, "x")
        assert made.parameters == theirs.num_parameters()
        top = [module for module in made.modules if module.depth == 0]
        assert sum(module.parameters for module in top) == made.parameters
        leaves = [module for module in made.modules if module.shape]
        assert sum(math.prod(m.shape) * m.copies for m in leaves) == made.parameters


def test_flops_equal_a_count_of_the_forward(pair):
    from torch.utils.flop_counter import FlopCounterMode

    run = pair[0]
    for T in (1, 6):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            run_of(run.model, IDS[:T]).record("*.pattern")
            run_of(run.model, IDS[:1]).logits(range(1))
            stem = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            run_of(run.model, IDS[:1]).final  # noqa: B018
            once = counter.get_total_flops()
        # A forward over T tokens is T tokens, each of which is multiplied with all T keys.
        full = T * model.flops(run.config, T) - (T - 1) * 2 * run.config.n_embd * 97
        assert stem - once == full


def test_windows_hold_their_centre_and_their_size():
    assert window(10, 9, 4) == range(6, 10)
    assert window(10, 0, 4) == range(0, 4)
    assert window(10, 5, 4) == range(3, 7)
    assert window(3, 1, 8) == range(0, 3)


@pytest.mark.parametrize("size", [97, 4096, 50257])
def test_a_divergence_below_rounding_is_none_and_above_it_is_kept(size):
    plain = torch.randn(8, size, generator=torch.Generator().manual_seed(1)) * 3
    shifts = torch.randn(8, size, generator=torch.Generator().manual_seed(2))

    def told(logits):
        shifted = logits - logits.amax(dim=-1, keepdim=True)
        return lens.kl_bits(lens.Final.of(plain), shifted, shifted.logsumexp(dim=-1))

    assert told(plain).tolist() == told(plain + 2).tolist() == [0] * 8
    changed = plain + 0.1 * shifts
    exact = functional.kl_div(changed.double().log_softmax(-1), plain.double().log_softmax(-1),
                              reduction="none", log_target=True).sum(-1) / math.log(2)  # fmt: skip
    assert told(changed).tolist() == pytest.approx(exact.tolist(), rel=5e-3)
    unknown = plain.clone()
    unknown[0, 0] = math.nan
    assert torch.isnan(told(unknown)).tolist() == [True] + [False] * 7
