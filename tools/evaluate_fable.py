"""Measure fable: bits per byte on held-out stories, and the stories that it writes itself.

    python tools/evaluate_fable.py --corpus CORPUS_FOLDER [--model FOLDER] [--read 20]
    python tools/evaluate_fable.py --corpus CORPUS_FOLDER --sampling 0.8,0,0.9 --sampling 0.6,0,1

Bits per byte compares models whatever their tokenizers: each document is scored alone, after one
end-of-text id; every further id is scored once; a document longer than the context is read in
windows that overlap by half. The sum of nats, over ln 2, over the sum of UTF-8 bytes.

The stories continue 50 prompts, with fixed seeds, at the model's default settings or at each
`--sampling TEMPERATURE,TOP_K,TOP_P`. Their measures: how many reach end-of-text within 400 tokens,
distinct-4 (different sequences of four words over all of them), the share of words that occur in
the training text, and the longest piece of each that stands in the training text letter by letter.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from llmcli.config import Sampling, read_config, read_sampling
from llmcli.gpt.generation import generate
from llmcli.gpt.model import GPT
from llmcli.gpt.sampling import generator_for
from llmcli.gpt.weights import load_model
from llmcli.tokenizer import Tokenizer

SEPARATOR = "<|endoftext|>"
TRAINED_ON = ("tinystories.train.txt", "ccby.train.txt", "pd_life70.train.txt")
HEROES = ("Lily", "Tom", "Mia", "Ben", "a little dog", "an old bear", "Sue", "Max", "a blue bird",
          "a small car")  # fmt: skip
OPENINGS = (
    "Once upon a time, there was {} who",
    "One day, {} went to the park.",
    "It was raining, and {} was sad.",
    "There was a big box in the garden. When {} looked inside,",
    '"Can you help me?" asked {}.',
)
PROMPTS = [opening.format(hero) for hero in HEROES for opening in OPENINGS]


def documents(path: Path) -> list[str]:
    """The documents of a corpus file: text before a separator line, trailing newline stripped."""
    texts = path.read_text(encoding="utf-8").split(f"\n{SEPARATOR}\n")
    return [text.rstrip("\n") for text in texts if text.strip()]


# --- bits per byte -------------------------------------------------------------------------------


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


# --- stories -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """A prompt, what the model made of it, and whether it came to its end."""

    prompt: str
    text: str
    ended: bool


def write_stories(
    model: GPT, tokenizer: Tokenizer, sampling: Sampling, max_new_tokens: int = 400
) -> list[Story]:
    """One story for each of PROMPTS, drawn with its place in the list as seed."""
    prompts = [[*tokenizer.prefix_ids, *tokenizer.encode(prompt)] for prompt in PROMPTS]
    ids: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    generators = [generator_for(seed, 0, 0) for seed in range(len(prompts))]
    for step in generate(
        model, prompts, sampling, generators, max_new_tokens=max_new_tokens,
        stop_ids=model.config.eos_ids, top_probs=None,
    ):  # fmt: skip
        if step.finish_reason == "stop":
            ended[step.row] = True
        else:
            ids[step.row].append(step.id)
    return [
        Story(prompt, tokenizer.decode(ids[row]), ended[row]) for row, prompt in enumerate(PROMPTS)
    ]


def distinct_4(texts: Sequence[str]) -> float:
    """Different sequences of four words over all of them."""
    fours = []
    for text in texts:
        words = text.split()
        fours += list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return len(set(fours)) / max(1, len(fours))


def words(text: str) -> list[str]:
    """The words of `text` in lower case."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


