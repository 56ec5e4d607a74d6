"""The strongest neurons of a layer at a position, and which tokens each speaks for.

A neuron writes its activation times its column of the down-projection ("Transformer Feed-Forward
Layers Are Key-Value Memories", arXiv:2012.14913). That vector is read as attribution reads every
part: through the final norm, at the scale that it has on this prompt, and the output head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.gpt.model import MLP
from llmcli.inspection.ask import Ask
from llmcli.inspection.attribution import account, through_norm
from llmcli.inspection.lens import CHUNK
from llmcli.inspection.run import Run
from llmcli.inspection.values import Row, Token, View

ROWS = 20
TOP = 3  # tokens for and against that are named of each neuron


@dataclass(frozen=True, slots=True)
class Neuron(Row):
    """One neuron, the one that writes the longest vector first."""

    key: ClassVar = ("part",)

    rank: int
    neuron: int
    part: str  # "L3.N127", as --ablate takes it
    before: float  # the activation function
    after: float
    norm: float  # of what it writes
    effect: float  # on the logit of the token, or on its difference from that of `versus`


@dataclass(frozen=True, slots=True)
class Promotion(Row):
    """One of the tokens whose logits a neuron raises, or lowers, most."""

    key: ClassVar = ("neuron", "side", "token")

    neuron: int
    side: str  # "for" or "against"
    rank: int
    token: Token
    logit: float  # what the neuron adds to it


@dataclass(frozen=True, slots=True)
class MLPView(View):
    """The neurons shown, the rest of them, and the bias add up to what the MLP says of a token."""

    name: ClassVar[str] = "mlp"
    compared: ClassVar = ("n_positive", "norm", "effect", "bias")
    cut: ClassVar = ("neurons",)

    n_tokens: int
    layer: int
    position: int
    at: Token  # what stands at the position
    activation: str
    n_neurons: int
    n_positive: int  # of them before the activation
    norm: float  # of what the MLP writes
    token: Token
    versus: Token | None
    effect: float  # of what the whole MLP writes
    n_rest: int  # neurons beyond --rows
    rest: float  # their effect
    bias: float  # its effect
    neurons: tuple[Neuron, ...]
    promotions: tuple[Promotion, ...]
    notes: tuple[str, ...]


NOTES = (
    "measured before and after the activation; derived: what each writes, read through the final "
    "norm, at the scale that it has on this prompt, and the output head. Writes is the norm of the "
    "vector written.",
    "Direct effects only; the tokens are what a neuron speaks for here, not what it means. "
    "A constant added to every logit changes no probability.",
)
REPLACED = "What this MLP writes here is replaced by a change; its neurons do not make it."


@torch.inference_mode()
def view(run: Run, ask: Ask) -> MLPView:
    """The `rows` neurons of `layer` (by default the last) that write most at `position`."""
    layer = run.config.n_layer - 1 if ask.layer is None else ask.layer
    seen = run.record(*_points(run, ask), f"{layer}.mlp_out", run.end)
    final = seen[run.end][ask.position]  # (C,)
    token = ask.token
    if token is None:
        token = int(run.unembed(final[None], ask.position)[0].argmax())
    pre, post = (seen[point][ask.position] for point in _points(run, ask))  # (M,)
    mlp = run.model.block(layer).mlp
    vectors = written(mlp, post)  # (M, C)
    parts = {str(neuron): vector for neuron, vector in enumerate(vectors)}
    parts["bias"] = mlp.down.bias.double()
    parts["mlp"] = seen[f"{layer}.mlp_out"][ask.position].double()  # (C,)
    effects = account(run.model, parts, final, token, ask.versus)
    norms = vectors.norm(dim=-1)
    order = norms.sort(descending=True, stable=True).indices.tolist()
    n = ask.rows or ROWS
    more = [neuron for neuron in order[n:] if (f"L{layer}.N{neuron}",) in ask.also]
    shown, rest = order[:n] + more, [neuron for neuron in order[n:] if neuron not in more]
    return MLPView(
        n_tokens=len(run.ids),
        layer=layer,
        position=ask.position,
        at=run.tokens[ask.position],
        activation=run.config.activation,
        n_neurons=len(order),
        n_positive=int((pre > 0).sum()),
        norm=float(parts["mlp"].norm()),
        token=run.token(token),
        versus=None if ask.versus is None else run.token(ask.versus),
        effect=effects["mlp"],
        n_rest=len(rest),
        rest=sum(effects[str(neuron)] for neuron in rest),
        bias=effects["bias"],
        neurons=tuple(
            Neuron(rank, n, f"L{layer}.N{n}", float(pre[n]), float(post[n]), float(norms[n]),
                   effects[str(n)])
            for rank, n in enumerate(shown)
        ),
        promotions=tuple(_promotions(run, shown, vectors[shown], final)),
        notes=(*NOTES, REPLACED) if _is_replaced(run, layer, parts, vectors) else NOTES,
    )  # fmt: skip


def _is_replaced(run: Run, layer: int, parts: dict[str, Tensor], vectors: Tensor) -> bool:
    """Whether a change of what the layer's MLP writes is one at this position."""
    made = vectors.sum(dim=0) + parts["bias"]
    return f"{layer}.mlp_out" in run.patch and not torch.allclose(made, parts["mlp"], 0.01, 0.01)


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`L.mlp_pre` and `L.mlp_post` (T, M) of the layer."""
    return run.record(*_points(run, ask))


def _points(run: Run, ask: Ask) -> tuple[str, str]:
    layer = run.config.n_layer - 1 if ask.layer is None else ask.layer
    return f"{layer}.mlp_pre", f"{layer}.mlp_post"


def written(mlp: MLP, post: Tensor) -> Tensor:
    """What each neuron adds to the stream, from the activations `post` (M,): (M, C) in fp64."""
    return mlp.down.weight.double().T * post.double()[:, None]


def _promotions(
    run: Run, neurons: list[int], vectors: Tensor, final: Tensor
) -> Iterator[Promotion]:
    """The tokens that each of `neurons` is most for and most against; `vectors` (N, C) are theirs.

    CHUNK neurons at once: each has a logit for every vocabulary entry.
    """
    head = run.model.head.weight.float()  # (V, C)
    for low in range(0, len(neurons), CHUNK):
        read = through_norm(run.model, vectors[low : low + CHUNK], final.double()).float()
        for neuron, logits in zip(neurons[low : low + CHUNK], read @ head.T, strict=True):
            for side, largest in (("for", True), ("against", False)):
                top = logits.topk(min(TOP, len(logits)), largest=largest)
                found = zip(top.indices.tolist(), top.values.tolist(), strict=True)
                for rank, (id, value) in enumerate(found):
                    yield Promotion(neuron, side, rank, run.token(id), value)
