"""`generate --dry-run`: the memory that a run would take, and the speed to expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from llmcli.budget import TORCH_NBYTES, budget
from llmcli.commands.job import Job
from llmcli.commands.options import Compute
from llmcli.strict_json import strict
from llmcli.units import Pace, rate, sized

MEASURED_TOKENS = 16


def tell_budget(job: Job, compute: Compute, ids: Sequence[int], n_rows: int, json: bool) -> None:
    """Print what continuing `ids` would take; the speed is measured over a few tokens."""
    from llmcli.gpt.place import choose

    config = job.opened.config
    n_tokens, at_once = job.sizes([len(ids)])
    _, storage = choose(compute.device, compute.dtype, compute.quantize)
    plan = budget(config, storage, n_rows, n_tokens, at_once)
    first_s, speed = _measured(job, compute, ids, n_rows) if plan.fits else (None, None)
    told = {
        "schema": 1,
        "dtype": storage,
        "n_tokens": n_tokens,
        "weights_nbytes": plan.weights,
        "cache_nbytes": plan.cache,
        "activations_nbytes": plan.activations,
        "torch_nbytes": TORCH_NBYTES,
        "needed_nbytes": plan.needed,
        "available_nbytes": plan.available,
        "first_token_s": first_s,
        "decode_tokens_per_s": speed,
    }
    if json:
        print(strict(told))
        return
    rows_text = f"{n_rows} × {n_tokens} tokens" if n_rows > 1 else f"{n_tokens} tokens"
    available = sized(plan.available) if plan.available is not None else "unknown"
    print(f"weights      {sized(plan.weights):>9}  {told['dtype']}")
    print(f"KV cache     {sized(plan.cache):>9}  {rows_text}")
    print(f"activations  {sized(plan.activations):>9}  at the prefill")
    print(f"torch        {sized(TORCH_NBYTES):>9}  about")
    print(f"needed       {sized(plan.needed):>9}")
    print(f"available    {available:>9}")
    n = min(MEASURED_TOKENS, config.n_ctx + 1 - len(ids))
    if speed:
        print(f"speed        {speed:>9.0f}  tok/s, measured over {n} tokens")
    elif plan.fits:
        print(f"Of a speed there is nothing to measure: {n} token{'s' * (n != 1)} can follow.")
    else:
        print("It does not fit; the speed was not measured.")


def _measured(
    job: Job, compute: Compute, ids: Sequence[int], n_rows: int
) -> tuple[float, float | None]:
    """Seconds to the first token, and tokens a second after the second, over a few tokens."""
    n_new = max(job.max_new_tokens, MEASURED_TOKENS)
    job = replace(
        job, max_new_tokens=n_new, eos_ids=frozenset(), stop_ids=frozenset(), stops=(), forced={}
    )
    model = job.load(compute, [len(ids)], n_rows, unpacked=True)
    pieces = job.run(model, [ids] * n_rows, job.draws(n_rows), job.streams(n_rows))
    times = [piece.step.time_s for piece in islice(pieces, MEASURED_TOKENS * n_rows)]
    return times[0], rate(Pace.of(times))
