"""The engines that the benchmarks measure, each behind the same three calls; and their worker.

`python tools/bench_engines.py JSON` is one engine in a process of its own: it loads, then answers
each JSON line on stdin with one on stdout. Engines import what they need when they are made: one
that is not installed raises Absent with its reason.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import bench_models as models

Ids = list[list[int]]


class Absent(Exception):
    """Why an engine is not there to be measured."""


@dataclass(frozen=True)
class Given:
    """What every engine is told."""

    folder: Path  # the model as a Hugging Face folder
    models: Path  # where other formats of it lie, or are put
    threads: int
    device: str = "cpu"
    rows: int = 1  # of the largest batch


class Engine(Protocol):
    told: str  # what it chose by itself, for the report

    def generate(self, prompts: Ids, new: int) -> Iterator[list[int]]:
        """Greedy, no stop: the next id of every prompt, `new` times, each once it is there."""
        ...

    def logits(self, ids: list[int], stepwise: bool) -> Any:
        """Logits (T, V) of `ids` in one pass, or token by token through the cache."""
        ...


def needed(name: str) -> ModuleType:
    if find_spec(name) is None:
        raise Absent(f"{name} is not installed")
    return import_module(name)


# --- ours ----------------------------------------------------------------------------------------


def load_ours(mode: str, given: Given, rows: int = 1) -> Any:
    """A GPT of ours in one of OURS' modes: the one place that knows how a mode is asked for."""
    import torch

    from llmcli.config import read_config
    from llmcli.gpt.place import choose, use_threads
    from llmcli.gpt.weights import load_model

    config = read_config(given.folder)
    torch.set_num_threads(given.threads)
    use_threads(config)  # a small model takes one, as it does on the command line
    storage = choose(given.device, "auto")[1] if mode == "auto" else mode
    return load_model(given.folder, config, storage, given.device, rows)


OURS = ("float32", "bfloat16", "float16", "int8", "int4", "auto")


class Ours:
    def __init__(self, mode: str, given: Given) -> None:
        self.model = load_ours(mode, given)
        self.told = str(self.model.storage)
        self.load_many = partial(load_ours, mode, given, given.rows)

    @cached_property
    def of_many(self) -> Any:
        """The same as it is loaded for many rows, which float32 stores in another way."""
        return self.load_many()

    def generate(self, prompts: Ids, new: int) -> Iterator[list[int]]:
        from llmcli.config import GREEDY
        from llmcli.gpt.generation import generate
        from llmcli.gpt.sampling import generator_for

        row: list[int] = []
        generators = [generator_for(0, place) for place in range(len(prompts))]
        model = self.model if len(prompts) == 1 else self.of_many
        steps = generate(model, prompts, GREEDY, generators, max_new_tokens=new, top_probs=None)
        for step in steps:
            row.append(step.id)
            if len(row) == len(prompts):
                yield row
                row = []

    def logits(self, ids: list[int], stepwise: bool) -> Any:
        import torch

        tensor = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            if not stepwise:
                return self.model(tensor)[0].float().cpu().numpy()
            cache = self.model.new_cache(1, len(ids))
            steps = [self.model(tensor[:, i : i + 1], cache)[0] for i in range(len(ids))]
            return torch.cat(steps).float().cpu().numpy()


# --- peers ---------------------------------------------------------------------------------------


class Transformers:
    def __init__(self, dtype: str, given: Given) -> None:
        transformers = needed("transformers")
        import torch

        torch.set_num_threads(given.threads)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(given.folder, dtype=getattr(torch, dtype)).to(given.device).eval()
        self.model.generation_config.eos_token_id = None
        self.told = f"{transformers.__version__}, {self.model.config._attn_implementation}"

    def generate(self, prompts: Ids, new: int) -> Iterator[list[int]]:
        """All at once: `streamer` tells the times, which `run` reads instead of its own clock."""
        import torch

        self.times: list[float] = []
        ids = torch.tensor(prompts, device=self.model.device)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                pad_token_id=0,
                streamer=self,
            )
        self.times = self.times[1:]  # the first is the prompt
        yield from out[:, ids.shape[1] :].T.tolist()

    def put(self, _ids: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def logits(self, ids: list[int], stepwise: bool) -> Any:
        import torch

        assert not stepwise
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().numpy()


class LlamaCpp:
    """llama.cpp through its Python binding's lower level, without its sampler: numpy's argmax."""

    def __init__(self, kind: str, given: Given) -> None:
        self.lib = needed("llama_cpp")
        needed("gguf")
        if given.device != "cpu":
            raise Absent("measured on the CPU only")
        config = json.loads((given.folder / "config.json").read_text())
        self.llama = self.lib.Llama(
            str(models.gguf_file(given.folder, given.models, kind)),
            n_ctx=config["n_positions"],
            n_batch=512,
            n_threads=given.threads,
            n_threads_batch=given.threads,
            verbose=False,
        )
        features = self.lib.llama_print_system_info().decode()
        avx512 = "AVX512 = 1" in features
        self.told = f"{self.lib.__version__}, {'with' if avx512 else 'without'} AVX-512"

    def generate(self, prompts: Ids, new: int) -> Iterator[list[int]]:
        [ids] = prompts  # no batch here
        self.llama.reset()
        for _ in range(new):
            self.llama.eval(ids)
            ids = [int(self._last().argmax())]
            yield ids

    def logits(self, ids: list[int], stepwise: bool) -> Any:
        """Token by token or not at all: without `logits_all` a pass keeps its last row only."""
        import numpy as np

        assert stepwise
        self.llama.reset()
        rows = []
        for id in ids:
            self.llama.eval([id])
            rows.append(self._last().copy())
        return np.stack(rows)

    def _last(self) -> Any:
        import numpy as np

        pointer = self.lib.llama_get_logits_ith(self.llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.llama.n_vocab(),))


