"""The story of the next token, on one screen: a short form of the views that go deeper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.inspection.ask import Ask
from llmcli.inspection.attention import silenced
from llmcli.inspection.lens import Best, Final, lens_logits, stream_points
from llmcli.inspection.run import Run, entropy_bits
from llmcli.inspection.values import Row, Token, View
from llmcli.units import window

LAYERS = 8  # how many layers the short lens shows at most
PLACES = 24  # how many tokens of the prompt


@dataclass(frozen=True, slots=True)
class PromptToken(Row):
    key: ClassVar = ("position", "token")

    position: int
    token: Token


@dataclass(frozen=True, slots=True)
class Guess(Row):
    """The best guess after a layer."""

    key: ClassVar = ("after",)
    about: ClassVar = {"top": ("top_prob",)}

    after: str
    top: Token
    top_prob: float
    kl_bits: float


@dataclass(frozen=True, slots=True)
class Source(Row):
    """A place read from: `weight` is the mean over all heads; the keenest head beside it."""

    key: ClassVar = ("position", "token")
    about: ClassVar = {"layer": ("head_weight",), "head": ("head_weight",)}

    position: int
    token: Token
    weight: float
    layer: int
    head: int
    head_weight: float


@dataclass(frozen=True, slots=True)
class Candidate(Row):
    key: ClassVar = ("token",)

    rank: int
    token: Token
    prob: float
    logit: float


@dataclass(frozen=True, slots=True)
class Next(View):
    """Tokens, a short lens, the most attended sources, the most probable next tokens."""

    name: ClassVar[str] = "next"
    compared: ClassVar = ("entropy_bits",)
    cut: ClassVar = ("sources", "candidates")

    n_tokens: int
    n_layer: int
    n_head: int
    position: int
    token: Token  # at the position: the next one follows it
    entropy_bits: float
    prompt: tuple[PromptToken, ...]
    lens: tuple[Guess, ...]
    sources: tuple[Source, ...]
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]


def view(run: Run, ask: Ask) -> Next:
    """What comes after `position`, and how the model got there."""
    T, p = len(run.ids), ask.position
    seen = run.record(*attention_points(run), "0.resid_pre", "*.resid_post")
    logits = run.unembed(seen[run.end][p : p + 1], p)  # (1, V)
    top = logits[0].sort(descending=True, stable=True)
    probs = logits[0].softmax(dim=-1)
    rows = ask.rows or 5
    wanted = {key[0].id for key in ask.also if len(key) == 1}  # tokens, not places
    return Next(
        n_tokens=T,
        n_layer=run.config.n_layer,
        n_head=run.config.n_head,
        position=p,
        token=run.tokens[p],
        entropy_bits=float(entropy_bits(probs)),
        prompt=tuple(PromptToken(i, run.tokens[i]) for i in window(T, p, PLACES)),
        lens=tuple(_guesses(run, seen, logits, p)),
        sources=tuple(
            source
            for i, source in enumerate(sources(run, seen, p))
            if i < rows or source.its in ask.also
        ),
        candidates=tuple(
            Candidate(rank, run.token(id), float(probs[id]), float(logits[0, id]))
            for rank, id in enumerate(top.indices.tolist())
            if rank < rows or id in wanted
        ),
        notes=(
            "measured. Attention is where heads read, not proof of cause; many rest on the first "
            "token when they find nothing. The lens is untuned: early layers are approximate.",
            *silenced(run),
        ),
    )


@torch.inference_mode()
def _guesses(run: Run, seen: dict[str, Tensor], logits: Tensor, position: int) -> list[Guess]:
    final = Final.of(logits)
    points = stream_points(spread(run.config.n_layer, LAYERS))
    *_, last = points
    rows = []
    for after, point in points.items():
        x = seen[point][position : position + 1]  # (1, C)
        here = logits if after == last else lens_logits(run.model, x)
        best = Best.of(here, final)
        token = run.token(int(best.ids[0]))
        rows.append(Guess(after, token, float(best.probs[0]), float(best.kl_bits[0])))
    return rows


def spread(n: int, most: int) -> list[int]:
    """At most `most` of 0 .. n-1, evenly spaced, the last always among them."""
    return sorted({n - 1 - round(i * n / min(n, most)) for i in range(min(n, most))})


def attention_points(run: Run) -> tuple[str, ...]:
    """What a row of attention is made from: q and k, so that no pattern (H, T, T) is kept.

    A run that replaces scores or patterns can only be seen in the patterns themselves.
    """
    replaced = any(name.endswith((".scores", ".pattern")) for name in run.patch)
    return ("*.pattern",) if replaced else ("*.q", "*.k")


@torch.inference_mode()
def attention_row(run: Run, seen: dict[str, Tensor], layer: int, position: int) -> Tensor:
    """Where the heads of `layer` read from at `position`: (H, position + 1)."""
    if (pattern := seen.get(f"{layer}.pattern")) is not None:
        return pattern[:, position, : position + 1].float()
    q = seen[f"{layer}.q"][:, position, None].float()  # (H, 1, D)
    k = seen[f"{layer}.k"][:, : position + 1].float()  # (H, S, D)
    scores = (q @ k.transpose(-2, -1))[:, 0] * run.config.attn_scale(layer)
    return scores.softmax(dim=-1)


@torch.inference_mode()
def sources(run: Run, seen: dict[str, Tensor], position: int) -> list[Source]:
    """The places that `position` reads from, the most attended (over all heads) first."""
    H = run.config.n_head
    rows = [attention_row(run, seen, layer, position) for layer in range(run.config.n_layer)]
    weights = torch.cat(rows)  # (L * H, S)
    mean, keenest = weights.mean(dim=0), weights.max(dim=0)
    order = mean.sort(descending=True, stable=True).indices.tolist()
    return [
        Source(
            position=place,
            token=run.tokens[place],
            weight=float(mean[place]),
            layer=int(keenest.indices[place]) // H,
            head=int(keenest.indices[place]) % H,
            head_weight=float(keenest.values[place]),
        )
        for place in order
    ]
