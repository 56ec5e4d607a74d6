"""Pages 1 to 5: the question, tokens, logits, vocab space, softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.inspection.values import Token
from llmcli.inspection.walk.run import Walk, ends, numbers

EXAMPLES = ((1.0, 2.0, 3.0), (-9.0, -8.0, -7.0))  # softmax makes the same of both


@dataclass(frozen=True, slots=True)
class Guess:
    token: Token
    prob: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model answers to the prompt."""

    vocab_size: int
    n_tokens: int
    guesses: tuple[Guess, ...]
    rest: float  # the probability of all others


@dataclass(frozen=True, slots=True)
class Piece:
    position: int
    token: Token
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """The prompt as the tokenizer cuts it."""

    vocab_size: int
    n_tokens: int
    n_prefix: int  # tokens that the tokenizer puts before every text
    n_bytes: int  # of the text
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Expectation:
    """The likeliest token after a position, and the one that stands there."""

    position: int
    token: Token
    best: Token
    best_logit: float
    came: Token | None  # None at the end of the prompt
    came_logit: float | None


@dataclass(frozen=True, slots=True)
class Logits:
    """The matrix of logits (T, V), some of its rows."""

    n_tokens: int
    vocab_size: int
    n_logits: int
    rows: tuple[Expectation, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    token: Token
    logit: float


@dataclass(frozen=True, slots=True)
class VocabSpace:
    """The last position's logits as a point with a coordinate for every token."""

    vocab_size: int
    n_embd: int
    position: int
    token: Token
    first: tuple[Axis, ...]
    highest: Axis
    lowest: Axis
    mean: float


@dataclass(frozen=True, slots=True)
class Example:
    """Softmax of three numbers, in its two steps."""

    logits: tuple[float, ...]
    exps: tuple[float, ...]
    total: float
    probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Share:
    token: Token
    logit: float
    below_best: float  # the best logit minus this one
    exp: float  # e to the power of minus that
    prob: float


@dataclass(frozen=True, slots=True)
class Softmax:
    """Probabilities from logits: of small examples and of the prompt."""

    e: float  # what one more in a logit multiplies a probability by
    examples: tuple[Example, ...]
    shares: tuple[Share, ...]
    total: float  # of the exps of all tokens


def prediction(walk: Walk) -> Prediction:
    probs = walk.logits.softmax(dim=-1)
    shown = walk.best[:5]
    return Prediction(
        vocab_size=walk.config.vocab_size,
        n_tokens=len(walk.run.ids),
        guesses=tuple(Guess(walk.run.token(id), float(probs[id])) for id in shown),
        rest=float(probs[walk.best[5:]].sum()),
    )


def tokens(walk: Walk) -> Tokens:
    run = walk.run
    sizes = [0 if i < run.n_prefix else len(token.text) for i, token in enumerate(run.tokens)]
    return Tokens(
        vocab_size=walk.config.vocab_size,
        n_tokens=len(run.ids),
        n_prefix=run.n_prefix,
        n_bytes=sum(sizes),
        pieces=tuple(Piece(i, run.tokens[i], sizes[i]) for i in ends(len(run.ids), 8)),
    )


def logits(walk: Walk) -> Logits:
    shown = ends(len(walk.run.ids), 6)
    return Logits(
        n_tokens=len(walk.run.ids),
        vocab_size=walk.config.vocab_size,
        n_logits=len(walk.run.ids) * walk.config.vocab_size,
        rows=tuple(_expectation(walk, position) for position in shown),
    )


def _expectation(walk: Walk, position: int) -> Expectation:
    run = walk.run
    here = run.unembed(walk.final[position : position + 1], position)[0]  # (V,)
    best = int(here.argmax())
    came = run.tokens[position + 1] if position < walk.last else None
    return Expectation(
        position=position,
        token=run.tokens[position],
        best=run.token(best),
        best_logit=float(here[best]),
        came=came,
        came_logit=None if came is None else float(here[came.id]),
    )


def vocab_space(walk: Walk) -> VocabSpace:
    def axis(id: int) -> Axis:
        return Axis(walk.run.token(id), float(walk.logits[id]))

    return VocabSpace(
        vocab_size=walk.config.vocab_size,
        n_embd=walk.config.n_embd,
        position=walk.last,
        token=walk.token,
        first=tuple(axis(id) for id in range(min(3, walk.config.vocab_size))),
        highest=axis(walk.best[0]),
        lowest=axis(walk.best[-1]),
        mean=float(walk.logits.mean()),
    )


def softmax(walk: Walk) -> Softmax:
    """exp(x_i) / sum of exp(x_j): the same for all logits less the largest, which computers use."""
    below = walk.logits[walk.best[0]] - walk.logits  # (V,)
    exps = (-below).exp()
    total = float(exps.sum())
    return Softmax(
        e=math.e,
        examples=tuple(_example(torch.tensor(x, dtype=torch.float64)) for x in EXAMPLES),
        shares=tuple(
            Share(walk.run.token(id), float(walk.logits[id]), float(below[id]), float(exps[id]),
                  float(exps[id]) / total)
            for id in walk.best[:4]
        ),
        total=total,
    )  # fmt: skip


def _example(x: Tensor) -> Example:
    exps = x.exp()
    return Example(tuple(x.tolist()), tuple(exps.tolist()), float(exps.sum()),
                   numbers(exps / exps.sum()))  # fmt: skip
