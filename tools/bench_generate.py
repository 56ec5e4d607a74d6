"""Generation beside other engines: every mode of ours, transformers, llama.cpp, ctranslate2.

Each engine runs in a process of its own, on the same weights, prompts and threads, greedy. In every
round each engine takes its turn, so that what slows the machine slows all; ratios are medians of a
round's ratios. An engine that is not there is left out by name. Memory bandwidth is measured in the
same rounds: bytes that a decode step must read over bandwidth is the floor of its time. `same ids`
counts those that are transformers' in float32 before the first that is not: random weights give
many close logits, so that quantised ones soon differ; `bench.py quality` measures on fable.

Peers: `pip install ".[bench]"`. Weights are written once into --models, some 8 GB for 774m; with
--repeats 0 that is all that happens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import bench_models as models
from bench_engines import BATCHES, ENGINES, Absent
from bench_floors import (
    STORED,
    Spread,
    Times,
    floor_tok_s,
    number,
    ratio,
    ratio_table,
    step_nbytes,
    table,
    weight_nbytes,
)

from llmcli.config import ModelConfig, read_config

TREE = Path(__file__).resolve().parents[1]
MEASURES = ("decode", "long", "batch", "start")
BATCH, BATCH_NEW, BATCH_PROMPT = 32, 64, 16
LONG_NEW = 32  # tokens, at the context's start and at its end

# What is wanted of a ratio: measure, ours, peer, at least. Of fable, that of FABLE_WANTED.
WANTED = [
    ("decode 16", "ours-float16", "llamacpp-f16", 1.15),
    ("decode 16", "ours-int8", "llamacpp-q8_0", 1.1),
    ("decode 16", "ours-int4", "llamacpp-q4_0", 0.9),
    ("decode 16", "ours-auto", "transformers-float32", 4.0),
    ("first 512", "ours-auto", "transformers-float32", 1.3),
    ("first 512", "ours-bfloat16", "transformers-bfloat16", 1.2),
    ("first 512", "ours-int8", "ctranslate2-int8", 1.0),
    ("batch", "ours-float32", "transformers-float32", 2.0),
    ("batch", "ours-bfloat16", "transformers-bfloat16", 2.0),
    ("start", "ours-start", "transformers-start", 2.0),
]
FABLE_WANTED = [("decode 16", "ours-auto", "transformers-float32", 2.0)]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=[*models.SHAPES, "fable"], default="124m")
    parser.add_argument("--prompt", type=numbers, default=[16, 512], help="tokens: 16,512")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=names(ENGINES), default=list(ENGINES), help="engines: a,b")
    parser.add_argument("--measure", type=names(MEASURES), default=MEASURES[:1],
                        help="which of decode,long,batch,start; decode")  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", type=Path, help="where models are written")
    parser.add_argument("--json", action="store_true", help="every measurement, as one object")


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def names(known: Sequence[str] | Mapping[str, object]) -> Any:
    def parse(text: str) -> list[str]:
        if wrong := [each for each in text.split(",") if each not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}; known: {', '.join(known)}")
        return text.split(",")

    return parse


def run(given: argparse.Namespace) -> None:
    where = models.models_folder(given.models)
    folder = models.hf_folder(given.shape, where)
    told = {
        "folder": str(folder),
        "models": str(where),
        "threads": given.threads,
        "device": given.device,
        "rows": BATCH if "batch" in given.measure else 1,
    }
    workers: dict[str, Worker] = {}
    absent = {}
    for name in ["bandwidth", *given.only]:
        try:
            workers[name] = Worker(name, told)
        except Absent as reason:
            absent[name] = str(reason)
    results = Results(read_config(folder))
    for _ in range(given.repeats):
        one_round(workers, results, given)
    for worker in workers.values():
        worker.close()
    if "start" in given.measure:
        cold_starts(folder, given, results)
    results.about = {name: worker.told for name, worker in workers.items() if worker.told["told"]}
    results.absent = absent
    if given.json:
        print(json.dumps(results.as_json(given), indent=1))
    elif given.repeats:
        report(results, given)


class Worker:
    """One engine in a process of its own, which answers one question at a time.

    Raises Absent where it is not there, or has ended: of one built for another processor that shows
    at the first question, which is asked at once.
    """

    def __init__(self, name: str, told: Mapping[str, object]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process lives)
        self.process = subprocess.Popen(
            [sys.executable, str(TREE / "tools" / "bench_engines.py"),
             json.dumps({**told, "name": name})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=environment(),
        )  # fmt: skip
        self.told = self._answer()
        if reason := self.told.get("absent"):
            raise Absent(reason)
        if name != "bandwidth":
            self.ask(prompts=[[1, 2]], new=2)

    def ask(self, **question: object) -> dict[str, Any]:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has ended, which its answer tells
            print(json.dumps(question), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines()[-1:]
            raise Absent(": ".join([f"its process ended with {self.process.wait()}", *said]))
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def environment() -> dict[str, str]:
    """Ours from this tree, and nothing looked up on the network."""
    path = os.pathsep.join(filter(None, [str(TREE), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


class Results:
    """What was measured: values[measure][engine] has one number per round."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.ids: dict[str, dict[str, list[int]]] = defaultdict(dict)
        self.bandwidth: list[float] = []
        self.peak_mib: dict[str, float] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.absent: dict[str, str] = {}

    def stored(self, name: str) -> Any:
        """How `name` stores its weights; ours-auto as what it chose."""
        return STORED.get(name) or STORED[f"ours-{self.about[name]['told']}"]

    def floor(self, name: str, position: float) -> float:
        """Tokens per second that memory allows `name` with `position` tokens before."""
        nbytes = step_nbytes(self.config, self.stored(name), position)
        return floor_tok_s(nbytes, Spread.of(self.bandwidth).median)

    def as_json(self, given: argparse.Namespace) -> dict[str, Any]:
        floors = {
            f"decode {n}": {name: self.floor(name, n + given.new / 2) for name in self.about}
            for n in given.prompt
        }
        return {
            "shape": given.shape, "device": given.device, "threads": given.threads,
            "new": given.new, "repeats": given.repeats, "bandwidth": self.bandwidth,
            "values": self.values, "floors_tok_s": floors, "peak_mib": self.peak_mib,
            "engines": self.about, "absent": self.absent,
        }  # fmt: skip


