"""Steering: a vector made from examples, and what a vector does to a text at growing strengths.

A strength is honest only beside a control: a random vector of the same norm pushes the stream as
far, towards nothing. "Steering Language Models With Activation Engineering" (arXiv:2308.10248).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llmcli.errors import UsageError
from llmcli.gpt.generation import generate
from llmcli.gpt.sampling import generator_for
from llmcli.gpt.tap import Probe
from llmcli.inspection import direction
from llmcli.inspection.ask import Ask, Sweep
from llmcli.inspection.compare import kl_per_step, perplexity
from llmcli.inspection.intervention import patches, stream_norms, vectors_of
from llmcli.inspection.plan import Example
from llmcli.inspection.run import Run
from llmcli.inspection.values import Token, View

N_NEAREST = 5
SIDES = ("positive", "negative")


# --- a vector from examples ----------------------------------------------------------------------


Examples = Mapping[str, Sequence[Example]]  # by side


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What the same examples give at each layer, to choose one by."""

    layer: int
    norm: float
    stream_norm: float  # the mean norm of the examples themselves, for scale
    apart: int  # examples on their own side of the middle
    held_out_apart: int | None  # the same, on vectors made without them


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """Where an example lies along the vector; 0 is the middle between the two kinds."""

    side: str  # "positive" or "negative"
    line: int
    text: str
    place: float
    held_out: float | None  # along a vector made without it


@dataclass(frozen=True, slots=True)
class Near:
    """A token whose row of the unembedding points as the vector does, or away from it."""

    side: str
    token: Token
    cosine: float


@dataclass(frozen=True, slots=True)
class SteerVector(View):
    """One vector, how well it tells the examples apart, and what it says."""

    name: ClassVar[str] = "steer"

    method: str
    layer: int
    n_positive: int
    n_negative: int
    norm: float
    stream_norm: float  # at a token of the examples, the mean
    apart: int
    held_out_apart: int | None
    layers: tuple[LayerRow, ...]
    examples: tuple[ExampleRow, ...]
    nearest: tuple[Near, ...]
    notes: tuple[str, ...]


VECTOR_NOTES = (
    "measured: an example is the mean of the layer's output over its tokens. Places are along the "
    "vector, 0 the middle between the two kinds, in units of the stream.",
    "Apart counts examples on their own side. Those that a vector is made from it nearly always "
    "tells apart; held out, each by a vector made without it, they say whether it holds for more.",
    "approximate: the nearest tokens are read as if no layer came after; early ones say little.",
)


class Fit(NamedTuple):
    """A layer's vector, and where the examples of both sides lie along it."""

    vector: Tensor  # (C,)
    places: tuple[Tensor, Tensor]  # (P,) and (N,)
    held_out: tuple[Tensor, Tensor] | None
    stream_norm: float

    @classmethod
    def of(cls, make: direction.Make, positive: Tensor, negative: Tensor, length: float) -> Fit:
        vector = make(positive, negative)
        places = [direction.along(vector, positive, negative, x) for x in (positive, negative)]
        held_out = direction.held_out(make, positive, negative)
        return cls(vector, (places[0], places[1]), held_out, length)

    def row(self, layer: int) -> LayerRow:
        return LayerRow(
            layer,
            float(self.vector.norm()),
            self.stream_norm,
            direction.n_apart(*self.places),
            None if self.held_out is None else direction.n_apart(*self.held_out),
        )


@torch.inference_mode()
def vector_view(
    run: Run, examples: Examples, method: str, layer: int, rows: int | None
) -> tuple[SteerVector, Tensor]:
    """The vector that `examples`, by side, make at `layer`: its view, and itself (C,) in fp32.

    Raises UsageError where the examples do not differ.
    """
    (positive, long), (negative, other) = (
        direction.activations(run.model, [one.ids for one in examples[side]], run.n_prefix)
        for side in SIDES
    )  # (L, P, C) and (L, P), (L, N, C) and (L, N)
    make = direction.METHODS[method]
    lengths = torch.cat([long, other], dim=1).mean(dim=1).tolist()
    both = zip(positive.cpu(), negative.cpu(), lengths, strict=True)
    fits = [Fit.of(make, *each) for each in both]
    own, chosen = fits[layer], fits[layer].row(layer)
    if not chosen.norm > 1e-6 * chosen.stream_norm:
        raise UsageError(
            "The examples of both files have the same mean: there is nothing to steer by.",
            "Let them differ in what the vector is to be of.",
        )
    made = own.vector.float()
    view = SteerVector(
        method=method,
        layer=layer,
        n_positive=len(examples["positive"]),
        n_negative=len(examples["negative"]),
        norm=chosen.norm,
        stream_norm=chosen.stream_norm,
        apart=chosen.apart,
        held_out_apart=chosen.held_out_apart,
        layers=tuple(fit.row(at) for at, fit in enumerate(fits)),
        examples=tuple(_example_rows(own, examples)),
        nearest=tuple(_nearest(run, made, rows or N_NEAREST)),
        notes=VECTOR_NOTES,
    )
    return view, made


