"""llmcli tokenize beside tiktoken and tokenizers: alternating, medians, ratios within one run.

Ours goes from files to a file (sha256 of the input included) or to a count; theirs from texts in
memory to lists of ids, in texts of 1 MB, which suits them better than larger ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MB = 1_000_000


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model's folder")
    parser.add_argument(
        "--reference", type=Path, help="a folder with tokenizer.json, for tokenizers"
    )
    parser.add_argument("--mb", type=int, default=100, help="size of the text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=15, help="pairs of program starts")


def run(given: argparse.Namespace) -> None:
    os.environ["RAYON_NUM_THREADS"] = "2"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.txt"
        path.write_bytes(corpus(given.corpus, given.mb * MB))
        cases = {**ours(path, given.tokenizer), **theirs(path, given)}
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(given.rounds):
            for name, (cores, share, work) in cases.items():
                times[name].append(timed(cores, work) / share)
    report({name: statistics.median(each) for name, each in times.items()}, given.mb)
    starts(given.starts)


def corpus(folder: Path, size: int) -> bytes:
    """The folder's texts, again and again, as `size` bytes of whole characters."""
    once = b"".join(path.read_bytes() for path in sorted(folder.glob("*.txt")))
    return (once * (size // len(once) + 1))[:size].decode("utf-8", "ignore").encode()


Case = tuple[int, float, Callable[[], object]]  # cores, share of the corpus, work


def ours(path: Path, folder: Path) -> dict[str, Case]:
    from typer.testing import CliRunner

    from llmcli.cli import app

    def command(*arguments: str) -> Callable[[], object]:
        def work() -> None:
            given = ["tokenize", "--files", str(path), "-m", str(folder), "-q", *arguments]
            result = CliRunner().invoke(app, given)
            assert result.exit_code == 0, result.output

        return work

    out = str(path.with_suffix(".bin"))
    return {
        "--out, 1 core": (1, 1.0, command("--out", out, "--workers", "1")),
        "--count, 1 core": (1, 1.0, command("--count", "--workers", "1")),
        "--out, 2 threads": (2, 1.0, command("--out", out, "--workers", "2")),
        "--count, 2 threads": (2, 1.0, command("--count", "--workers", "2")),
    }


def theirs(path: Path, given: argparse.Namespace) -> dict[str, Case]:
    from llmcli.tokenizer import Tokenizer

    text = path.read_text("utf-8")
    texts = [text[start : start + MB] for start in range(0, len(text), MB)]
    encoding = Tokenizer.from_folder(given.tokenizer)._encoding
    cases: dict[str, Case] = {
        "encode_ordinary": (1, 1.0, lambda: [encoding.encode_ordinary(each) for each in texts]),
        "encode_ordinary_batch": (
            2, 1.0, lambda: encoding.encode_ordinary_batch(texts, num_threads=2)
        ),
    }  # fmt: skip
    if given.reference:
        from tokenizers import Tokenizer as Reference

        reference = Reference.from_file(str(given.reference / "tokenizer.json"))
        few = texts[:: max(len(texts) // 10, 1)]  # it is slow: about ten of them
        share = sum(len(each.encode()) for each in few) / len(text.encode())
        small = [each[start : start + 10_000] for each in few for start in range(0, MB, 10_000)]
        cases["encode_batch_fast"] = (2, share, lambda: reference.encode_batch_fast(small))
    return cases


def timed(cores: int, work: Callable[[], object]) -> float:
    """Seconds that `work` takes on that many cores."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:cores])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            started = time.perf_counter()
            result = work()
            took = time.perf_counter() - started
            del result
            return took
    finally:
        os.sched_setaffinity(0, all_cores)


def report(times: dict[str, float], mb: int) -> None:
    print(f"{'':24} {'s':>7} {'MB/s':>7}")
    for name, took in times.items():
        print(f"{name:24} {took:7.2f} {mb / took:7.1f}")
    for ours, other, least in [
        ("--out, 1 core", "encode_ordinary", 1.7),
        ("--out, 2 threads", "encode_ordinary_batch", 1.2),
        ("--count, 1 core", "--out, 1 core", 1.0),
        ("--out, 2 threads", "encode_batch_fast", 4.0),
    ]:
        if other in times:
            ratio = times[other] / times[ours]
            print(f"{ours} is {ratio:.2f}x {other} (at least {least} is wanted)")


def starts(pairs: int) -> None:
    """What `llmcli tokenize hi` takes more than `python -c pass`, in pairs."""
    more = []
    for _ in range(pairs):
        took = []
        for arguments in (["-c", "pass"], ["-m", "llmcli", "tokenize", "hi"]):
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            took.append(time.perf_counter() - started)
        more.append(1000 * (took[1] - took[0]))
    if more:
        print(
            f"llmcli tokenize hi takes {statistics.median(more):.0f} ms more than python -c pass "
            f"(least {min(more):.0f}; at most 120 is wanted)"
        )