# --- measuring -----------------------------------------------------------------------------------


def one_round(workers: Mapping[str, Worker], results: Results, given: argparse.Namespace) -> None:
    """Every measurement once, by every engine in turn."""
    engines = {name: worker for name, worker in workers.items() if name != "bandwidth"}
    results.bandwidth.append(workers["bandwidth"].ask()["bandwidth"])

    def measured(name: str, prompts: list[list[int]], new: int) -> Times:
        try:
            answer = engines[name].ask(prompts=prompts, new=new)
        except Absent as reason:
            raise SystemExit(f"{name}: {reason}") from reason
        results.peak_mib[name] = answer["peak_mib"]
        results.ids[f"{len(prompts)} {len(prompts[0])} {new}"][name] = [
            id for step in answer["ids"] for id in step
        ]
        return Times(answer["times"])

    n_ctx, vocab_size = results.config.n_ctx, results.config.vocab_size
    if "decode" in given.measure:
        for n in given.prompt:
            for name in engines:
                times = measured(name, some_prompts(1, n, vocab_size), given.new)
                results.values[f"decode {n}"][name].append(times.decode_tok_s)
                results.values[f"first {n}"][name].append(times.first_s)
    if "long" in given.measure:
        for name in engines:
            for n in (BATCH_PROMPT, n_ctx - LONG_NEW):
                times = measured(name, some_prompts(1, n, vocab_size), LONG_NEW)
                results.values[f"long {n}"][name].append(times.decode_tok_s)
    if "batch" in given.measure:
        for name in (name for name in engines if name.startswith(BATCHES)):
            times = measured(name, some_prompts(BATCH, BATCH_PROMPT, vocab_size), BATCH_NEW)
            results.values["batch"][name].append(BATCH * BATCH_NEW / times.times[-1])


def some_prompts(count: int, length: int, vocab_size: int) -> list[list[int]]:
    """Seeded ids, the same for every engine."""
    random = Random(length)
    return [[random.randrange(1, vocab_size - 1) for _ in range(length)] for _ in range(count)]


def cold_starts(folder: Path, given: argparse.Namespace, results: Results) -> None:
    """Seconds from a program's start to its first token on stdout, beside `import torch` alone."""
    theirs = """if True:
        import sys
        from transformers import AutoModelForCausalLM, AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
        ids = tokenizer(sys.argv[2], return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=1)
        print(tokenizer.decode(out[0, ids["input_ids"].shape[1] :]))
    """
    said = "Once upon a time"
    ours = ["-m", "llmcli", "generate", said, "-m", str(folder), "--temperature", "0",
            "--max-new-tokens", "1", "--ignore-eos", "--quiet"]  # fmt: skip
    programs = {"import-torch": ["-c", "import torch; print(1)"], "ours-start": ours}
    if any(name.startswith("transformers") for name in given.only):
        programs["transformers-start"] = ["-c", theirs, str(folder), said]
    for _ in range(given.repeats):
        for name, arguments in programs.items():
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=environment(),
            )  # fmt: skip
            assert process.stdout
            first = process.stdout.read(1)
            results.values["start"][name].append(time.perf_counter() - started)
            _, errors = process.communicate()
            if not first:
                raise SystemExit(f"{name} gave nothing:\n{errors.decode()}")


# --- the report ----------------------------------------------------------------------------------


