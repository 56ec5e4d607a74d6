"""The experiments: views ablation and patching, and a changed text held against the untouched."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TINY
from test_intervention import IDS, OTHER, TEXTS, logits, made
from test_model import ours

from llmcli.errors import UsageError
from llmcli.gpt.tap import Probe
from llmcli.inspection import ablation, patching
from llmcli.inspection.ask import Ask
from llmcli.inspection.compare import compare, first_difference, perplexity
from llmcli.inspection.run import Run


@pytest.fixture
def model(save_gpt2):
    return ours(save_gpt2(n_layer=2)[0])


@torch.inference_mode()
def logits_of(model, ids, patch):
    return model(torch.tensor([ids]), tap=Probe(model.config.n_layer, patch=patch))[0]


# --- view ablation -------------------------------------------------------------------------------


def test_the_view_ablation_equals_one_ablation_at_a_time(model, monkeypatch):
    """In batches of any size, on top of another change, and largest first."""
    for size, options in ((2048, {}), (20, {"ablate": ["L0.H1"]})):
        monkeypatch.setattr("llmcli.inspection.run.BATCH_TOKENS", size)
        run = Run(model, IDS, lambda id: b"", made(model, **options))
        view = ablation.view(run, Ask(position=4, token=7, versus=9))
        assert view.n_parts == len(view.parts) == 10
        assert view.n_forwards == 1 + math.ceil(10 / (size // 7))
        plain = logits_of(model, IDS, run.patch)[4]
        assert view.logit == pytest.approx(float(plain[7] - plain[9]), abs=1e-5)
        for row in view.parts:
            if [row.part] == options.get("ablate"):
                assert row.effect == pytest.approx(0, abs=1e-5)
                continue
            changed = logits(model, ablate=[row.part, *options.get("ablate", [])])[4]
            effect = float(changed[7] - changed[9]) - view.logit
            assert row.effect == pytest.approx(effect, abs=2e-5)
            assert row.top.id == int(changed.argmax())
        sizes = [abs(row.effect) for row in view.parts]
        assert sizes == sorted(sizes, reverse=True)


# --- view patching -------------------------------------------------------------------------------


def test_the_view_patching_equals_one_patch_at_a_time(model, monkeypatch):
    monkeypatch.setattr("llmcli.inspection.run.BATCH_TOKENS", 20)  # two rows at once
    corrupt = [5, 17, 40, 8, 61, 2, 71]
    TEXTS["clean"] = IDS
    run = Run(model, IDS, lambda id: b"")
    ask = Ask(position=6, token=7, versus=9, corrupt=tuple(corrupt))
    view = patching.view(run, ask)

    def difference(ids, **options):
        row = logits(model, ids, **options)[6]
        return float(row[7] - row[9])

    clean, base = difference(IDS), difference(corrupt)
    assert view.clean_difference == pytest.approx(clean, abs=1e-5)
    assert view.corrupt_difference == pytest.approx(base, abs=1e-5)
    assert len(view.places) == 2 * 7
    for row in view.places:
        entry = f'L{row.layer}.resid_pre@{row.position} from "clean"'
        expected = difference(corrupt, patch=[entry])
        assert row.difference == pytest.approx(expected, abs=2e-5)
        assert row.recovered == pytest.approx((expected - base) / (clean - base), abs=1e-4)
    assert len(view.heads) == 2 * 4
    for row in view.heads:
        expected = difference(corrupt, patch=[f'L{row.layer}.H{row.head}@* from "clean"'])
        assert row.difference == pytest.approx(expected, abs=2e-5)
    same = [
        place.recovered for place in view.places if IDS[place.position] == corrupt[place.position]
    ]
    assert same[:2] == pytest.approx([0, 0], abs=1e-4)  # layer 0: only other tokens carry anything


def test_patching_needs_two_prompts_of_one_length_that_differ(model):
    run = Run(model, IDS, lambda id: b"")
    for corrupt, versus in (
        (None, 9),
        (tuple(IDS[:-1]), 9),
        (tuple(IDS), 9),
        (tuple(OTHER[:7]), None),
    ):
        with pytest.raises(UsageError):
            patching.view(run, Ask(position=6, token=7, versus=versus, corrupt=corrupt))


# --- comparing -----------------------------------------------------------------------------------


def test_kl_and_perplexity_equal_their_definitions(model):
    options = {"ablate": ["L0.H1"]}
    run = Run(model, IDS, lambda id: b"", made(model, **options))
    changed, plain = [3, 1, 4, 1, 5], [3, 1, 9]
    told = compare(run, changed, plain)
    assert told.first_difference == 2
    with torch.inference_mode():
        q = model(torch.tensor([[*IDS, *changed]]))[0].log_softmax(-1)[6:11]
    q_ids = [float(q[i, id]) for i, id in enumerate(changed)]
    patched = logits_of(model, [*IDS, *changed], run.patch)[6:11].log_softmax(-1)
    expected = ((q.exp() * (q - patched)).sum(-1) / math.log(2)).tolist()
    assert told.kl_bits == pytest.approx(expected, abs=1e-5)
    assert told.perplexity == pytest.approx(math.exp(-sum(q_ids) / 5), rel=1e-5)
    assert told.baseline_perplexity == pytest.approx(
        perplexity(Run(model, IDS, run.token_bytes), plain)
    )


def test_without_a_change_nothing_differs(model):
    run = Run(model, IDS, lambda id: b"")
    told = compare(run, [3, 1, 4], [3, 1, 4])
    assert told.first_difference is None
    assert told.kl_bits == pytest.approx([0, 0, 0], abs=1e-6)
    assert compare(run, [], []).perplexity is None


def test_texts_part_where_one_ends():
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([], [1]) == 0
    assert first_difference([], []) is None


def test_where_one_text_was_interrupted_they_have_not_parted():
    assert first_difference([1, 2], [1, 2, 3], whole=False) is None
    assert first_difference([1, 2], [], whole=False) is None
    assert first_difference([1, 5], [1, 2, 3], whole=False) == 1


def test_a_full_context_is_compared_to_its_last_token(model):
    ids = [1] * (TINY["n_positions"] - 2)
    told = compare(Run(model, ids, lambda id: b""), [1, 2, 3], [1, 2, 3])
    assert len(told.kl_bits) == 3
