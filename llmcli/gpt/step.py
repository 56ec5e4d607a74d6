"""Which way a decode step goes: as a script, as a GPU's kernel, or through the model as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import Tensor

from llmcli.gpt.cache import KVCache
from llmcli.gpt.gpu import DecodeKernel, missing_kernel
from llmcli.gpt.model import GPT
from llmcli.gpt.script import DecodeStep

NextLogits = Callable[[Tensor, KVCache], Tensor]  # ids (B, 1) -> logits (B, 1, V)

WORTH_A_SCRIPT = 48  # tokens: to write one down takes as long as it saves in so many steps
WORTH_A_KERNEL = 2000  # tokens times layers: to compile it takes a second


def decode_step(model: GPT, n_tokens: int, n_rows: int = 1) -> NextLogits:
    """`model(ids, cache)` for one more token of each row, the fastest way for `n_tokens` of them.

    The same at every call: the model's weights must not be replaced afterwards. They are constants
    of a script, which torch keeps as long as the process lives; as attributes they would be freed
    with the model, and a small model's step take 4 % longer.
    """
    make: Callable[[GPT], NextLogits | None]
    n_layer = model.config.n_layer
    if model.device.type == "cpu" and n_tokens > WORTH_A_SCRIPT:
        make = DecodeStep
    elif model.device.type == "cuda" and n_rows == 1 and n_tokens * n_layer > WORTH_A_KERNEL:
        make = _kernel  # which knows one row
    else:
        return model
    if model not in _OF_MODEL:
        _OF_MODEL[model] = make(model)
    return _OF_MODEL[model] or model


def _kernel(model: GPT) -> DecodeKernel | None:
    """None: there is none for this model or GPU, or it cannot be made, which is told."""
    if missing_kernel(model.config, model.storage, model.device):
        return None
    try:
        return DecodeKernel(model)
    except (ImportError, RuntimeError) as error:  # a driver too old for the compiler, say
        warnings.warn(f"No decode kernel: {error}. A step takes the usual way.", stacklevel=3)
        return None


_OF_MODEL: WeakKeyDictionary[GPT, NextLogits | None] = WeakKeyDictionary()