def report(results: Results, given: argparse.Namespace) -> None:
    low, median, high = (Spread.of(results.bandwidth)[i] / 1e9 for i in (1, 0, 2))
    print(
        f"{given.shape}, {given.device}, {given.threads} threads, greedy, {given.new} new tokens, "
        f"medians of {given.repeats} rounds (least to most)\n"
        f"a large read: {median:.1f} GB/s ({low:.1f} to {high:.1f})"
    )
    if "decode" in given.measure:
        for n in given.prompt:
            report_decode(results, n, given.new)
    if "long" in given.measure:
        report_long(results)
    if "batch" in given.measure:
        values = results.values["batch"]
        print(f"\n{BATCH} prompts of {BATCH_PROMPT} tokens in one batch, {BATCH_NEW} tokens each")
        print(table(["", "tok/s", "least", "most"], [cells(n, v) for n, v in values.items()]))
        print_some(ratio_table(values))
    if "start" in given.measure:
        values = results.values["start"]
        print("\ncold start to the first token")
        print(table(["", "s", "least", "most"], [cells(n, v) for n, v in values.items()]))
    report_memory(results)
    for name, reason in results.absent.items():
        print(f"left out: {name} ({reason})")
    report_wanted(results, FABLE_WANTED if given.shape == "fable" else WANTED)


def report_decode(results: Results, n: int, new: int) -> None:
    decode, first = results.values[f"decode {n}"], results.values[f"first {n}"]
    reference = next(
        (name for name in ("transformers-float32", "ours-float32") if name in decode), ""
    )
    ids = results.ids[f"1 {n} {new}"]
    rows = []
    for name, values in decode.items():
        floor = results.floor(name, n + new / 2)
        nbytes = step_nbytes(results.config, results.stored(name), n + new / 2)
        share = f"{100 * Spread.of(values).median / floor:.0f} %"
        first_ms = map(number, Spread.of([1000 * first_s for first_s in first[name]]))
        rows.append([*cells(name, values), number(nbytes / 1e6), number(floor), share,
                     *first_ms, same(ids[name], ids.get(reference))])  # fmt: skip
    head = ["", "tok/s", "least", "most", "MB/token", "floor", "share", "first ms", "least", "most",
            "same ids"]  # fmt: skip
    print(f"\nprompt of {n} tokens: decode, its floor, and the first token")
    print(table(head, rows))
    print_some(ratio_table(decode), "decode")
    print_some(ratio_table(first, higher_is_better=False), "first token")


def report_long(results: Results) -> None:
    """What decoding costs at the context's end: in time, and in the bytes of keys and values."""
    near, far = BATCH_PROMPT, results.config.n_ctx - LONG_NEW
    rows = []
    for name, late in results.values[f"long {far}"].items():
        early_ms, late_ms = (
            1000 / Spread.of(values).median
            for values in (results.values[f"long {near}"][name], late)
        )
        kv = results.config.kv_nbytes(results.stored(name).kv_itemsize) * (far - near)
        explained = 1000 * kv / Spread.of(results.bandwidth).median
        over = late_ms / (early_ms + explained)
        rows.append([name, *map(number, (early_ms, late_ms, late_ms - early_ms, explained, over))])
    head = ["", f"ms at {near}", f"ms at {far}", "more", "KV bytes", "ratio"]
    print(f"\na decode step at position {far} beside {near}: what its KV bytes explain")
    print(table(head, rows))


def report_memory(results: Results) -> None:
    rows = [
        [name, number(told["load_s"]), number(told["import_mib"]),
         number(weight_nbytes(results.config, results.stored(name)) / 2**20),
         number(results.peak_mib[name])]
        for name, told in results.about.items() if name in results.peak_mib
    ]  # fmt: skip
    print("\nloading, and memory at most (MiB): the libraries, the weights as stored, the process")
    print(table(["", "load s", "imports", "weights", "peak"], rows))
    for name, told in results.about.items():
        print(f"{name}: {told['told']}")


def report_wanted(results: Results, wanted: Sequence[tuple[str, str, str, float]]) -> None:
    for measure, ours, peer, least in wanted:
        values = results.values[measure]
        if ours in values and peer in values:
            pair = (values[ours], values[peer])
            is_time = measure.startswith(("first", "start"))
            reached = ratio(*(pair[::-1] if is_time else pair))
            print(f"{measure}: {ours} is {reached:.2f}x {peer} (at least {least} is wanted)")


def cells(name: str, values: Sequence[float]) -> list[str]:
    return [name, *map(number, Spread.of(values))]


def same(ids: Sequence[int], reference: Sequence[int] | None) -> str:
    """How many ids are those of the reference before the first that is not."""
    if reference is None:
        return ""
    pairs = list(zip(ids, reference, strict=True))
    return f"{next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))}"


def print_some(text: str, title: str = "") -> None:
    if text:
        print(f"\n{title}\n{text}" if title else f"\n{text}")
