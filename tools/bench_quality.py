"""What speed costs: the KL divergence of every mode to float32, and whether greedy text stays.

Mean KL(float32 || mode) in nats over every position of held-out stories that fable reads, each
after one end-of-text id. A prefill and a decode step may multiply by different kernels, so that
both are measured: whole stories in one pass, and fewer of them token by token through the cache.
llama.cpp's files of the same weights stand beside (token by token).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import bench_models as models
import numpy as np
from bench_engines import ENGINES, OURS, Absent, Given, Ours
from bench_engines import run as run_engine
from bench_floors import number, table
from evaluate_fable import PROMPTS, documents

MEASURED = [*(f"ours-{mode}" for mode in OURS), "llamacpp-f16", "llamacpp-q8_0", "llamacpp-q4_0"]
LONGEST = 512  # of a story: fable's context


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, required=True, help="has tinystories.valid.txt")
    parser.add_argument("--stories", type=int, default=50, help="read in one pass")
    parser.add_argument("--stepwise", type=int, default=10, help="of these, token by token")
    parser.add_argument("--prompts", type=int, default=50, help="continued greedily")
    parser.add_argument("--new", type=int, default=100, help="tokens of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, help="where models are written")
    parser.add_argument("--json", action="store_true")


def measured(given: argparse.Namespace) -> dict[str, Any]:
    from llmcli.tokenizer import Tokenizer

    told = Given(models.FABLE, models.models_folder(given.models), given.threads)
    tokenizer = Tokenizer.from_folder(models.FABLE)
    texts = documents(given.corpus / "tinystories.valid.txt")[: given.stories]
    stories = [[0, *tokenizer.encode(text)][:LONGEST] for text in texts]
    few = stories[: given.stepwise]
    exact = Ours("float32", told)
    kl: dict[str, dict[str, float]] = {}
    absent = {}
    for name in MEASURED:
        try:
            engine = ENGINES[name](told)
        except Absent as reason:
            absent[name] = str(reason)
            continue
        kl[name] = {}
        if name.startswith("ours-"):
            pairs = ((exact.logits(ids, False), engine.logits(ids, False)) for ids in stories)
            kl[name]["one pass"] = mean_kl(pairs)
        pairs = ((exact.logits(ids, False), engine.logits(ids, True)) for ids in few)
        kl[name]["stepwise"] = mean_kl(pairs)
    prompts = [[0, *tokenizer.encode(text)] for text in PROMPTS[: given.prompts]]
    auto = ENGINES["ours-auto"](told)
    equal = [
        run_engine(auto, [ids], given.new)[1] == run_engine(exact, [ids], given.new)[1]
        for ids in prompts
    ]
    return {
        "positions": {"one pass": sum(map(len, stories)), "stepwise": sum(map(len, few))},
        "kl_nats": kl,
        "greedy": {"auto": auto.told, "equal": sum(equal), "of": len(equal), "new": given.new},
        "absent": absent,
    }


def mean_kl(pairs: Any) -> float:
    """Mean of KL(p || q) in nats over the rows of all pairs of logits (T, V)."""
    total, count = 0.0, 0
    for p_logits, q_logits in pairs:
        p, q = logprobs(p_logits), logprobs(q_logits)
        total += float((np.exp(p) * (p - q)).sum())
        count += len(p)
    return total / count


def logprobs(logits: Any) -> Any:
    """log softmax of each row, in float64: what is measured is smaller than float32's noise."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def run(given: argparse.Namespace) -> None:
    found = measured(given)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    positions = found["positions"]
    print(
        f"mean KL to float32 in nats on fable's held-out stories: {positions['one pass']:,} "
        f"positions in one pass, {positions['stepwise']:,} token by token"
    )
    rows = [
        [name, *(number(kl[how]) if how in kl else "" for how in positions)]
        for name, kl in found["kl_nats"].items()
    ]
    print(table(["", *positions], rows))
    greedy = found["greedy"]
    print(
        f"greedy text of auto ({greedy['auto']}) is float32's on {greedy['equal']} of "
        f"{greedy['of']} prompts, {greedy['new']} tokens each"
    )
    for name, reason in found["absent"].items():
        print(f"left out: {name} ({reason})")
