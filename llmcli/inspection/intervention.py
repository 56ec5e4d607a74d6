"""Changes to a forward pass as patches of a Probe: nothing of them stays on the model.

Where several meet at one point they apply in this order: patch, ablate, knock out, steer. Sources:
ablation, Michel et al. (arXiv:1905.10650); attention knock-out, Geva et al. (arXiv:2304.14767);
steering, Turner et al. (arXiv:2308.10248); activation patching, Meng et al. (arXiv:2202.05262).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmcli.config import ModelConfig
from llmcli.errors import IntegrityError, shown_path
from llmcli.gpt.model import GPT, causal_mask
from llmcli.gpt.tap import Patch, Probe
from llmcli.inspection.grammar import Ablation
from llmcli.inspection.plan import (
    MAKE_AGAIN,
    HiddenKeys,
    Plan,
    QueryKey,
    Transplant,
    Vector,
    vector_name,
)
from llmcli.inspection.run import require_numbers

Add = Callable[[str, Patch], None]


def patches(
    model: GPT, plan: Plan, ids: Sequence[int], vectors: Sequence[Tensor] | None = None
) -> dict[str, Patch]:
    """The patches that make `plan` come true in a run that begins with the prompt `ids`.

    They hold for rows without padding, whatever the cut into calls. Means, vectors and the values
    of other prompts are taken from untouched runs, here and now; `vectors` stand in for its own.
    """
    found: dict[str, list[Patch]] = {}

    def add(point: str, patch: Patch) -> None:
        found.setdefault(point, []).append(patch)

    for swapped in plan.transplants:
        _transplant(model, swapped, add)
    _ablate(model, plan, add)
    _knock_out(model.config, plan, add)
    first = 0 if plan.steer_prompt else len(ids) - 1
    made = vectors_of(model, plan) if vectors is None else vectors
    for vector, value in zip(plan.vectors, made, strict=True):
        add(f"{vector.layer}.resid_post", added(value, first))
    return {point: composed(made) for point, made in found.items()}


def composed(made: Sequence[Patch]) -> Patch:
    """One patch that applies all of `made`, in their order."""
    if len(made) == 1:
        return made[0]

    def patch(value: Tensor, start: int) -> Tensor:
        for one in made:
            value = one(value, start)
        return value

    return patch


@torch.inference_mode()
def seen(model: GPT, ids: Sequence[int], *points: str) -> dict[str, Tensor]:
    """The values of an untouched run of `ids` at `points`, without their batch dimension.

    Raises IntegrityError where the stream they end in does not consist of numbers.
    """
    probe = Probe(model.config.n_layer, record=points)
    require_numbers(model.stream(torch.tensor([list(ids)], device=model.device), None, probe))
    return {point: value[0] for point, value in probe.values.items()}


# --- patch ---------------------------------------------------------------------------------------


def _transplant(model: GPT, change: Transplant, add: Add) -> None:
    value = seen(model, change.ids, change.point)[change.point]  # (T, C), or (H, T, D)
    add(change.point, replaced(value, change.positions, change.head))


def replaced(source: Tensor, positions: Sequence[int], head: int | None = None) -> Patch:
    """`positions` of a value (B, T, C) set to those of `source` (T, C); or of (B, H, T, D)."""

    def patch(value: Tensor, start: int) -> Tensor:
        T = value.shape[-2]
        here = [position for position in positions if start <= position < start + T]
        if not here:
            return value
        there = [position - start for position in here]
        value = value.clone()
        if head is None:
            value[..., there, :] = source[..., here, :].to(value.dtype)
        else:
            value[:, head, there] = source[head, here].to(value.dtype)
        return value

    return patch


# --- ablate --------------------------------------------------------------------------------------


def _ablate(model: GPT, plan: Plan, add: Add) -> None:
    """A head's z, a neuron's mlp_post, a whole attn_out or mlp_out: zero, or the mean."""
    wanted = [(change, point) for change in plan.ablations for point in ablated_points(change)]
    of_mean = sorted({point for change, point in wanted if change.fill == "mean"})
    means = mean_values(model, plan.reference, of_mean) if of_mean else {}
    for change, point in wanted:
        mean = means[point] if change.fill == "mean" else None
        where = change.indices if change.part in ("head", "neuron") else None
        add(point, filled(where, mean))


def ablated_points(change: Ablation) -> list[str]:
    """The points at which an ablation acts."""
    if change.part == "pos_embed":
        return ["pos_embed"]
    names = {
        "head": ["z"], "neuron": ["mlp_post"], "attn": ["attn_out"], "mlp": ["mlp_out"],
        "layer": ["attn_out", "mlp_out"],
    }[change.part]  # fmt: skip
    return [f"{layer}.{name}" for layer in change.layers for name in names]


def mean_values(
    model: GPT, texts: Sequence[Sequence[int]], points: Sequence[str]
) -> dict[str, Tensor]:
    """The mean of each point over the positions of all `texts`: (C,), (M,), or (H, 1, D) of z."""
    sums: dict[str, Tensor] = {}
    n = 0
    for ids in texts:
        for point, value in seen(model, ids, *points).items():
            total = value.double().sum(dim=-2, keepdim=value.dim() == 3)
            sums[point] = sums[point] + total if point in sums else total
        n += len(ids)
    return {point: total / n for point, total in sums.items()}


def filled(where: Sequence[int] | None, mean: Tensor | None) -> Patch:
    """Some heads of z, some neurons of mlp_post, or (None) all of a value set to zero or `mean`."""

    def patch(value: Tensor, start: int) -> Tensor:
        fill = torch.zeros_like(value) if mean is None else mean.to(value).expand_as(value)
        if where is None:
            return fill
        value, places = value.clone(), list(where)
        if value.dim() == 4:  # z: (B, H, T, D)
            value[:, places] = fill[:, places]
        else:
            value[..., places] = fill[..., places]
        return value

    return patch


# --- knock out -----------------------------------------------------------------------------------


def _knock_out(config: ModelConfig, plan: Plan, add: Add) -> None:
    for layer in range(config.n_layer):
        knocked_out = [keys for keys in plan.hidden_keys if layer in keys.layers]
        if knocked_out:
            add(f"{layer}.scores", hidden(knocked_out, config.n_head))


def hidden(knocked_out: Sequence[HiddenKeys], n_head: int) -> Patch:
    """Scores (B, H, T, S) set to -inf for hidden keys: softmax shares the rest."""

    def patch(value: Tensor, start: int) -> Tensor:
        T, S = value.shape[-2:]
        mask = forbidden(knocked_out, n_head, start, T, S)
        return value if mask is None else value.masked_fill(mask.to(value.device), -math.inf)

    return patch


def forbidden(
    knocked_out: Sequence[HiddenKeys], n_head: int, start: int, T: int, S: int
) -> Tensor | None:
    """Which keys of S the T queries from `start` on must not see: (H, T, S); None: all may be."""
    mask = None
    for keys in knocked_out:
        unseen = _unseen(keys.pairs, start, T, S)
        if unseen is not None:
            mask = torch.zeros(n_head, T, S, dtype=torch.bool) if mask is None else mask
            mask[list(keys.heads)] |= unseen
    return mask


def _unseen(pairs: Sequence[QueryKey], start: int, T: int, S: int) -> Tensor | None:
    """The same for one set of pairs, whatever the head: (T, S)."""
    here = [
        (query, key)
        for query, key in pairs
        if (start <= query < start + T if query is not None else (key or 0) < S)
    ]
    if not here:
        return None
    mask = torch.zeros(T, S, dtype=torch.bool)
    both = [(q - start, k) for q, k in here if q is not None and k is not None]
    mask[[q for q, _ in both], [k for _, k in both]] = True  # at once: they may be many
    for query, key in here:
        if query is None and key is None:
            mask |= causal_mask(T, S, mask.device).tril(diagonal=start - 1)
        elif key is None and query is not None:
            mask[query - start, :query] = True
        elif query is None and key is not None:  # all that come after it
            mask[max(0, key + 1 - start) :, key] = True
    return mask


# --- steer ---------------------------------------------------------------------------------------


def added(vector: Tensor, first: int) -> Patch:
    """`vector` (C,) added to a stream (B, T, C) at position `first` and at all after it."""

    def patch(value: Tensor, start: int) -> Tensor:
        T = value.shape[1]
        if start + T <= first:
            return value
        places = torch.arange(start, start + T, device=value.device) >= first
        return value + vector.to(value) * places[:, None]

    return patch


def vectors_of(model: GPT, plan: Plan) -> list[Tensor]:
    """What each vector of `plan` adds, its strength in it: (C,) each."""
    return [
        vector.strength * vector_of(model, vector, plan.reference, plan.n_prefix)
        for vector in plan.vectors
    ]


def stream_norms(model: GPT, plan: Plan, ids: Sequence[int]) -> list[float]:
    """How long the stream is where each vector of `plan` is added, at the end of `ids`."""
    points = [f"{vector.layer}.resid_post" for vector in plan.vectors]
    values = seen(model, ids, *points)
    return [float(values[point][-1].float().norm()) for point in points]


def vector_of(model: GPT, vector: Vector, texts: Sequence[Sequence[int]], n_prefix: int) -> Tensor:
    """The vector (C,) in fp32: a file's, or a text's mean activation minus that of another.

    One text alone is held against `texts`, the reference or the prompt: what all texts share says
    nothing of this one, and several times it would drown the rest.
    """
    if vector.path is not None:
        return read_vector(Path(vector.path), model.config.n_embd)
    point = f"{vector.layer}.resid_post"
    plus = mean_activation(model, [vector.plus], point, n_prefix)
    others = texts if vector.minus is None else [vector.minus]
    return plus - mean_activation(model, others, point, n_prefix)


def mean_activation(
    model: GPT, texts: Sequence[Sequence[int]], point: str, n_prefix: int
) -> Tensor:
    """The mean of a point over all positions of `texts` but the tokenizer's prefix: (C,), fp32."""
    values = [without_prefix(seen(model, ids, point)[point], n_prefix) for ids in texts]
    return torch.cat(values).float().mean(dim=0)


def without_prefix(value: Tensor, n_prefix: int) -> Tensor:
    """A text's value (T, C) without the tokenizer's prefix, unless there is nothing else."""
    return value[n_prefix:] if len(value) > n_prefix else value


def read_vector(path: Path, n_embd: int) -> Tensor:
    """The vector (C,) in a file, in fp32. Raises IntegrityError where it is not numbers."""
    vector = load_file(path)[vector_name(path, n_embd)].float()
    if not torch.isfinite(vector).all():
        raise IntegrityError(
            f"The vector in {shown_path(path)} holds NaN or infinite numbers.",
            MAKE_AGAIN,
        )
    return vector
