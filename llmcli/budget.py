"""What a run needs before it begins: bytes of weights, cache and intermediate values. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmcli.config import ModelConfig
from llmcli.errors import ResourceError
from llmcli.units import sized

TORCH_NBYTES = 300 << 20  # what the process holds once torch is imported


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of memory that a run needs, by what needs them."""

    weights: int
    cache: int
    activations: int
    available: int | None  # None where the system does not tell

    @property
    def needed(self) -> int:
        return self.weights + self.cache + self.activations + TORCH_NBYTES

    @property
    def fits(self) -> bool:
        """Whether there is enough; where nobody knows, the system will tell."""
        return self.available is None or self.needed <= self.available


# Bytes that a weight takes as it is stored: 4 bits, and 32 bits for each group of 32 of them.
PER_WEIGHT = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.625}


def budget(
    config: ModelConfig,
    storage: str,
    batch: int = 1,
    n_tokens: int | None = None,
    at_once: int | None = None,
) -> Budget:
    """What `batch` rows of up to `n_tokens` (None: the whole context) take on a CPU.

    At most `at_once` tokens of a row (None: all) go through the model in one pass.
    """
    itemsize = 2 if storage == "bfloat16" else 4  # of what is computed
    tokens = n_tokens or config.n_ctx
    rows = batch * (at_once or tokens)
    return Budget(
        weights=int(config.n_parameters * PER_WEIGHT[storage]),
        cache=batch * tokens * config.kv_nbytes(4),
        # In the prefill: the stream, its norm, q, k, v and z, the MLP twice; then the logits
        # twice, and of one row what sampling makes of it.
        activations=rows * (8 * config.n_embd + 2 * config.mlp_dim) * itemsize
        + (2 * batch + 10) * config.vocab_size * 4,
        available=available_nbytes(),
    )


def check_fits(plan: Budget) -> None:
    """Raises ResourceError, with the numbers, where the run would not fit into memory."""
    if plan.available is not None and not plan.fits:
        raise ResourceError(
            f"This needs {sized(plan.needed)} of memory (weights {sized(plan.weights)}, KV cache "
            f"{sized(plan.cache)}, the rest {sized(plan.activations + TORCH_NBYTES)}); "
            f"{sized(plan.available)} are available.",
            "Try --quantize int8, fewer samples, a smaller --batch-size or a smaller model.",
        )


def available_nbytes() -> int | None:
    """Memory that can be had without swapping: the system's, or the container's if that is less."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            found.append(max(0, int(limit) - used + _file_cache_nbytes()))
    except (OSError, ValueError, LookupError):
        pass  # not Linux, or no such limit: what was found counts
    return min(found, default=None)


def _file_cache_nbytes() -> int:
    """What the container holds of files: it counts as used, and is given back when it is needed."""
    lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    stat = dict(line.split() for line in lines)
    return int(stat["active_file"]) + int(stat["inactive_file"])