def _example_rows(fit: Fit, examples: Examples) -> list[ExampleRow]:
    rows = []
    for i, side in enumerate(SIDES):
        places = fit.places[i].tolist()
        unseen = [None] * len(places) if fit.held_out is None else fit.held_out[i].tolist()
        rows += [
            ExampleRow(side, one.line, one.text, place, other)
            for one, place, other in zip(examples[side], places, unseen, strict=True)
        ]
    return rows


def _nearest(run: Run, made: Tensor, n: int) -> list[Near]:
    cosines = direction.likeness(run.model, made.to(run.device))
    return [
        Near(side, run.token(id), float(cosines[id]))
        for side, sign in zip(SIDES, (1, -1), strict=True)
        for id in run.only_drawable(sign * cosines).topk(min(n, len(cosines))).indices.tolist()
    ]


# --- a vector at growing strengths ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """The text at one strength, and the same of a random vector of equal norm."""

    strength: float  # --sweep's number times the one in --steer
    norm: float  # of what is added
    text: str
    kl_bits: float  # mean over the steps: KL(untouched || steered), both reading this text
    perplexity: float  # of the text under the untouched model
    control_text: str
    control_kl_bits: float
    control_perplexity: float


@dataclass(frozen=True, slots=True)
class SteerSweep(View):
    """A text for each strength."""

    name: ClassVar[str] = "steer"

    layer: int
    position: int  # the first that is steered
    norm: float  # of the vector at strength 1
    stream_norm: float  # of the untouched stream where it is added, at the last position
    greedy: bool
    seed: int
    untouched_text: str
    untouched_perplexity: float
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]


SWEEP_NOTES = (
    "measured: KL is KL(untouched || steered) in bits, the mean over the steps of the text beside "
    "it; perplexity is that of the text under the untouched model: high where it is noise.",
    "The control is one random vector of the same norm: what it does too is not the direction's.",
)


def view(run: Run, ask: Ask) -> SteerSweep:
    """Each strength of the sweep tried on the prompt; other changes stay in force."""
    sweep = ask.sweep
    if sweep is None:
        raise UsageError(
            "--view steer needs a vector to try, or examples to make one from.",
            'For example: --steer \'" water" - " fire" @ L5 * 1\' --sweep 0.5,1,2, or '
            "--positive A.txt --negative B.txt --layer 4",
        )
    (wanted,) = sweep.plan.vectors
    base = replace(sweep.plan, vectors=(replace(wanted, strength=1.0),))
    (one,) = vectors_of(run.model, base)
    control = random_like(one, ask.seed)
    untouched = replace(run, patch={})
    plain = continued(untouched, ask, sweep)
    trials = []
    for factor in sweep.strengths:
        strength = factor * wanted.strength
        told: list[tuple[str, float, float]] = []
        for made in (one, control):
            patch = patches(run.model, sweep.plan, run.ids, [strength * made])
            told.append(_tried(replace(run, patch=patch), ask, sweep))
        trials.append(Trial(strength, abs(strength) * float(one.norm()), *told[0], *told[1]))
    return SteerSweep(
        layer=wanted.layer,
        position=0 if sweep.plan.steer_prompt else len(run.ids) - 1,
        norm=float(one.norm()),
        stream_norm=stream_norms(run.model, sweep.plan, run.ids)[0],
        greedy=sweep.sampling.temperature == 0,
        seed=ask.seed,
        untouched_text=run.text_of(plain),
        untouched_perplexity=perplexity(untouched, plain),
        trials=tuple(trials),
        notes=SWEEP_NOTES,
    )


def _tried(run: Run, ask: Ask, sweep: Sweep) -> tuple[str, float, float]:
    """The text under the run's patches, its mean KL, and its perplexity when untouched."""
    ids = continued(run, ask, sweep)
    kl = kl_per_step(run, ids)
    return run.text_of(ids), sum(kl) / len(kl), perplexity(replace(run, patch={}), ids)


def continued(run: Run, ask: Ask, sweep: Sweep) -> list[int]:
    """The ids that `generate` continues the prompt with, the run's patches in force."""
    steps = generate(
        run.model, [run.ids], sweep.sampling, [generator_for(ask.seed, 0, 0)],
        max_new_tokens=sweep.max_new_tokens, stop_ids=run.config.eos_ids,
        drawable=run.drawable, top_probs=None, tap=Probe(run.config.n_layer, patch=run.patch),
    )  # fmt: skip
    return [step.id for step in steps]


def random_like(vector: Tensor, seed: int) -> Tensor:
    """A vector of the same norm in a direction drawn evenly from all: (C,)."""
    drawn = torch.randn(len(vector), generator=torch.Generator().manual_seed(seed % 2**63))
    return (drawn / drawn.norm()).to(vector) * vector.norm()
