"""How every intermediate value of the forward pass is seen or replaced.

A tap is handed down the forward like the cache; the model calls it at each named point and goes on
with what it returns. This file knows names and shapes, nothing of models. The vocabulary of the
residual stream follows "A Mathematical Framework for Transformer Circuits" (Elhage et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor

from llmcli.errors import UsageError

# B batch, T tokens in this call, S tokens seen, C n_embd, H n_head, D head_dim, M mlp_dim, V vocab
STEM_POINTS = {
    "embed": "(B, T, C)  token vectors",
    "pos_embed": "(B, T, C)  position vectors",
}
LAYER_POINTS = {
    "resid_pre": "(B, T, C)  residual stream entering the block",
    "norm_1": "(B, T, C)  layer norm before attention",
    "q": "(B, H, T, D)  queries",
    "k": "(B, H, T, D)  keys of this call's tokens",
    "v": "(B, H, T, D)  values of this call's tokens",
    "scores": "(B, H, T, S)  scaled q.k, -inf where the causal mask forbids",
    "pattern": "(B, H, T, S)  softmax of the scores",
    "z": "(B, H, T, D)  values weighted by the pattern",
    "attn_out": "(B, T, C)  heads projected into the stream",
    "resid_mid": "(B, T, C)  residual stream after attention",
    "norm_2": "(B, T, C)  layer norm before the MLP",
    "mlp_pre": "(B, T, M)  neurons before the activation",
    "mlp_post": "(B, T, M)  neurons after the activation",
    "mlp_out": "(B, T, C)  MLP projected into the stream",
    "resid_post": "(B, T, C)  residual stream leaving the block",
}
HEAD_POINTS = {
    "norm_f": "(B, T, C)  final layer norm",
    "logits": "(B, T, V)  one score per vocabulary entry",
}

Patch = Callable[[Tensor, int], Tensor]
"""Maps a value and the position of its first token to the value to go on with."""


def points(n_layer: int) -> list[str]:
    """Every point of a model with `n_layer` layers, in the order the forward meets them."""
    layers = [f"{layer}.{name}" for layer in range(n_layer) for name in LAYER_POINTS]
    return [*STEM_POINTS, *layers, *HEAD_POINTS]


class Tap:
    """Sees nothing and changes nothing."""

    def at(self, start: int, layer: int | None = None) -> Tap:
        """This tap for one layer (None: outside the layers) of a call that begins at `start`."""
        return self

    def wants(self, name: str) -> bool:
        """Whether `name` is recorded or replaced here; values made only for a tap ask first."""
        return False

    def __call__(self, name: str, value: Tensor) -> Tensor:
        return value


class Probe(Tap):
    """Replaces, then keeps, values by name: `Probe(3, record=["1.pattern", "*.resid_post"])`.

    `record` takes names or `*` globs, `patch` names; `values` holds what the last call that reached
    each point made of it, unchanged and not copied. Raises UsageError on a name without a point.
    """

    def __init__(
        self,
        n_layer: int,
        record: Iterable[str] = (),
        patch: Mapping[str, Patch] | None = None,
    ) -> None:
        valid = points(n_layer)
        self.record = {name for pattern in record for name in _matches(pattern, valid)}
        self.patch = {
            name: function
            for pattern, function in (patch or {}).items()
            for name in _matches(pattern, valid)
        }
        self.values: dict[str, Tensor] = {}

    def at(self, start: int, layer: int | None = None) -> Tap:
        return _ProbeAt(self, start, "" if layer is None else f"{layer}.")


class _ProbeAt(Tap):
    """A probe that knows where in the forward it is."""

    def __init__(self, probe: Probe, start: int, prefix: str) -> None:
        self.probe, self.start, self.prefix = probe, start, prefix

    def wants(self, name: str) -> bool:
        name = self.prefix + name
        return name in self.probe.record or name in self.probe.patch

    def __call__(self, name: str, value: Tensor) -> Tensor:
        name = self.prefix + name
        if name in self.probe.patch:
            value = self.probe.patch[name](value, self.start)
        if name in self.probe.record:
            self.probe.values[name] = value
        return value


def _matches(pattern: str, valid: list[str]) -> list[str]:
    if found := [name for name in valid if fnmatchcase(name, pattern)]:
        return found
    near = get_close_matches(pattern, valid, n=3)
    per_layer = ", ".join(LAYER_POINTS)
    raise UsageError(
        f"There is no point {pattern!r} in this model.",
        (f"Did you mean {' or '.join(near)}? " if near else "")
        + f"Points: {', '.join(STEM_POINTS)}; in each layer, as in 0.resid_pre: {per_layer}; "
        + f"{', '.join(HEAD_POINTS)}.",
    )
