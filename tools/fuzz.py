"""Damage a model's three files at random and see that llmcli always ends with a sentence.

    python tools/fuzz.py [--count 2000] [--seed 0] [--model llmcli/models/fable]

Each round changes config.json, tokenizer.json or model.safetensors of a copy and generates two
tokens from it. A traceback, an exit code outside the table, a run of more than ten seconds, or
more than two lines on stderr is a finding; the damaged file is then kept and named.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.testing

from llmcli.cli import app

FILES = ("config.json", "tokenizer.json", "model.safetensors")
CODES = {0, 2, 3, 4, 5, 6, 7}
MAX_SECONDS = 10
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", "x", "\x1b[31m",
    "\ud800", [], [0], [[]], {}, {"a": 1}, "9" * 400,
)  # fmt: skip


def damaged(name: str, data: bytes, rng: random.Random) -> bytes:
    """`data` changed in one to three places: of its JSON, or of its bytes and its length."""
    in_json = rng.random() < 0.7
    for _ in range(rng.randint(1, 3)):
        data = _edit_json(name, data, rng) if in_json else _edit_bytes(data, rng)
    return data


def _edit_bytes(data: bytes, rng: random.Random) -> bytes:
    at = (
        rng.randrange(min(len(data), 4096) + 1)
        if rng.random() < 0.5
        else rng.randrange(len(data) + 1)
    )
    kind = rng.randrange(5)
    if kind == 0:  # flip
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 1:  # cut off
        return data[:at]
    if kind == 2:  # cut out
        return data[:at] + data[at + rng.randint(1, 64) :]
    if kind == 3:  # insert
        return data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at:]
    return data[:at] + data[at : at + 64] * rng.randint(2, 50) + data[at + 64 :]  # repeat


def _edit_json(name: str, data: bytes, rng: random.Random) -> bytes:
    """Change one value, key or list of the file's JSON; a file that has none stays."""
    head, tail = data, b""
    if name.endswith(".safetensors"):
        size = int.from_bytes(data[:8], "little")
        head, tail = data[8 : 8 + size], data[8 + size :]
    try:
        tree = json.loads(head)
    except (ValueError, RecursionError):
        return data
    places = list(_containers(tree))
    place = rng.choice(places[:50] if rng.random() < 0.5 else places) if places else None
    if place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        kind = rng.randrange(4)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[rng.choice(["x", "\x00", key + "2"])] = place[key]
        elif kind == 2:
            other = rng.choice(places)
            place[key] = json.loads(json.dumps(other)) if len(other) < 1000 else None
        else:
            place[key] = rng.choice(ODD)
    text = json.dumps(tree).encode()
    if name.endswith(".safetensors"):
        return len(text).to_bytes(8, "little") + text + tail
    return text


def _containers(tree: Any) -> Iterator[Any]:
    """Every non-empty object and list within `tree`."""
    if isinstance(tree, dict | list) and tree:
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree[:2000]:
            yield from _containers(value)


def outcome(folder: Path) -> str:
    """How generating from `folder` ended: "code N", or what is wrong with how it ended."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(MAX_SECONDS)
    try:
        arguments = ["generate", "Once", "-m", str(folder), "--max-new-tokens", "2", "--seed", "1"]
        result = typer.testing.CliRunner().invoke(app, arguments)
    except BaseException as error:  # a panic of a native library is one, and is a finding
        return f"escaped: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"traceback: {type(result.exception).__name__}: {result.exception}"
    if result.exit_code not in CODES:
        return f"unknown code {result.exit_code}"
    if len(result.stderr.splitlines()) > 2:
        return f"{len(result.stderr.splitlines())} lines on stderr"
    return f"code {result.exit_code}"


def fuzz(model: Path, count: int, seed: int, keep: Path) -> tuple[Counter[str], list[str]]:
    """How `count` rounds ended, and the findings; files that made one are copied to `keep`."""
    originals = {name: (model / name).read_bytes() for name in FILES}
    ends: Counter[str] = Counter()
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            name = FILES[number % len(FILES)]
            folder = Path(work) / "model"
            shutil.copytree(model, folder, dirs_exist_ok=True)
            (folder / name).write_bytes(damaged(name, originals[name], rng))
            end = outcome(folder)
            if not end.startswith("code "):
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{seed}-{number}-{name}"
                shutil.copy(folder / name, kept)
                findings.append(f"{kept}: {end}")
            ends[f"{name}: {end.split(':')[0]}"] += 1
    return ends, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("llmcli/models/fable"))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    given = parser.parse_args()
    ends, findings = fuzz(given.model, given.count, given.seed, given.keep)
    for end, times in sorted(ends.items()):
        print(f"{times:6}  {end}")
    for finding in findings:
        print(finding)
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