class Recitation:
    """Finds how much of a text stands in the training text, letter by letter."""

    STEP = 20

    def __init__(self, corpus: str) -> None:
        self.corpus = corpus
        self.data = np.frombuffer(corpus.encode("latin-1", "replace"), dtype=np.uint8)

    def longest(self, texts: Sequence[str]) -> list[int]:
        """For each text the length of the longest piece of it that the corpus holds."""
        found = [0] * len(texts)
        places = [0] * len(texts)
        going = set(range(len(texts)))
        for length in range(self.STEP, 2000, self.STEP):
            hashes = np.sort(_window_hashes(self.data, length))
            for row in sorted(going):
                data = np.frombuffer(texts[row].encode("latin-1", "replace"), dtype=np.uint8)
                place = _first_in(_window_hashes(data, length), hashes)
                if place is None:
                    going.discard(row)
                else:
                    found[row], places[row] = length, place
            if not going:
                break
        return [
            self._extended(text, place, length)
            for text, place, length in zip(texts, places, found, strict=True)
        ]

    def _extended(self, text: str, place: int, length: int) -> int:
        """`length` made exact, up to the next step, around the place where it was found."""
        while place > 0 and text[place - 1 : place + length] in self.corpus:
            place, length = place - 1, length + 1
        while place + length < len(text) and text[place : place + length + 1] in self.corpus:
            length += 1
        return length


def _window_hashes(data: np.ndarray, length: int) -> np.ndarray:
    """A 64-bit polynomial hash of each window of `length` bytes, modulo 2^64."""
    if len(data) < length:
        return np.empty(0, dtype=np.uint64)
    base = np.uint64(6364136223846793005)
    inverse = np.uint64(pow(6364136223846793005, -1, 2**64))
    powers = np.cumprod(np.full(len(data), base, dtype=np.uint64))
    sums = np.concatenate([[np.uint64(0)], np.cumsum((data.astype(np.uint64) + 1) * powers)])
    back = np.cumprod(np.full(len(data) - length + 1, inverse, dtype=np.uint64))
    return (sums[length:] - sums[:-length]) * back


def _first_in(wanted: np.ndarray, ordered: np.ndarray) -> int | None:
    """Where the first of `wanted` that occurs in `ordered` stands."""
    if not len(wanted) or not len(ordered):
        return None
    places = np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)
    hits = np.flatnonzero(ordered[places] == wanted)
    return int(hits[0]) if len(hits) else None


def report(stories: Sequence[Story], corpus: str, recitation: Recitation) -> str:
    """The measures of `stories`, one a line."""
    texts = [story.prompt + story.text for story in stories]
    known = set(words(corpus))
    used = [word for text in texts for word in words(text)]
    longest = sorted(recitation.longest([story.text for story in stories]))
    quartiles = [longest[round(q * (len(longest) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
    return "\n".join([
        f"ended within 400 tokens  {sum(s.ended for s in stories) / len(stories):.0%}",
        f"words a story, median    {statistics.median(len(text.split()) for text in texts):.0f}",
        f"distinct-4               {distinct_4(texts):.3f}",
        f"words known from training {sum(word in known for word in used) / len(used):.2%}",
        f"longest recited piece    {quartiles} letters (min, quartiles, max)",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("llmcli/models/fable"))
    parser.add_argument("--sampling", action="append", metavar="TEMPERATURE,TOP_K,TOP_P")
    parser.add_argument("--read", type=int, default=0, help="print so many of the stories")
    given = parser.parse_args()
    model = load_model(given.model, read_config(given.model))
    tokenizer = Tokenizer.from_folder(given.model)
    assert tokenizer.eot_id is not None
    if not given.sampling:
        valid = documents(given.corpus / "tinystories.valid.txt")
        told = bits_per_byte(model, tokenizer.encode, tokenizer.eot_id, valid)
        print(f"bits per byte            {told:.4f} on {len(valid)} held-out stories")
    corpus = "\n".join((given.corpus / name).read_text() for name in TRAINED_ON)
    recitation = Recitation(corpus)
    for text in given.sampling or [""]:
        sampling = read_sampling(given.model)
        if text:
            temperature, top_k, top_p = text.split(",")
            sampling = Sampling(
                temperature=float(temperature), top_k=int(top_k), top_p=float(top_p)
            )
        stories = write_stories(model, tokenizer, sampling)
        print(f"temperature {sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p}")
        print(report(stories, corpus, recitation))
        for number, story in enumerate(stories[: given.read]):
            print(f"\n--- {number}: {story.prompt} ...{'' if story.ended else ' (not ended)'}")
            print(story.prompt + story.text)


if __name__ == "__main__":
    main()