class CTranslate2:
    def __init__(self, compute_type: str, given: Given) -> None:
        lib = needed("ctranslate2")
        if given.device != "cpu":
            raise Absent("measured on the CPU only")
        self.model = lib.Generator(
            str(models.ctranslate2_folder(given.folder, given.models)),
            compute_type=compute_type,
            intra_threads=given.threads,
            inter_threads=1,
        )
        self.told = f"{lib.__version__}, {self.model.compute_type}"
        tokenizer = json.loads((given.folder / "tokenizer.json").read_text())
        vocab = tokenizer["model"]["vocab"]
        vocab |= {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
        self.tokens = sorted(vocab, key=vocab.__getitem__)

    def generate(self, prompts: Ids, new: int) -> Iterator[list[int]]:
        self.times = []
        last = len(prompts) - 1

        def put(step: Any) -> bool:
            if step.batch_id == last:
                self.times.append(time.perf_counter())
            return False

        results = self.model.generate_batch(
            [[self.tokens[id] for id in ids] for ids in prompts],
            max_length=new,
            min_length=new,
            end_token=[],
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
            callback=put,
        )
        yield from (list(row) for row in zip(*(r.sequences_ids[0] for r in results), strict=True))

    def logits(self, ids: list[int], stepwise: bool) -> Any:
        import numpy as np

        assert not stepwise
        return np.array(self.model.forward_batch([[self.tokens[id] for id in ids]]))[0]


ENGINES: dict[str, Callable[[Given], Engine]] = {
    **{f"ours-{mode}": lambda given, mode=mode: Ours(mode, given) for mode in OURS},
    "transformers-float32": lambda given: Transformers("float32", given),
    "transformers-bfloat16": lambda given: Transformers("bfloat16", given),
    "llamacpp-f16": lambda given: LlamaCpp("f16", given),
    "llamacpp-q8_0": lambda given: LlamaCpp("q8_0", given),
    "llamacpp-q4_0": lambda given: LlamaCpp("q4_0", given),
    "ctranslate2-int8": lambda given: CTranslate2("int8", given),
}
BATCHES = ("ours-", "transformers-", "ctranslate2-")  # engines that take several prompts at once


def run(engine: Engine, prompts: Ids, new: int) -> tuple[list[float], Ids]:
    """Seconds from the call to each step, and the ids (step by step)."""
    started = time.perf_counter()
    times, steps = [], []
    for step in engine.generate(prompts, new):
        times.append(time.perf_counter())
        steps.append(step)
    return [at - started for at in getattr(engine, "times", times)], steps


# --- the worker ----------------------------------------------------------------------------------


def peak_mib() -> float:
    """The most memory that this process has held, mapped files that it has read included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def read_bandwidth(threads: int, device: str) -> float:
    """Bytes per second of one large read, the median of a few."""
    import torch

    torch.set_num_threads(threads)
    big = torch.ones(1 << 28, device=device)  # 1 GiB
    reads = []
    for _ in range(5):
        started = time.perf_counter()
        big.sum().item()
        reads.append(big.nbytes / (time.perf_counter() - started))
    return statistics.median(reads)


def serve(name: str, given: Given, answers: Any) -> None:
    """Load the engine `name`, say so, then do what each line of stdin asks for."""

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    if name == "bandwidth":
        answer(told="", load_s=0.0)
        for _ in sys.stdin:
            answer(bandwidth=read_bandwidth(given.threads, given.device))
        return
    libraries = {"ours": ["torch", "llmcli.gpt.weights"], "transformers": ["torch", "transformers"],
                 "llamacpp": ["llama_cpp"], "ctranslate2": ["ctranslate2"]}  # fmt: skip
    try:
        for library in libraries[name.split("-")[0]]:
            needed(library)
        imported = peak_mib()
        started = time.perf_counter()
        engine = ENGINES[name](given)
    except Absent as reason:
        answer(absent=str(reason))
        return
    answer(told=engine.told, load_s=time.perf_counter() - started, import_mib=imported)
    for line in sys.stdin:
        asked = json.loads(line)
        times, ids = run(engine, asked["prompts"], asked["new"])
        answer(times=times, ids=ids, peak_mib=peak_mib())


def main() -> None:
    asked = json.loads(sys.argv[1])
    # What an engine prints must not come between the answers: stdout is stderr from here on.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, folder, where = asked.pop("name"), Path(asked.pop("folder")), Path(asked.pop("models"))
    serve(name, Given(folder, where, **asked), answers)


if __name__ == "__main__":
    main()
