"""Where and how a model runs: device, dtype and threads."""

from __future__ import annotations

import torch

from llmcli.config import ModelConfig
from llmcli.errors import UsageError

# Below this, threads wait for each other longer than they work: fable decodes no slower on one
# thread than on two, and a hundred times faster when another process wants the second core.
ONE_THREAD_BELOW = 32_000_000  # parameters


def choose(device: str, dtype: str) -> tuple[str, torch.dtype]:
    """What `auto` stands for here: a GPU where there is one, float32.

    Raises UsageError for a device that torch does not find.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(name for name, found in there.items() if found)
    if not there[device]:
        raise UsageError(
            f"There is no device {device} here, or this build of torch does not know it.",
            f"Devices: {', '.join(name for name, found in there.items() if found)}.",
        )
    return device, torch.float32 if dtype == "auto" else getattr(torch, dtype)


def use_threads(config: ModelConfig, threads: int | None = None) -> None:
    """Let torch use `threads`; by default one for a small model, else as many as it chooses."""
    if threads is None and config.n_parameters < ONE_THREAD_BELOW:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


def torch_version() -> str:
    """Which torch computes here."""
    return str(torch.__version__)
