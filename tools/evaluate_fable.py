"""Measure fable: bits per byte on held-out stories.

    python tools/evaluate_fable.py --corpus CORPUS_FOLDER [--model FOLDER]

Bits per byte compares models whatever their tokenizers: each document is scored alone, after one
end-of-text id; every further id is scored once; a document longer than the context is read in
windows that overlap by half. The sum of nats, over ln 2, over the sum of UTF-8 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from llmcli.gpt.model import GPT

SEPARATOR = "<|endoftext|>"


def documents(path: Path) -> list[str]:
    """The documents of a corpus file: text before a separator line, trailing newline stripped."""
    texts = path.read_text(encoding="utf-8").split(f"\n{SEPARATOR}\n")
    return [text.rstrip("\n") for text in texts if text.strip()]


def windows(ids: Sequence[int], n_ctx: int) -> Iterator[tuple[Sequence[int], int]]:
    """Windows of at most `n_ctx` inputs over `ids`, with how many of each window's last ids count.

    >>> [(list(w), n) for w, n in windows(range(6), 4)]
    [([0, 1, 2, 3, 4], 4), ([2, 3, 4, 5], 1)]
    """
    scored, start = 1, 0
    while scored < len(ids):
        window = ids[start : start + n_ctx + 1]
        end = start + len(window)
        yield window, end - scored
        scored, start = end, start + n_ctx // 2


@torch.inference_mode()
def bits_per_byte(
    model: GPT, encode: Callable[[str], list[int]], eot_id: int, texts: Sequence[str]
) -> float:
    """Mean bits that `model` needs for each UTF-8 byte of `texts`."""
    nats = 0.0
    for text in texts:
        for window, scored in windows([eot_id, *encode(text)], model.config.n_ctx):
            ids = torch.tensor([window])  # (1, T + 1)
            logits = model(ids[:, :-1])[0, -scored:]  # (scored, V)
            nats += F.cross_entropy(logits.float(), ids[0, -scored:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)
