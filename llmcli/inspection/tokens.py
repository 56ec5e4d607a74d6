"""The prompt's tokens, and what the model thought of each before it saw it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.inspection.ask import Ask
from llmcli.inspection.lens import CHUNK
from llmcli.inspection.model import text_flops
from llmcli.inspection.run import Run, entropy_bits, rank_of
from llmcli.inspection.values import LONG_FLOPS, Row, Token, View, gflop
from llmcli.units import perplexity


@dataclass(frozen=True, slots=True)
class TokenRow(Row):
    """One position; the model's view is of what it expected here, from the tokens before."""

    key: ClassVar = ("position", "token")
    about: ClassVar = {"alternative": ("alternative_prob",)}

    position: int
    token: Token
    bytes: str  # in hex
    prob: float | None  # None at the first position: nothing comes before it
    surprisal_bits: float | None
    rank: int | None  # 0: the model's own favourite
    entropy_bits: float | None
    alternative: Token | None  # the most probable other token
    alternative_prob: float | None


@dataclass(frozen=True, slots=True)
class Tokens(View):
    """The tokens of a text and how surprising each is."""

    name: ClassVar[str] = "tokens"
    compared: ClassVar = ("perplexity", "bits_per_token", "bits_per_byte")

    n_tokens: int
    n_bytes: int  # of the text: what stands before it has none
    n_scored: int
    perplexity: float | None  # None where nothing could be scored
    bits_per_token: float | None
    bits_per_byte: float | None  # of the tokens scored
    n_windows: int  # 1, unless the text is longer than the context
    stride: int  # tokens from one window to the next; 0 with one window
    position: int
    rows: tuple[TokenRow, ...]
    notes: tuple[str, ...]


def view(run: Run, ask: Ask) -> Tokens:
    """Surprisal, rank and entropy per position, and the perplexity of the whole text."""
    first = TokenRow(0, run.tokens[0], run.tokens[0].text.hex(), *[None] * 6)
    rows = [first, *_scored(run)]
    bits = [row.surprisal_bits for row in rows if row.surprisal_bits is not None]
    scored_bytes = sum(len(row.token.text) for row in rows[1:])
    mean = sum(bits) / len(bits) if bits else None
    n_windows = len(list(windows(len(run.ids), run.config.n_ctx)))
    return Tokens(
        n_tokens=len(rows),
        n_bytes=sum(len(row.token.text) for row in rows[run.n_prefix :]),
        n_scored=len(bits),
        perplexity=None if mean is None else perplexity(mean * math.log(2)),
        bits_per_token=mean,
        bits_per_byte=sum(bits) / scored_bytes if scored_bytes else None,
        n_windows=n_windows,
        stride=_stride(run.config.n_ctx) if n_windows > 1 else 0,
        position=min(ask.position, len(rows) - 1),
        rows=tuple(rows),
        notes=_notes(n_windows, run.config.n_ctx),
    )


def cost(run: Run, ask: Ask) -> str | None:
    """What the view is about to compute, in words, where that takes a while."""
    lengths = [end - start for start, _, end in windows(len(run.ids), run.config.n_ctx)]
    heads = 2 * run.config.n_embd * run.config.vocab_size * len(run.ids)
    flops = heads + sum(text_flops(run.config, length) for length in lengths)
    said = f"{len(run.ids)} tokens in {len(lengths)} windows: {gflop(flops)}"
    return said if flops > LONG_FLOPS else None


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`logits` (T, V): row i is what the model expects after position i."""
    parts = [
        run.on(run.ids[start:end]).logits(range(new - start, end - start))
        for start, new, end in windows(len(run.ids), run.config.n_ctx)
    ]
    return {"logits": torch.cat(parts)}


def windows(length: int, n_ctx: int) -> Iterator[tuple[int, int, int]]:
    """(start, first new place, end) of each window over `length` tokens.

    Each new token but the first window's has at least half a context before it.
    """
    start, done = 0, 0
    while done < length:
        end = min(start + n_ctx, length)
        yield start, done, end
        done, start = end, start + _stride(n_ctx)


def _stride(n_ctx: int) -> int:
    return max(1, n_ctx // 2)


def _scored(run: Run) -> Iterator[TokenRow]:
    """A row for each position but the first, from the logits at the position before it."""
    for start, done, end in windows(len(run.ids), run.config.n_ctx):
        part = run.on(run.ids[start:end])
        begin = max(done, start + 1)  # the first position scored in this window
        for low in range(begin, end, CHUNK):
            high = min(low + CHUNK, end)
            logits = part.logits(range(low - 1 - start, high - 1 - start))
            yield from _rows(run, logits, low)


@torch.inference_mode()
def _rows(run: Run, logits: Tensor, low: int) -> Iterator[TokenRow]:
    """The rows of positions `low`, ... whose tokens `logits` (n, V) foretell."""
    n = len(logits)
    ids = torch.tensor(list(run.ids[low : low + n]), device=logits.device)
    logprobs = logits.log_softmax(dim=-1)
    own = logprobs.gather(-1, ids[:, None])[:, 0].tolist()
    ranks, entropies = rank_of(logits, ids).tolist(), entropy_bits(logprobs.exp()).tolist()
    others = logprobs.scatter(-1, ids[:, None], -math.inf).max(dim=-1)
    for i in range(n):
        token = run.tokens[low + i]
        yield TokenRow(
            position=low + i,
            token=token,
            bytes=token.text.hex(),
            prob=math.exp(own[i]),
            surprisal_bits=-own[i] / math.log(2),
            rank=ranks[i],
            entropy_bits=entropies[i],
            alternative=run.token(int(others.indices[i])),
            alternative_prob=math.exp(float(others.values[i])),
        )


def _notes(n_windows: int, n_ctx: int) -> tuple[str, ...]:
    notes = [
        "measured: each token is judged from the tokens before it; the first has none. Bits are "
        "its surprisal, entropy is the model's doubt before it, in bits too."
    ]
    if n_windows > 1:
        notes.append(
            f"approximate: the text is longer than the context of {n_ctx}: tokens after the first "
            f"{n_ctx} are judged from at least the {_stride(n_ctx)} before them, not from all."
        )
    return tuple(notes)
