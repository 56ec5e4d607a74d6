"""Observing changes nothing, and what is patched is what goes on."""

from __future__ import annotations

import pytest
import torch
from test_model import ours, random_ids

from llmcli.errors import UsageError
from llmcli.gpt.cache import KVCache
from llmcli.gpt.tap import LAYER_POINTS, Probe, points


@pytest.fixture
def model(save_gpt2):
    return ours(save_gpt2()[0])


def test_a_probe_without_scores_leaves_logits_bit_identical(model):
    ids = random_ids(model.config)
    names = [n for n in points(3) if not n.endswith(("scores", "pattern"))]
    probe = Probe(3, record=names)
    with torch.inference_mode():
        assert torch.equal(model(ids, tap=probe), model(ids))
    assert list(probe.values) == names  # and the forward meets them in the listed order


def test_every_point_has_the_shape_it_is_listed_with(model):
    from llmcli.gpt.tap import HEAD_POINTS, STEM_POINTS

    config = model.config
    sizes = {
        "B": 2,
        "T": 6,
        "S": 21,
        "C": config.n_embd,
        "H": config.n_head,
        "D": config.head_dim,
        "M": config.mlp_dim,
        "V": config.vocab_size,
    }
    ids = random_ids(config)
    probe = Probe(3, record=["*"])
    cache = KVCache(config, batch=2, capacity=21)
    with torch.inference_mode():
        model(ids[:, :15], cache)
        model(ids[:, 15:], cache, tap=probe)
    listed = STEM_POINTS | LAYER_POINTS | HEAD_POINTS
    assert len(probe.values) == len(points(3))
    for name, value in probe.values.items():
        shape = listed[name.split(".")[-1]].split(")")[0].strip("(").split(", ")
        assert list(value.shape) == [sizes[letter] for letter in shape], name


def test_only_the_layers_asked_for_leave_fused_attention(model):
    probe = Probe(3, record=["1.pattern"])
    wants = [probe.at(0, layer).wants("pattern") for layer in range(3)]
    assert wants == [False, True, False]


def test_a_patch_replaces_what_the_forward_goes_on_with(model):
    ids = random_ids(model.config)
    plain = Probe(3, record=["1.resid_pre", "2.resid_post"])
    starts = []

    def zero(value, start):
        starts.append(start)
        return torch.zeros_like(value)

    patch = {"1.attn_out": zero, "1.mlp_out": zero}
    probe = Probe(3, record=["*.resid_*"], patch=patch)
    with torch.inference_mode():
        model(ids, tap=plain)
        model(ids, tap=probe)
    assert starts == [0, 0]
    assert torch.equal(probe.values["1.resid_pre"], plain.values["1.resid_pre"])
    assert torch.equal(probe.values["1.resid_post"], probe.values["1.resid_pre"])
    assert not torch.equal(probe.values["2.resid_post"], plain.values["2.resid_post"])


def test_a_patch_is_told_the_position_of_its_first_token(model):
    ids = random_ids(model.config)
    starts = []
    probe = Probe(3, patch={"*.resid_pre": lambda value, start: (starts.append(start), value)[1]})
    cache = KVCache(model.config, batch=2, capacity=21)
    with torch.inference_mode():
        model(ids[:, :8], cache, tap=probe)
        model(ids[:, 8:9], cache, tap=probe)
    assert starts == [0, 0, 0, 8, 8, 8]


def test_a_misspelt_point_is_an_error_that_lists_the_valid_ones():
    with pytest.raises(UsageError) as caught:
        Probe(3, record=["1.patern"])
    assert "1.pattern" in caught.value.remedy
    assert all(point in caught.value.remedy for point in LAYER_POINTS)
    with pytest.raises(UsageError):
        Probe(3, patch={"3.q": lambda value, start: value})  # layers are 0, 1, 2
