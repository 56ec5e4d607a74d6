"""Where and how a model runs: device, dtype and threads."""

from __future__ import annotations

import os

import torch

from llmcli.config import ModelConfig
from llmcli.errors import UsageError

# Threads of a smaller model wait for each other longer than they work: fable decodes no slower on
# one than on two, and a hundred times faster when another process wants the second core.
SMALL = 32_000_000  # parameters
MOST = 64  # threads that may be asked for on any machine


def choose(device: str, dtype: str, quantize: str | None = None) -> tuple[str, str]:
    """Device, and how the weights are stored; what `auto` stands for is what is fast without harm.

    On a CPU that is float16, in which weights are read twice as fast and all is computed in fp32.
    Raises UsageError for a device that torch does not find, and for what a device cannot do.
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
    if quantize is not None:
        if device != "cpu":
            raise UsageError(f"--quantize is for a CPU, not for {device}.", "Try --dtype float16.")
        if dtype not in ("auto", "float32"):
            raise UsageError(
                f"--quantize {quantize} stores weights in {quantize}, not in {dtype}.",
                "Choose one of --quantize and --dtype.",
            )
        return device, quantize
    if dtype == "auto":
        dtype = "float16" if device == "cpu" else "float32"
    return device, dtype


def use_threads(config: ModelConfig, threads: int | None = None) -> None:
    """Let torch use `threads`; by default one for a small model, else as many as it chooses.

    Raises UsageError for more than can be of use: the system may have no room for them, and torch
    crashes then.
    """
    most = max(MOST, 4 * (os.cpu_count() or 1))
    if threads is not None and threads > most:
        raise UsageError(
            f"--threads {threads} is more than the {most} that can be of use here.",
            "Leave it out, or give as many as there are processor cores.",
        )
    if threads is None and config.n_parameters < SMALL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


def spares_a_core(device: torch.device) -> bool:
    """Whether a core is left over while a model computes on `device`."""
    known = hasattr(os, "sched_getaffinity")  # not all systems tell what a process may use
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return device.type != "cpu" or torch.get_num_threads() < cores


def torch_version() -> str:
    """Which torch computes here."""
    return str(torch.__version__)
