"""Why this token: a short report of where it stands, when it rose, and what is for and against it.

What other views tell at length, for one token: the lens' ranks, the attribution's largest parts.
And an experiment of its own, the prompt read again without one of its tokens ("Understanding Neural
Networks through Representation Erasure", arXiv:1612.08220).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.inspection import attribution, lens, next
from llmcli.inspection.ask import Ask
from llmcli.inspection.model import text_flops
from llmcli.inspection.run import Run, batched, rank_in, rank_of
from llmcli.inspection.values import Row, Token, View, gflop

TOP_K = 10
CANDIDATES = 8  # tokens left out in turn, where nobody says
PARTS = 4  # on each side
MOVING = re.compile(r"L\d+\.(H\d+|attn|mlp)$")  # parts that compute, unlike embeddings and biases


@dataclass(frozen=True, slots=True)
class Stage(Row):
    """Where the token would stand, were this layer the last."""

    key: ClassVar = ("after",)

    after: str  # "embed", or the layer
    rank: int
    prob: float


@dataclass(frozen=True, slots=True)
class Side(Row):
    """A head or an MLP, and what it adds to the token's lead."""

    key: ClassVar = ("part",)

    part: str
    adds: float


@dataclass(frozen=True, slots=True)
class Removal(Row):
    """The same prompt without one token."""

    key: ClassVar = ("position", "token")
    about: ClassVar = {"top": ("top_prob",)}

    position: int
    token: Token
    attention: float  # that it gets at the position, as the mean of all heads
    prob: float  # of the token asked about, without this one
    change_bits: float  # of its log-probability: negative where this one speaks for it
    rank: int
    lead: float
    top: Token
    top_prob: float


@dataclass(frozen=True, slots=True)
class Why(View):
    """One token's account; `lead` is its logit minus that of the rival."""

    name: ClassVar[str] = "why"
    compared: ClassVar = ("rank", "prob", "rival_rank", "rival_prob", "lead")
    cut: ClassVar = ("parts_for", "parts_against")
    about: ClassVar = {
        "rival": (
            "rival_rank",
            "rival_prob",
            "lead",
            "rest",
            "parts_for",
            "parts_against",
            "removals",
        )
    }

    n_tokens: int
    vocab_size: int
    position: int
    after: Token  # at the position
    token: Token
    rank: int
    prob: float
    rival: Token  # --versus, or the likeliest other
    rival_rank: int
    rival_prob: float
    lead: float
    top_k: int
    enters: str | None  # after what it is among the `top_k`, and stays; None: it is not
    n_parts: int
    rest: float  # the lead that all parts but those listed make up
    n_candidates: int | None  # tokens of the text that could be left out; None: a change forbids it
    n_batches: int
    layers: tuple[Stage, ...]
    parts_for: tuple[Side, ...]
    parts_against: tuple[Side, ...]
    removals: tuple[Removal, ...]
    notes: tuple[str, ...]


NOTES = (
    "measured: rank and probability.",
    "approximate: the layers are read with the untuned lens.",
    "derived: the parts' direct effects on the lead, at the scale of the final norm here; --view "
    "ablation measures what a part does through later layers.",
)
REMOVED = (
    "measured: rank, probability, and the prompt without a token; those after it move up by one, "
    "so that their positions change, too. What several say together, none may show alone."
)
NOT_REMOVED = (
    "The run is changed, and a change may name places, which would move: no token is left out. Run "
    "it without the change to see them."
)


def cost(run: Run, ask: Ask) -> str:
    """What the view is about to compute, in words."""
    n, length = len(_able(run, ask.position)[: ask.rows or CANDIDATES]), ask.position
    batches = len(list(batched(range(n), length)))
    said = f"{len(run.ids)} token{'s' * (len(run.ids) != 1)}"
    flops = text_flops(run.config, len(run.ids)) + n * text_flops(run.config, length)
    if n:
        said += f", then {n} × {length} without one ({batches} batch{'es' * (batches > 1)})"
    return f"{said}: {gflop(flops)}"


