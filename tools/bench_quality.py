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
from bench_engines import run as engine_run
from bench_floors import number, table
from bench_generate import names
from evaluate_fable import PROMPTS, documents

from llmcli.tokenizer import Tokenizer

MEASURED = [*(f"ours-{mode}" for mode in OURS), "llamacpp-f16", "llamacpp-q8_0", "llamacpp-q4_0"]
MEASURES = ("kl", "greedy")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, required=True, help="has tinystories.valid.txt")
    parser.add_argument("--stories", type=int, default=50, help="read in one pass")
    parser.add_argument("--stepwise", type=int, default=10, help="of these, token by token")
    parser.add_argument("--prompts", type=int, default=50, help="continued greedily")
    parser.add_argument("--new", type=int, default=100, help="tokens of each")
    parser.add_argument("--only", type=names(MEASURED), default=MEASURED, help="engines: a,b")
    parser.add_argument("--measure", type=names(MEASURES), default=MEASURES, help="kl,greedy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, help="where models are written")
    parser.add_argument("--json", action="store_true")


def run(given: argparse.Namespace) -> None:
    told = Given(models.FABLE, models.models_folder(given.models), given.threads)
    exact = Ours("float32", told)
    found: dict[str, Any] = {"absent": {}}
    if "kl" in given.measure:
        found |= divergences(exact, told, given, found["absent"])
    if "greedy" in given.measure:
        found["greedy"] = greedy_texts(exact, told, given)
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        report(found)


def divergences(
    exact: Ours, told: Given, given: argparse.Namespace, absent: dict[str, str]
) -> dict[str, Any]:
    """Mean KL of each engine to `exact`, over how many positions; who is not there, in `absent`."""
    texts = documents(given.corpus / "tinystories.valid.txt")[: given.stories]
    tokenizer = Tokenizer.from_folder(models.FABLE)
    n_ctx = exact.model.config.n_ctx
    stories = [[0, *tokenizer.encode(text)][:n_ctx] for text in texts]
    references = [exact.logits(ids, stepwise=False) for ids in stories]
    pairs = list(zip(stories, references, strict=True))
    kl: dict[str, dict[str, float]] = {}
    for name in given.only:
        try:
            engine = ENGINES[name](told)
        except Absent as reason:
            absent[name] = str(reason)
            continue
        parts = {"one pass": pairs, "stepwise": pairs[: given.stepwise]}
        if not name.startswith("ours-"):
            del parts["one pass"]
        kl[name] = {
            how: mean_kl((p, engine.logits(ids, how == "stepwise")) for ids, p in part)
            for how, part in parts.items()
        }
    lengths = [len(ids) for ids in stories]
    positions = {"one pass": sum(lengths), "stepwise": sum(lengths[: given.stepwise])}
    return {"positions": positions, "kl_nats": kl}


def greedy_texts(exact: Ours, told: Given, given: argparse.Namespace) -> list[dict[str, Any]]:
    """For each mode of ours, on how many prompts it writes what `exact` writes, one at a time.

    `auto` may choose float32 for a model as small as fable: what it takes for a large one counts.
    """
    tokenizer = Tokenizer.from_folder(models.FABLE)
    prompts = [[0, *tokenizer.encode(text)] for text in PROMPTS[: given.prompts]]
    wanted = [engine_run(exact, [ids], given.new)[1] for ids in prompts]
    found = []
    for name in given.only:
        if not name.startswith("ours-") or name == "ours-float32":
            continue
        mode = ENGINES[name](told)
        written = [engine_run(mode, [ids], given.new)[1] for ids in prompts]
        equal = sum(a == b for a, b in zip(written, wanted, strict=True))
        found.append({"mode": name, "told": mode.told, "equal": equal, "of": len(prompts)})
    return found


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


def report(found: dict[str, Any]) -> None:
    if "kl_nats" in found:
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
    for mode in found.get("greedy", []):
        print(
            f"greedy text of {mode['mode']} ({mode['told']}) is float32's on {mode['equal']} of "
            f"{mode['of']} prompts"
        )
    for name, reason in found["absent"].items():
        print(f"left out: {name} ({reason})")
