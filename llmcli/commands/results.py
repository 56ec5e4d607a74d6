"""What a run is told by besides its text: the JSON header, timings, perplexity, the stats line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.commands.loading import model_json

if TYPE_CHECKING:
    from llmcli.commands.job import Job
    from llmcli.gpt.generation import Step
    from llmcli.gpt.model import GPT

SCHEMA = 1


def header(
    job: Job, model: GPT, load_s: float, prompt: Mapping[str, Any], **options: Any
) -> dict[str, Any]:
    """What JSON tells of a run before its first token; `options` are those beside the job's."""
    return {
        "schema": SCHEMA,
        "model": model_json(job.opened, model),
        "seed": job.seed,
        "options": {**job.options, **options},
        "load_s": load_s,
        "prompt": prompt,
    }


def timings(head: dict[str, Any], times: Sequence[float]) -> dict[str, Any]:
    """Seconds to the first token and after it, tokens a second, and the process's peak memory."""
    pace = units.Pace.of(times)
    return {
        "timings": {
            "load_s": head["load_s"],
            "first_token_s": pace.first_s,
            "second_token_s": pace.second_s,
            "decode_s": max(times) - min(times) if times else 0.0,
            "decode_tokens_per_s": units.rate(pace),
        },
        "peak_memory_nbytes": peak_nbytes(),
    }


def peak_nbytes() -> int | None:
    """The largest resident size of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def perplexity(steps: Sequence[Step]) -> float | None:
    """exp of the mean of -log p over the tokens of `steps`."""
    if not steps:
        return None
    return units.perplexity(-sum(step.facts.chosen.logprob for step in steps) / len(steps))


def stats_line(head: dict[str, Any], n_prompt: int, times: Sequence[float], reason: str) -> str:
    """One line of timings; the rate is from the second token, before which much may be packed."""
    told = timings(head, times)["timings"]
    first_s, rate = told["first_token_s"], told["decode_tokens_per_s"]
    if first_s is None:
        return f"load {told['load_s']:.2f} s | no token"
    second = f", second at {1000 * told['second_token_s']:.0f} ms" if told["second_token_s"] else ""
    decode = f", {rate:.0f} tok/s" if rate else ""
    return (
        f"load {told['load_s']:.2f} s | first token {1000 * first_s:.0f} ms{second} | "
        f"prefill {n_prompt} token{'s' * (n_prompt != 1)}, {n_prompt / first_s:.0f} tok/s | "
        f"decode {len(times)} token{'s' * (len(times) != 1)}{decode} | finish {reason} | "
        f"{head['model']['dtype']} on {head['model']['device']} | seed {head['seed']}"
    )
