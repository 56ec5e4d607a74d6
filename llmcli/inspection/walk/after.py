"""Pages 20 to 25: what is done with the probabilities, and what can be done to the model."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmcli.config import Sampling
from llmcli.gpt.cache import KVCache
from llmcli.gpt.sampling import filtered
from llmcli.inspection import grammar
from llmcli.inspection.intervention import patches, stream_norms, vectors_of
from llmcli.inspection.plan import Plan, Vector
from llmcli.inspection.values import Token
from llmcli.inspection.walk.run import Walk

COLD, HOT, TOP_K, TOP_P = 0.5, 1.5, 3, 0.9
STEPS = 6
SHARE = 0.3  # of the stream's length: what is added changes the text and leaves it one
PLAIN_WORD = re.compile(rb" ?[A-Za-z]+")  # what needs no escape between the quotes of --steer


@dataclass(frozen=True, slots=True)
class Chance:
    """The probability of one token to be drawn, in each way of drawing."""

    token: Token
    prob: float
    cold: float
    hot: float
    top_k: float
    top_p: float


@dataclass(frozen=True, slots=True)
class Choosing:
    """Ways from probabilities to one token."""

    greedy: Token
    cold_temperature: float
    hot_temperature: float
    top_k: int
    top_p: float
    n_kept: int  # by top-p
    vocab_size: int
    rows: tuple[Chance, ...]


@dataclass(frozen=True, slots=True)
class Step:
    step: int
    n_tokens: int  # that the model saw
    token: Token
    prob: float


@dataclass(frozen=True, slots=True)
class Repeating:
    """The prompt continued greedily."""

    n_tokens: int
    n_ctx: int
    eos: Token | None
    steps: tuple[Step, ...]  # none where the context is full
    text: str


@dataclass(frozen=True, slots=True)
class Cache:
    """What is kept of each token so that it is computed once."""

    n_layer: int
    n_head: int
    head_dim: int
    n_tokens: int
    n_ctx: int
    n_kept: int  # numbers kept for a token: a key and a value in each head of each layer
    token_nbytes: int
    prompt_nbytes: int
    full_nbytes: int
    n_computed: int  # positions that the next step computes without the cache
    token: Token | None  # the next one, None where the context is full
    max_difference: float | None  # of the logits after it, with the cache and without


@dataclass(frozen=True, slots=True)
class Chat:
    """What a conversation is to the model."""

    n_tokens: int
    n_ctx: int
    context_used: float
    n_eos: int  # tokens that end a text
    eos: Token | None  # the first of them
    eos_prob: float | None  # that the text ends here, with any of them


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Parameters:
    """The learned numbers, by what they are for."""

    total: int
    n_layer: int
    tied: bool
    token: Token
    example: float  # the first number of the token's vector
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    name: str  # "untouched", "without", "steered"
    top: Token
    top_prob: float
    best_prob: float  # of the token that is likeliest in the untouched run
    steered_prob: float  # of the token that is steered towards


@dataclass(frozen=True, slots=True)
class Changing:
    """The next token without one head, and with one direction made stronger."""

    ablate: str  # as the option takes it
    steer: str
    steer_layer: int
    strength: float
    added: float  # the length of what is added to the stream
    stream: float  # the stream's own there
    best: Token
    towards: Token
    outcomes: tuple[Outcome, ...]


def choosing(walk: Walk) -> Choosing:
    logits = walk.run.only_drawable(walk.logits)
    best = logits.argsort(descending=True, stable=True).tolist()

    def probs(**options: float) -> Tensor:
        left = filtered(logits.float().numpy(force=True), Sampling(**options))  # type: ignore[arg-type]
        return torch.from_numpy(left).softmax(dim=-1)

    k = min(TOP_K, len(logits))
    as_is = walk.logits.softmax(dim=-1)
    ways = [as_is, probs(temperature=COLD), probs(temperature=HOT), probs(top_k=k),
            probs(top_p=TOP_P)]  # fmt: skip
    return Choosing(
        greedy=walk.run.token(best[0]),
        cold_temperature=COLD,
        hot_temperature=HOT,
        top_k=k,
        top_p=TOP_P,
        n_kept=int((ways[-1] > 0).sum()),
        vocab_size=walk.config.vocab_size,
        rows=tuple(
            Chance(walk.run.token(id), *(float(way[id]) for way in ways)) for id in best[:6]
        ),
    )


def repeating(walk: Walk) -> Repeating:
    steps: list[Step] = []
    logits, cache = walk.logits, filled_cache(walk, STEPS)
    while len(steps) < STEPS and cache.length < walk.config.n_ctx:
        id = likeliest(walk, logits)
        prob = float(logits.softmax(dim=-1)[id])
        steps.append(Step(len(steps), cache.length, walk.run.token(id), prob))
        if id in walk.config.eos_ids:
            break
        logits = next_logits(walk, id, cache)
    return Repeating(
        n_tokens=len(walk.run.ids),
        n_ctx=walk.config.n_ctx,
        eos=_eos(walk),
        steps=tuple(steps),
        text=walk.run.text_of([step.token.id for step in steps]),
    )


def likeliest(walk: Walk, logits: Tensor) -> int:
    """The id that `generate` takes at temperature 0."""
    return int(walk.run.only_drawable(logits).argmax())


def filled_cache(walk: Walk, room: int) -> KVCache:
    """The keys and values of the walk's own forward, and room for more."""
    T = len(walk.run.ids)
    filled = walk.model.new_cache(1, min(T + room, walk.config.n_ctx))
    for layer, past in enumerate(filled.extend(T).layers()):
        past.append(walk.seen[f"{layer}.k"][None], walk.seen[f"{layer}.v"][None])
    return filled


