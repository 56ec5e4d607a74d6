"""Where and how a model runs: for now, on how many threads."""

from __future__ import annotations

import torch

from llmcli.gpt.model import GPT

# Below this, threads wait for each other longer than they work: fable decodes no slower on one
# thread than on two, and a hundred times faster when another process wants the second core.
ONE_THREAD_BELOW = 32_000_000  # parameters


def use_threads(model: GPT) -> None:
    """Let torch use one thread for a small model, else as many as it chooses."""
    if sum(weight.numel() for weight in model.parameters()) < ONE_THREAD_BELOW:
        torch.set_num_threads(1)
