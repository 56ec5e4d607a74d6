"""The decode step as a script: the operators of `GPT`, without Python between them.

A step of one token is some 300 small operators, and to call one from Python takes as long as many
of them run. `torch.jit.trace` writes down which operators a call of the model consists of and plays
them for any other call of the same kind: bit for bit what `GPT` computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from weakref import ref

import torch
from torch import Tensor, nn

from llmcli.gpt.cache import KVCache, Past
from llmcli.gpt.model import GPT, NO_TAP, visible


class DecodeStep:
    """`model(ids, cache)` for one more token of each row: ids (B, 1) -> logits (B, 1, V).

    Written down at the first call, which takes as long as a dozen others. Where torch cannot, as
    for a layer that does with one row what it does not with several, the model itself is called.
    """

    def __init__(self, model: GPT) -> None:
        self.forward = _Forward(model)
        self.scripts: dict[bool, Callable[..., Tensor]] = {}  # True: without a mask

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        mask = visible(1, cache.length + 1, cache.pad, ids.device)
        call = [ids, cache.positions(1), *cache.extend(1), *([] if mask is None else [mask])]
        if (mask is None) not in self.scripts:
            self.scripts[mask is None] = _written(self.forward, call)
        optimised = torch._C._get_graph_executor_optimize()
        torch._C._set_graph_executor_optimize(False)  # to optimise takes longer than it saves
        try:
            return self.scripts[mask is None](*call)
        finally:
            torch._C._set_graph_executor_optimize(optimised)


class _Forward(nn.Module):
    """The model as a function of tensors, having of its parts those which are scripts already."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        scripts = (part for part in model.modules() if isinstance(part, torch.jit.ScriptModule))
        self.scripts = nn.ModuleList(scripts)
        self.model = ref(model)  # no part of this, nor kept by it

    def forward(self, ids: Tensor, where: Tensor, *rest: Tensor) -> Tensor:
        model = self.model()
        assert model is not None  # it was in the hands of who called
        past, mask = Past(*rest[:4]), rest[4] if len(rest) > 4 else None
        x = model.through(model.embed(ids, where, NO_TAP), mask, past, 0, NO_TAP)
        return model.unembed(x, 0, NO_TAP)


def _written(forward: nn.Module, call: Sequence[Tensor]) -> Callable[..., Tensor]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            script = torch.jit.trace(forward, tuple(call), check_trace=False)
        except (RuntimeError, TypeError, AttributeError):
            return forward
    depends = any(issubclass(w.category, torch.jit.TracerWarning) for w in warned)
    return forward if depends else script  # on what this call's tensors were
