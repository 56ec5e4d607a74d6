"""A model's sizes, and the tree of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import (
    Canvas,
    bar,
    columns,
    count,
    deeper,
    fit,
    footnotes,
    heading,
    percent,
    tail,
)
from llmcli.units import plural, sized

if TYPE_CHECKING:
    from llmcli.inspection.model import Model, Module

NAME = 22
SHAPE = 23


def draw(view: Model, canvas: Canvas) -> Text:
    revision = [f"revision {view.revision[:12]}"] if view.revision else []
    size = f"{count(view.parameters)} parameters"
    out = heading("model", tail(view.model, 36), view.family, size, *revision, width=canvas.width)
    out.append("\n")
    for label, value in _facts(view):
        out.append(f"  {label:<12}", style="dim")
        out.append(f"{fit(value, canvas.width - 14).rstrip()}\n")
    out.append("\n").append_text(_tree(view, canvas.width))
    out.append_text(footnotes(view.notes, canvas.width))
    return out.append_text(deeper(canvas, 'inspect "Once upon a time"'))


def _facts(view: Model) -> list[tuple[str, str]]:
    tying = "tied to the embedding" if view.tie_embeddings else "its own weights"
    return [
        ("blocks", f"{plural(view.n_layer, 'layer')}, {plural(view.n_head, 'head')} of "
                   f"{view.head_dim} dimensions"),
        ("width", f"{view.n_embd} in the stream, {view.mlp_dim} in the MLP ({view.activation})"),
        ("text", f"{view.vocab_size} tokens to choose from, a context of {view.n_ctx}"),
        ("output head", tying),
        ("weights", f"{sized(view.weights_nbytes)} stored as {view.stored_dtype}, "
                    f"{sized(view.fp32_nbytes)} in float32"),
        ("KV cache", f"{sized(view.kv_nbytes_per_token)} a token, "
                     f"{sized(view.kv_nbytes_full)} with the context full (float32)"),
        ("arithmetic", f"{count(view.flops_first_token)}FLOPs for a first token, "
                       f"{count(view.flops_last_token)}FLOPs with the context full"),
        ("folder", view.folder),
    ]  # fmt: skip


def _tree(view: Model, width: int) -> Text:
    cells = max(6, min(40, width - NAME - SHAPE - 25))
    out = columns(("  parameters", NAME + 2), ("shape", SHAPE), ("count", -12), ("share", -7))
    lines = _folded(view.modules)
    for line, trunk in zip(lines, _trunks([line.depth for line in lines]), strict=True):
        module = line.module
        out.append(f"  {trunk}", style="dim")
        out.append(fit(line.label, NAME - len(trunk)), style="" if line.shape else "bold")
        times = f"  ×{module.copies}" if module.copies > 1 and line.shape else ""
        out.append(f" {fit(line.shape + times, SHAPE)} {module.parameters:>12,} ")
        out.append(f"{percent(module.share)} ")
        out.append(f"{bar(module.share, cells).rstrip()}\n", style="blue")
    return out


@dataclass(frozen=True, slots=True)
class _Line:
    label: str
    depth: int
    shape: str  # "256 × 768 + 768": a weight and its bias
    module: Module


def _folded(modules: tuple[Module, ...]) -> list[_Line]:
    """A line per module: its weight and bias stand in it, and an only child joins its parent."""
    children: dict[str, list[Module]] = {}
    for module in modules:
        children.setdefault(module.name.rpartition(".")[0], []).append(module)

    def lines(module: Module, label: str, depth: int) -> list[_Line]:
        inside = children.get(module.name, [])
        if len(inside) == 1 and not inside[0].shape:
            last = inside[0].name.split(".")[-1]
            copies = _numbered(inside[0].copies) if last == "{}" else last
            return lines(inside[0], f"{label}.{copies}", depth)
        if inside and all(child.shape for child in inside):
            ordered = sorted(inside, key=lambda child: (-len(child.shape), child.name))
            shapes = [" × ".join(map(str, child.shape)) for child in ordered]
            return [_Line(label, depth, " + ".join(shapes), module)]
        own = [_Line(label, depth, " × ".join(map(str, module.shape)), module)]
        return own + [
            line for child in inside for line in lines(child, child.name.split(".")[-1], depth + 1)
        ]

    top = [module for module in modules if module.depth == 0]
    return [line for module in top for line in lines(module, module.name.split(".")[-1], 0)]


def _numbered(copies: int) -> str:
    """Which layers a line stands for."""
    return "0" if copies == 1 else f"0 … {copies - 1}"


def _trunks(depths: list[int]) -> list[str]:
    """The lines that join each module to its parent: "├─ ", "│  └─ "."""
    trunks = []
    for i, own_depth in enumerate(depths):
        parts = []
        for depth in range(1, own_depth + 1):
            after = next((d for d in depths[i + 1 :] if d <= depth), 0)
            more = after == depth
            own = depth == own_depth
            parts.append(("├─ " if more else "└─ ") if own else ("│  " if more else "   "))
        trunks.append("".join(parts))
    return trunks
