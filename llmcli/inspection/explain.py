"""The guided walk through the whole computation: the facts of each page, its words aside.

It explains the model as it is: changes to the run are left out. The words are in
`render.views.explain`; what a page says in numbers is in its facts, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run
from llmcli.inspection.values import View
from llmcli.inspection.walk import after, heads, spaces, stream, vocab
from llmcli.inspection.walk.run import Walk
from llmcli.inspection.walk.topics import TOPICS

Facts = (
    vocab.Prediction | vocab.Tokens | vocab.Logits | vocab.VocabSpace | vocab.Softmax
    | spaces.Vectors | spaces.Lookup | spaces.Projection
    | stream.Embedding | stream.Norm
    | heads.Qkv | heads.Scores | heads.Mask | heads.Context | heads.Heads
    | stream.Shortcut | stream.FeedForward | stream.Blocks | stream.Unembed
    | after.Choosing | after.Repeating | after.Cache | after.Chat | after.Parameters
    | after.Changing
)  # fmt: skip
PAGES: dict[str, Callable[[Walk], Facts]] = {
    "prediction": vocab.prediction,
    "tokens": vocab.tokens,
    "logits": vocab.logits,
    "vocab_space": vocab.vocab_space,
    "softmax": vocab.softmax,
    "vectors": spaces.vectors,
    "lookup": spaces.lookup,
    "projection": spaces.projection,
    "embedding": stream.embedding,
    "norm": stream.norm,
    "qkv": heads.qkv,
    "scores": heads.scores,
    "mask": heads.mask,
    "context": heads.context,
    "heads": heads.heads,
    "shortcut": stream.shortcut,
    "feed_forward": stream.feed_forward,
    "blocks": stream.blocks,
    "unembed": stream.unembed,
    "choosing": after.choosing,
    "repeating": after.repeating,
    "cache": after.cache,
    "chat": after.chat,
    "parameters": after.parameters,
    "changing": after.changing,
}


UNCHANGED = "The walk is through the model as it is: the run's changes are left out."


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its number, from 1, what it is about, and what is true of this model and prompt."""

    page: int
    topic: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Explain(View):
    """The pages asked for, of all that there are."""

    name: ClassVar[str] = "explain"

    layer: int | None  # --layer and --head, where they choose the head that is followed
    head: int | None
    n_pages: int
    pages: tuple[Page, ...]
    notes: tuple[str, ...]


@torch.inference_mode()
def view(run: Run, ask: Ask) -> Explain:
    """Page `ask.page` of the walk along `run`, or all pages."""
    walk = Walk(replace(run, patch={}), ask.layer, ask.head)
    wanted = range(1, len(TOPICS) + 1) if ask.page is None else (ask.page,)
    return Explain(
        layer=ask.layer,
        head=ask.head,
        n_pages=len(TOPICS),
        pages=tuple(Page(page, TOPICS[page - 1], PAGES[TOPICS[page - 1]](walk)) for page in wanted),
        notes=(UNCHANGED,) if run.patch else (),
    )