@torch.inference_mode()
def view(run: Run, ask: Ask) -> Why:
    """The report on `token` (by default the likeliest) at `position`."""
    p = ask.position
    able = _able(run, p)
    stream = lens.stream_points(range(run.config.n_layer))
    *before, last = stream.values()
    attended = next.attention_points(run) if able else ()
    seen = run.record(*stream.values(), *attribution.points(run), *attended)
    logits = run.unembed(seen[last][p : p + 1], p)[0]  # (V,)
    order = logits.topk(min(2, len(logits))).indices.tolist()
    token = order[0] if ask.token is None else ask.token
    rival = ask.versus
    if rival is None:
        rival = next_other(order, token)
    early = lens.lens_logits(run.model, torch.stack([seen[point][p] for point in before]))
    stages = _stages(list(stream), torch.cat([early, logits[None]]), token)
    account = attribution.view(run, replace(ask, token=token, versus=rival, rows=None), seen)
    sides = [Side(part.part, part.value) for part in account.parts if MOVING.match(part.part)]
    speak_for = [side for side in sides if side.adds > 0][:PARTS]
    against = [side for side in sides if side.adds < 0][:PARTS]
    if ask.also:  # to be found in one list, whichever way a change has turned them
        speak_for, against = [side for side in sides if side.its in ask.also], []
    sources = next.sources(run, seen, p) if able else []
    candidates = [source for source in sources if source.position in able]
    removals = _removals(run, candidates[: ask.rows or CANDIDATES], p, (token, rival), logits)
    return Why(
        n_tokens=len(run.ids),
        vocab_size=run.config.vocab_size,
        position=p,
        after=run.tokens[p],
        token=run.token(token),
        rank=stages[-1].rank,
        prob=stages[-1].prob,
        rival=run.token(rival),
        rival_rank=rank_in(logits, rival),
        rival_prob=float(logits.softmax(dim=-1)[rival]),
        lead=account.logit,
        top_k=TOP_K,
        enters=entered(stages, TOP_K),
        n_parts=account.n_parts,
        rest=account.sum_of_parts - math.fsum(side.adds for side in (*speak_for, *against)),
        n_candidates=None if run.patch else len(able),
        n_batches=len(list(batched(removals, p))),
        layers=tuple(stages),
        parts_for=tuple(speak_for),
        parts_against=tuple(against),
        removals=tuple(removals),
        notes=(
            (*NOTES, NOT_REMOVED) if run.patch else (REMOVED, *NOTES[1:]) if removals else NOTES
        ),
    )


def next_other(order: Sequence[int], token: int) -> int:
    """The likeliest id that is not `token`; `token` itself where there is no other."""
    return [*(id for id in order if id != token), token][0]


def _stages(names: Sequence[str], logits: Tensor, token: int) -> list[Stage]:
    """The token's rank and probability in each row of `logits` (L + 1, V)."""
    ranks = rank_of(logits, torch.full((len(logits),), token, device=logits.device)).tolist()
    probs = logits.softmax(dim=-1)[:, token].tolist()
    return [Stage(*stage) for stage in zip(names, ranks, probs, strict=True)]


def entered(stages: Sequence[Stage], k: int) -> str | None:
    """After what the token is among the first `k` for good: the last time that it gets there."""
    since = None
    for stage in stages:
        if stage.rank >= k:
            since = None
        elif since is None:
            since = stage.after
    return since


# --- leaving tokens out --------------------------------------------------------------------------


def _able(run: Run, position: int) -> range:
    """The positions that can be left out: the text's own, before the one that is asked about."""
    return range(run.n_prefix, position) if not run.patch else range(0)


def _removals(
    run: Run, sources: Sequence[next.Source], position: int, pair: tuple[int, int], logits: Tensor
) -> list[Removal]:
    """What leaving out each of `sources` does to the token of `pair`, the largest change first."""
    token, rival = pair
    plain = float(logits.log_softmax(dim=-1)[token])
    rows = []
    for some in batched(sources, position):
        without_each = without(run, [source.position for source in some], position)
        for source, changed in zip(some, without_each, strict=True):
            logprobs = changed.log_softmax(dim=-1)
            logprob, top = float(logprobs[token]), int(changed.argmax())
            rows.append(Removal(
                source.position,
                source.token,
                source.weight,
                math.exp(logprob),
                (logprob - plain) / math.log(2),
                rank_in(changed, token),
                float(changed[token] - changed[rival]),
                run.token(top),
                float(logprobs[top].exp()),
            ))  # fmt: skip
    return sorted(rows, key=lambda row: -abs(row.change_bits))


@torch.inference_mode()
def without(run: Run, places: Sequence[int], position: int) -> Tensor:
    """The logits after `position` where one of `places` is left out, in one forward: (N, V)."""
    ids = list(run.ids[: position + 1])
    texts = torch.tensor([[*ids[:i], *ids[i + 1 :]] for i in places], device=run.device)
    return run.logits_of_rows(texts, position - 1, run.patch)
