"""What fable is trained on: stories with new names, cut into windows, in batches of like length."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from evaluate_fable import documents
from tokenizers import Tokenizer

EOT_ID = 0
N_CTX = 512  # tokens of a window, the positions that fable has
SWAP_SHARE = 0.9  # of the stories, whose children are named anew in each epoch
PD_SHARE = 0.05  # of the public-domain books seen in an epoch: harder English, for its words
TOKENS_PER_BATCH = 4096  # padded; what fits the processor's caches

GIRLS = """Lily Mia Anna Sara Lucy Sue Amy Sally Jane Emma Ella Lisa Molly Daisy Mary Sarah Lila
Kate Emily Rosie Zoe Lola Lulu Bella Ellie Annie Jenny Susie Katie Nina Ruby Lena Maya Mandy Betty
Tina Abby Jill""".split()
BOYS = """Tom Tim Ben Max Timmy Sam Jack Tommy Bob John Billy Leo Joe Mike Bobby Jim Jimmy Fred Dan
Peter Johnny Jake Toby Mark Adam Joey Danny Charlie Nick Luke Johny Oliver Henry Alex David Sammy
Matt Andy Paul George""".split()
NAME = re.compile(r"\b(" + "|".join(GIRLS + BOYS) + r")\b")


def swap_names(text: str, frequency: Counter[str], rng: random.Random) -> str:
    """`text` with each child's name replaced by another throughout: the same story, told anew.

    New names are drawn as often as the corpus uses them, so that the mixture stays what it was.
    """
    found = sorted(set(NAME.findall(text)))
    new: dict[str, str] = {}
    for name in found:
        pool = [n for n in (GIRLS if name in GIRLS else BOYS) if n not in new.values()]
        new[name] = rng.choices(pool, [frequency[n] + 1 for n in pool])[0]
    return NAME.sub(lambda match: new[match[0]], text)


class Corpus:
    """The training texts; `epoch(n)` is one pass over them, always the same for the same seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.stories = documents(folder / "tinystories.train.txt")
        self.ccby = documents(folder / "ccby.train.txt")
        self.books = documents(folder / "pd_life70.train.txt")
        self.valid = documents(folder / "tinystories.valid.txt")
        self.frequency = Counter(name for text in self.stories for name in NAME.findall(text))
        self.seed = seed

    def epoch(self, number: int, tokenizer: Tokenizer) -> list[list[list[int]]]:
        """Batches of windows of ids; windows of one batch are of similar length."""
        rng = random.Random(f"{self.seed}/{number}")
        stories = [
            swap_names(text, self.frequency, rng) if rng.random() < SWAP_SHARE else text
            for text in self.stories
        ]
        n_books = int(PD_SHARE * len(self.books))
        texts = stories + self.ccby + rng.sample(self.books, n_books)
        found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        windows = [w for encoding in found for w in cut([EOT_ID, *encoding.ids, EOT_ID])]
        return batches(windows, rng)


def cut(ids: list[int]) -> Iterator[list[int]]:
    """`ids` in windows of at most n_ctx inputs, each id a target once; a short rest is dropped."""
    n_ctx = N_CTX
    for start in range(0, len(ids) - 1, n_ctx):
        window = ids[start : start + n_ctx + 1]
        if start == 0 or len(window) > 32:
            yield window


def batches(windows: list[list[int]], rng: random.Random) -> list[list[list[int]]]:
    """Windows sorted by length, with a little noise, then cut into batches in random order."""
    windows = sorted(windows, key=lambda window: len(window) * rng.uniform(0.95, 1.05))
    done: list[list[list[int]]] = []
    batch: list[list[int]] = []
    for window in windows:
        longest = max(len(w) for w in [*batch, window])
        if batch and longest * (len(batch) + 1) > TOKENS_PER_BATCH:
            done.append(batch)
            batch = []
        batch.append(window)
    done.append(batch)
    rng.shuffle(done)
    return done
