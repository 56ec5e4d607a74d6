"""Direct logit attribution: one logit as a sum of what each part of the model wrote.

The stream before the final norm is a sum: embeddings, heads, MLPs and biases. At the standard
deviation that the norm divides by on this prompt, norm and output head are linear, so the sum
carries through to the logit ("A Mathematical Framework for Transformer Circuits", 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmcli.errors import IntegrityError
from llmcli.gpt.model import GPT
from llmcli.inspection.ask import Ask
from llmcli.inspection.residual import additions
from llmcli.inspection.run import Run, rank_in
from llmcli.inspection.values import Row, Token, View

# Of the sum of the parts' absolute values, by the way in which the weights are stored.
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2, "int8": 5e-2, "int4": 5e-2}
STREAM = ("attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")  # where a sum is made

Values = dict[str, Tensor]  # by point, or by part


@dataclass(frozen=True, slots=True)
class Part(Row):
    """What one part adds to the logit, or to the difference of two."""

    key: ClassVar = ("part",)

    rank: int
    part: str  # "embed", "pos_embed", "L3.H2", "L3.attn.bias", "L3.mlp", "norm_f.bias", ...
    value: float


@dataclass(frozen=True, slots=True)
class Attribution(View):
    """A logit taken apart, the largest part first."""

    name: ClassVar[str] = "attribution"
    compared: ClassVar = ("rank", "prob", "logit", "sum_of_parts")
    cut: ClassVar = ("parts",)

    position: int
    token: Token
    versus: Token | None
    rank: int  # of the token, among all next tokens
    prob: float
    logit: float  # of the token, minus that of `versus` where one is given: the model's own
    n_parts: int
    sum_of_parts: float
    sum_of_absolutes: float
    residual: float  # the model's logit minus the sum of the parts
    tolerance: float  # the largest |residual| that passes
    parts: tuple[Part, ...]
    n_rest: int  # parts beyond --rows
    rest: float  # their sum
    notes: tuple[str, ...]


NOTES = (
    "derived: exact up to rounding, at the scale that the final norm has on this prompt.",
    "Direct effects only: what a part does through later layers is counted there. "
    "A constant added to every logit changes no probability; --versus is free of it.",
)


def view(run: Run, ask: Ask, seen: Values | None = None) -> Attribution:
    """The account of `token` (by default the likeliest) at `position`; `seen` as in `written`.

    Raises IntegrityError where the parts do not add up to the logit.
    """
    made = summed(run, ask, seen)
    if not abs(made.residual) <= made.tolerance:
        raise IntegrityError(
            f"The attribution does not add up: the parts sum to {made.sum_of_parts:.6g}, the logit "
            f"is {made.logit:.6g}, and {made.tolerance:.2g} is allowed.",
            "Report this with the model's name, or see `--view check`.",
        )
    return made


def summed(run: Run, ask: Ask, seen: Values | None = None) -> Attribution:
    """The same, whether or not the parts add up."""
    parts, final = written(run, ask.position, seen)
    logits = run.unembed(final[None], ask.position)[0]  # (V,)
    token = int(logits.argmax()) if ask.token is None else ask.token
    values = account(run.model, parts, final, token, ask.versus)
    logit = float(logits[token])
    if ask.versus is not None:
        logit = float(logits[token].double() - logits[ask.versus].double())
    # A part that is changed as a whole has no parts of its own: they write nothing.
    values = {part: 0.0 for (part,) in ask.also} | values
    order = sorted(values, key=lambda part: -abs(values[part]))
    n = ask.rows or len(order)
    shown = order[:n] + [part for part in order[n:] if (part,) in ask.also]
    total, size = sum(values.values()), sum(map(abs, values.values()))
    return Attribution(
        position=ask.position,
        token=run.token(token),
        versus=None if ask.versus is None else run.token(ask.versus),
        rank=rank_in(logits, token),
        prob=float(logits.softmax(dim=-1)[token]),
        logit=logit,
        n_parts=len(order),
        sum_of_parts=total,
        sum_of_absolutes=size,
        residual=logit - total,
        tolerance=size * TOLERANCE[run.model.storage],
        parts=tuple(Part(i, part, values[part]) for i, part in enumerate(shown)),
        n_rest=len(order) - len(shown),
        rest=sum(values[part] for part in order if part not in shown),
        notes=NOTES,
    )


def tensors(run: Run, ask: Ask) -> dict[str, Tensor]:
    """`part.NAME` (C,): what each part wrote into the stream at `position`."""
    parts, _ = written(run, ask.position)
    return {f"part.{name}": vector.float() for name, vector in parts.items()}


@torch.inference_mode()
def account(
    model: GPT, parts: Mapping[str, Tensor], final: Tensor, token: int, versus: int | None
) -> dict[str, float]:
    """What each part adds to the logit of `token`, or to its difference from that of `versus`.

    `parts` sum to the stream `final` (C,); the final norm's bias is a part of its own.
    """
    head = model.head.weight  # (V, C), which some layers have to unpack
    direction = head[token].double()  # (C,)
    if versus is not None:
        direction = direction - head[versus].double()
    vectors = torch.stack(list(parts.values()))  # (parts, C)
    shares = through_norm(model, vectors, final.double()) @ direction
    values = dict(zip(parts, shares.tolist(), strict=True))
    return {**values, "norm_f.bias": float(model.norm_f.bias.double() @ direction)}


@torch.inference_mode()
def written(run: Run, position: int, seen: Values | None = None) -> tuple[Values, Tensor]:
    """What each part adds to the stream at `position`, (C,) in fp64; and the final stream (C,).

    `seen` holds the run's `points`, if a forward has been made already.
    An attn_out or mlp_out that was replaced is one part, as its heads or neurons no longer made
    it; what was put into the stream itself is a part by the name of its point, L4.resid_post.
    """
    seen, touched = seen or run.record(*points(run)), _touched(run)
    here = {name: value[..., position, :].double() for name, value in seen.items()}
    parts = {name: here[name] for name in ("embed", "pos_embed")}
    for layer in range(run.config.n_layer):
        block = run.model.block(layer)
        if f"{layer}.attn_out" in touched:
            parts[f"L{layer}.attn"] = here[f"{layer}.attn_out"]
        else:
            z = here[f"{layer}.z"]  # (H, D)
            for head, vector in enumerate(torch.einsum("chd,hd->hc", block.attn.w_out.double(), z)):
                parts[f"L{layer}.H{head}"] = vector
            parts[f"L{layer}.attn.bias"] = block.attn.out.bias.double()
        if f"{layer}.mlp_out" in touched:
            parts[f"L{layer}.mlp"] = here[f"{layer}.mlp_out"]
        else:
            parts[f"L{layer}.mlp"] = block.mlp.down.weight.double() @ here[f"{layer}.mlp_post"]
            parts[f"L{layer}.mlp.bias"] = block.mlp.down.bias.double()
    if touched:
        parts |= {name: put for name, put, _ in additions(run, here) if name[1:] in touched}
    return parts, seen[run.end][position]


def points(run: Run) -> list[str]:
    """What `written` is made from."""
    around = ["*.resid_*", "*.attn_out", "*.mlp_out"] if _touched(run) else []
    return ["embed", "pos_embed", "*.z", "*.mlp_post", run.end, *around]


def _touched(run: Run) -> list[str]:
    return [point for point in run.patch if point.endswith(STREAM)]


def through_norm(model: GPT, vectors: Tensor, final: Tensor) -> Tensor:
    """The final layer norm's linear part, at the scale it has on `final` (C,): (N, C) -> (N, C).

    centre, divide by sqrt(var + eps), multiply by the gain; the bias is a part of its own.
    """
    scale = (final.var(unbiased=False) + model.config.norm_eps).sqrt()
    centred = vectors - vectors.mean(dim=-1, keepdim=True)
    return centred / scale * model.norm_f.weight.double()
