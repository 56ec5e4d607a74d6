"""Holds `inspect` against TransformerLens: `python tools/check_lens.py [FOLDER ...]`.

Patterns, lens, attribution, head roles, and the logits (relative to the largest of them) under
ablation, knock-out, steering and patching, of each GPT-2 folder (by default the embedded model),
computed here and there; prints the largest differences, and fails above 1e-3. TransformerLens is
no dependency of the project: run this from an environment that has it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig
from transformer_lens.head_detector import detect_head
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

from llmcli.config import ModelConfig, read_config
from llmcli.gpt.tap import Probe
from llmcli.gpt.weights import load_model
from llmcli.hub import EMBEDDED
from llmcli.inspection import attention, attribution, lens
from llmcli.inspection.ask import Ask
from llmcli.inspection.intervention import patches
from llmcli.inspection.plan import Prompt, plan, read
from llmcli.inspection.run import Run

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}
THEIR_ROLES = {
    "previous": "previous_token_head",
    "duplicate": "duplicate_token_head",
    "induction": "induction_head",
}
TOLERANCE = 1e-3
Hook = Callable[[Tensor, Any], Tensor]


def theirs(folder: Path, config: ModelConfig, fold_ln: bool) -> HookedTransformer:
    """The same checkpoint in TransformerLens, nothing changed but what `fold_ln` folds."""
    cfg = HookedTransformerConfig(
        n_layers=config.n_layer, d_model=config.n_embd, n_ctx=config.n_ctx, d_head=config.head_dim,
        n_heads=config.n_head, d_mlp=config.mlp_dim, d_vocab=config.vocab_size, eps=config.norm_eps,
        act_fn=ACTIVATIONS[config.activation], normalization_type="LN", device="cpu",
    )  # fmt: skip
    model = HookedTransformer(cfg)
    hf = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf, cfg), fold_ln=fold_ln, center_writing_weights=False,
        center_unembed=False, fold_value_biases=False,
    )  # fmt: skip
    return model.eval()


def ids_for(vocab_size: int, n: int) -> list[int]:
    """Random ids, repeated once, so that duplicate and induction heads have something to find."""
    half = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))[: n // 2]
    return [*half.tolist(), *half.tolist()]


def differences(folder: Path) -> dict[str, float]:
    """The largest absolute difference of each quantity."""
    config = read_config(folder)
    ids = ids_for(config.vocab_size, min(40, config.n_ctx))
    run = Run(load_model(folder, config), ids, lambda id: b"")
    ask = Ask(position=len(ids) - 1)
    with torch.inference_mode():
        model = theirs(folder, config, fold_ln=False)
        _, cache = model.run_with_cache(torch.tensor([ids]))
        folded = theirs(folder, config, fold_ln=True)
        _, folded_cache = folded.run_with_cache(torch.tensor([ids]))
        patterns = attention.patterns(run, ask)
        return {
            "patterns": max(
                far(pattern, cache["pattern", layer][0]) for layer, pattern in patterns.items()
            ),
            "lens logits": _lens(run, model, cache),
            "attribution": _attribution(run, folded, folded_cache, ids),
            "roles": _roles(run, model, cache.remove_batch_dim(), patterns),
            **_changed(run, model),
        }


def _lens(run: Run, model: HookedTransformer, cache: ActivationCache) -> float:
    """`accumulated_resid` is the stream before each layer and after the last."""
    streams = cache.accumulated_resid(incl_mid=False, apply_ln=False)[:, 0]  # (L + 1, T, C)
    return max(
        far(lens.lens_logits(run.model, ours), model.unembed(model.ln_final(stream[None]))[0])
        for ours, stream in zip(lens.stream_after(run).values(), streams, strict=True)
    )


def _attribution(
    run: Run, model: HookedTransformer, cache: ActivationCache, ids: list[int]
) -> float:
    """Their direct logit attribution needs the norm's gain folded into the output head."""
    position, token = len(ids) - 1, ids[0]
    parts, final = attribution.written(run, position)
    ours = attribution.account(run.model, parts, final, token, None)
    heads, names = cache.stack_head_results(pos_slice=position, return_labels=True)
    rest, rest_names = cache.decompose_resid(
        mode="mlp", pos_slice=position, incl_embeds=True, return_labels=True
    )
    stack = torch.cat([heads, rest])  # (parts, 1, C)
    values = cache.logit_attrs(stack, tokens=token, pos_slice=position)[:, 0]
    worst = 0.0
    for name, value in zip([*names, *rest_names], values.tolist(), strict=True):
        if name.endswith("mlp_out") or "MLP" in name:
            layer = int("".join(c for c in name.split("_")[0] if c.isdigit()))
            mine = ours[f"L{layer}.mlp"] + ours[f"L{layer}.mlp.bias"]
        elif "H" in name:
            layer, head = name.removeprefix("L").split("H")
            mine = ours[f"L{layer}.H{head}"]
        else:
            mine = ours[name]
        worst = max(worst, abs(mine - value))
    return worst