def next_logits(walk: Walk, id: int, cache: KVCache) -> Tensor:
    """The logits (V,) after one more token; its keys and values are added to `cache`."""
    ids = torch.tensor([[id]], device=walk.run.device)
    logits: Tensor = walk.model(ids, cache, last_only=True)[0, -1]
    return logits.float()


def cache(walk: Walk) -> Cache:
    config, T = walk.config, len(walk.run.ids)
    each = config.kv_nbytes(walk.model.cache_dtype.itemsize)
    token, difference = None, None
    if config.n_ctx > T:
        id = likeliest(walk, walk.logits)
        token = walk.run.token(id)
        once = walk.run.on([*walk.run.ids, id]).logits(range(T, T + 1))[0]
        difference = float((once - next_logits(walk, id, filled_cache(walk, 1))).abs().max())
    return Cache(
        n_layer=config.n_layer,
        n_head=config.n_head,
        head_dim=config.head_dim,
        n_tokens=T,
        n_ctx=config.n_ctx,
        n_kept=2 * config.n_layer * config.n_head * config.head_dim,
        token_nbytes=each,
        prompt_nbytes=each * T,
        full_nbytes=each * config.n_ctx,
        n_computed=T + 1,
        token=token,
        max_difference=difference,
    )


def chat(walk: Walk) -> Chat:
    T, ends = len(walk.run.ids), list(walk.config.eos_ids)
    return Chat(
        n_tokens=T,
        n_ctx=walk.config.n_ctx,
        context_used=T / walk.config.n_ctx,
        n_eos=len(ends),
        eos=_eos(walk),
        eos_prob=float(walk.logits.softmax(dim=-1)[ends].sum()) if ends else None,
    )


def _eos(walk: Walk) -> Token | None:
    return walk.run.token(walk.config.eos_ids[0]) if walk.config.eos_ids else None


def parameters(walk: Walk) -> Parameters:
    counts: dict[str, int] = {}
    layers: set[str] = set()
    for name, layer in walk.model.named_modules():
        if name == "head" and walk.config.tie_embeddings:
            continue  # counted as the token embedding
        if name.rpartition(".")[0] in layers:
            continue  # a part of a layer, whose numbers are the layer's
        if hasattr(layer, "weight"):
            layers.add(name)
        for part in ("weight", "bias"):  # which a layer has however it stores them
            if (values := getattr(layer, part, None)) is not None:
                counts[_group(name)] = counts.get(_group(name), 0) + values.numel()
    total = sum(counts.values())
    return Parameters(
        total=total,
        n_layer=walk.config.n_layer,
        tied=walk.config.tie_embeddings,
        token=walk.token,
        example=float(walk.model.token_vectors[walk.token.id, 0]),
        groups=tuple(Group(name, n, n / total) for name, n in counts.items()),
    )


def _group(layer: str) -> str:
    """What a layer's parameters are for, by its name."""
    parts = layer.split(".")
    if "attn" in parts or "mlp" in parts:
        return "attention" if "attn" in parts else "feed-forward"
    if any(part.startswith("norm") for part in parts):
        return "layer norms"
    return {"head": "output matrix"}.get(parts[0], parts[0].replace("_", " "))


def changing(walk: Walk) -> Changing:
    (layer, head), at = walk.head, walk.config.n_layer // 2
    ablate, towards = f"L{layer}.H{head}", _runner_up(walk)
    n_prefix = walk.run.n_prefix
    one = Vector(at, 1.0, plus=(*walk.run.ids[:n_prefix], towards.id))
    plan = Plan(vectors=(one,), n_prefix=n_prefix, reference=(tuple(walk.run.ids),))
    (added,) = vectors_of(walk.model, plan)
    (stream,) = stream_norms(walk.model, plan, walk.run.ids)
    length = float(added.norm())
    strength = float(f"{SHARE * stream / length:.1g}") if length else 1.0
    plans = {
        "untouched": Plan(),
        "without": Plan(ablations=(grammar.ablation(ablate, walk.config),), n_prefix=n_prefix),
        "steered": replace(plan, vectors=(replace(one, strength=strength),)),
    }
    return Changing(
        ablate=ablate,
        steer=f'"{towards.text.decode("utf-8", "replace")}" @ L{at} * {strength:g}',
        steer_layer=at,
        strength=strength,
        added=strength * length,
        stream=stream,
        best=walk.run.token(walk.best[0]),
        towards=towards,
        outcomes=tuple(_outcome(walk, name, plan, towards) for name, plan in plans.items()),
    )


def _runner_up(walk: Walk) -> Token:
    """The likeliest token but the first that is a word, so that it can be typed."""
    others = [walk.run.token(id) for id in walk.best[1:200]]
    words = [token for token in others if PLAIN_WORD.fullmatch(token.text)]
    return [*words, *others, walk.run.token(walk.best[0])][0]


def _outcome(walk: Walk, name: str, plan: Plan, towards: Token) -> Outcome:
    logits = walk.logits
    if plan:
        changed = replace(walk.run, patch=patches(walk.model, plan, walk.run.ids))
        logits = changed.logits(range(walk.last, walk.last + 1))[0]
    prob = logits.softmax(dim=-1)
    top = int(prob.argmax())
    return Outcome(name, walk.run.token(top), float(prob[top]), float(prob[walk.best[0]]),
                   float(prob[towards.id]))  # fmt: skip
