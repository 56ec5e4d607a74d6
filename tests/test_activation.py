"""The activation functions, against torch's own."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from llmcli.gpt import activation
from llmcli.gpt.activation import gelu_tanh


@pytest.fixture
def by_torch(monkeypatch):
    """What torch's own function is called with."""
    calls = Mock(wraps=F.gelu)
    monkeypatch.setattr(F, "gelu", calls)
    return calls


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("shape", [(1, 90, 400), (2, 50, 3000), (activation.AT_ONCE + 1, 2)])
def test_gelu_of_many_values_equals_torch_in_double_precision(shape, dtype, tolerance, by_torch):
    x = (5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    with torch.inference_mode():
        y = gelu_tanh(x)
        assert not by_torch.called
        expected = F.gelu(x.double(), approximate="tanh")
    assert (y.dtype, y.shape) == (dtype, x.shape)
    torch.testing.assert_close(y.double(), expected, atol=2e-6, rtol=tolerance)


def test_gelu_of_many_values_far_away_and_not_in_a_row():
    far = torch.tensor([-1e30, -200.0, -12.0, 0.0, 12.0, 200.0, 1e30]).repeat(9000, 1)
    with torch.inference_mode():
        for x in (far, far.t(), far[:, ::2]):
            assert x.numel() >= activation.SOME
            torch.testing.assert_close(gelu_tanh(x), x.clamp(min=0), atol=1e-6, rtol=1e-6)
        assert gelu_tanh(torch.full((activation.SOME, 2), torch.nan)).isnan().all()


def test_gelu_of_few_values_or_one_token_a_row_or_with_gradients_is_by_torch(by_torch):
    with torch.inference_mode():
        gelu_tanh(torch.ones(activation.SOME // 2 - 1, 2))
        gelu_tanh(torch.ones(activation.SOME, 1, 2))
    x = torch.ones(activation.SOME, 2, requires_grad=True)
    gelu_tanh(x).sum().backward()
    assert by_torch.call_count == 3
    assert x.grad is not None