def _roles(
    run: Run,
    model: HookedTransformer,
    cache: ActivationCache,
    patterns: dict[int, torch.Tensor],
) -> float:
    """Their share is of all positions, ours of those at which the role can show."""
    ids = torch.tensor(list(run.ids))
    model.to_tokens = lambda text, **_: ids[None]  # they take text; this model has no tokenizer
    keys = attention.role_keys(ids)
    worst = 0.0
    for role, places in keys.items():
        pattern = THEIR_ROLES.get(role, places.float())
        found = detect_head(model, "given as ids", pattern, cache=cache, error_measure="mul")
        part = int(places.any(dim=-1).sum()) / len(ids)
        for layer, weights in patterns.items():
            ours = attention.role_scores(weights, keys)[role]
            assert ours is not None
            worst = max(worst, far(part * torch.tensor(ours), found[layer]))
    return worst


def _changed(run: Run, model: HookedTransformer) -> dict[str, float]:
    """The logits under each kind of change: ours by its grammar, theirs by a hook."""
    ids = list(run.ids)
    other, plus, minus = ids[::-1], ids[3:8], ids[9:12]
    _, cache = model.run_with_cache(torch.tensor([ids]))
    _, elsewhere = model.run_with_cache(torch.tensor([other]))
    texts = {"other": other, "plus": plus, "minus": minus}
    prompt = Prompt(ids, texts.__getitem__, run.token_bytes)
    at = f"blocks.{(layer := run.config.n_layer // 2)}"
    means = [
        model.run_with_cache(torch.tensor([some]))[1][f"{at}.hook_resid_post"][0].mean(dim=0)
        for some in (plus, minus)
    ]
    vector, T = means[0] - means[1], len(ids)
    cases: dict[str, list[tuple[dict[str, Any], dict[str, Hook]]]] = {
        "ablation": [
            ({"ablate": [f"L{layer}.H1"]}, {f"{at}.attn.hook_z": put((..., 1, slice(None)), 0)}),
            ({"ablate": [f"L{layer}.mlp"]}, {f"{at}.hook_mlp_out": put(..., 0)}),
            ({"ablate": [f"L{layer}.N5"]}, {f"{at}.mlp.hook_post": put((..., 5), 0)}),
            ({"ablate": [f"L{layer}"]},
             {f"{at}.hook_mlp_out": put(..., 0), f"{at}.hook_attn_out": put(..., 0)}),
            ({"ablate": ["pos_embed"]}, {"hook_pos_embed": put(..., 0)}),
        ],
        "mean ablation": [
            ({"ablate": [f"L{layer}.H1:mean"]},
             {f"{at}.attn.hook_z": put((..., 1, slice(None)), cache["z", layer][0, :, 1].mean(0))}),
            ({"ablate": [f"L{layer}.mlp:mean"]},
             {f"{at}.hook_mlp_out": put(..., cache["mlp_out", layer][0].mean(0))}),
        ],
        "knock-out": [
            ({"knockout": [f"L{layer}.H2: 9 -> 4"]},
             {f"{at}.attn.hook_attn_scores": put((0, 2, 9, 4), -math.inf)}),
            ({"knockout": ["* -> 3"]},
             {f"blocks.{i}.attn.hook_attn_scores": put((..., slice(4, None), 3), -math.inf)
              for i in range(run.config.n_layer)}),
        ],
        "steering": [
            ({"steer": [f'"plus" - "minus" @ L{layer} * 3']},
             {f"{at}.hook_resid_post": add((0, T - 1), 3 * vector)}),
            ({"steer": [f'"plus" - "minus" @ L{layer} * -2'], "steer_prompt": True},
             {f"{at}.hook_resid_post": add(..., -2 * vector)}),
        ],
        "patching": [
            ({"patch": [f'L{layer}.resid_mid@5 from "other"']},
             {f"{at}.hook_resid_mid": put((0, 5), elsewhere["resid_mid", layer][0, 5])}),
            ({"patch": [f'L{layer}.H3@* from "other"']},
             {f"{at}.attn.hook_z": put((..., 3, slice(None)), elsewhere["z", layer][..., 3, :])}),
        ],
    }  # fmt: skip
    return {
        name: max(_under(run, model, prompt, options, hooks) for options, hooks in some)
        for name, some in cases.items()
    }


def _under(
    run: Run, model: HookedTransformer, prompt: Prompt, options: dict[str, Any], hooks: dict
) -> float:
    """How far the logits under our `options` are from those under their `hooks`."""
    wanted = plan(read(run.config, **options), prompt, run.config)
    probe = Probe(run.config.n_layer, patch=patches(run.model, wanted, run.ids))
    ids = torch.tensor([list(run.ids)])
    ours, plain = run.model(ids, tap=probe), run.model(ids)
    wanted_logits = model.run_with_hooks(ids, fwd_hooks=list(hooks.items()))
    assert far(ours, plain) > 1e-2, f"{options} changes nothing"
    return far(ours, wanted_logits) / float(plain.abs().max())


def put(where: Any, value: Tensor | float) -> Hook:
    """A hook that sets some of a value."""

    def hook(here: Tensor, hook: Any) -> Tensor:
        here = here.clone()
        here[where] = value
        return here

    return hook


def add(where: Any, value: Tensor) -> Hook:
    """A hook that adds to some of a value."""

    def hook(here: Tensor, hook: Any) -> Tensor:
        here = here.clone()
        here[where] += value
        return here

    return hook


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]] or [EMBEDDED["fable"]]
    worst = 0.0
    for folder in folders:
        found = differences(folder)
        print(folder.name, *(f"{name} {value:.1e}" for name, value in found.items()), sep="  ")
        worst = max([worst, *(v if math.isfinite(v) else math.inf for v in found.values())])
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
