"""A model's sizes, and the tree of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmcli.render.drawing import Canvas, columns, count, fit, footnotes, heading, nbytes
from llmcli.render.probs import bar, percent

if TYPE_CHECKING:
    from llmcli.inspection.model import Model, Module

NAME = 32
SHAPE = 18


def draw(view: Model, canvas: Canvas) -> Text:
    revision = [f"revision {view.revision[:12]}"] if view.revision else []
    out = heading("model", view.model, view.family, f"{count(view.parameters)} parameters",
                  *revision)  # fmt: skip
    out.append("\n")
    for label, value in _facts(view):
        out.append(f"  {label:<12}", style="dim")
        out.append(f"{fit(value, canvas.width - 14).rstrip()}\n")
    out.append("\n").append_text(_tree(view, canvas.width))
    return out.append_text(footnotes(view.notes, canvas.width))


def _facts(view: Model) -> list[tuple[str, str]]:
    tying = "tied to the embedding" if view.tie_embeddings else "its own weights"
    return [
        ("blocks", f"{view.n_layer} layers, {view.n_head} heads of {view.head_dim} dimensions"),
        ("width", f"{view.n_embd} in the stream, {view.mlp_dim} in the MLP ({view.activation})"),
        ("text", f"{view.vocab_size} tokens to choose from, a context of {view.n_ctx}"),
        ("output head", tying),
        ("weights", f"{nbytes(view.weights_nbytes)} stored as {view.stored_dtype}, "
                    f"{nbytes(view.fp32_nbytes)} in float32"),
        ("KV cache", f"{nbytes(view.kv_nbytes_per_token)} a token, "
                     f"{nbytes(view.kv_nbytes_full)} with the context full (float32)"),
        ("arithmetic", f"{count(view.flops_first_token)}FLOPs for the first token, "
                       f"{count(view.flops_last_token)}FLOPs for the last of a full context"),
        ("folder", view.folder),
    ]  # fmt: skip


def _tree(view: Model, width: int) -> Text:
    cells = max(6, min(40, width - NAME - SHAPE - 25))
    out = columns(("  parameters", NAME + 2), ("shape", SHAPE), ("count", -12), ("share", -7))
    trunks = _trunks(view.modules)
    for module, trunk in zip(view.modules, trunks, strict=True):
        label = module.name.split(".")[-1]
        if label == "{}":
            label = f"0 … {module.copies - 1}"
        out.append(f"  {trunk}", style="dim")
        out.append(fit(label, NAME - len(trunk)), style="" if module.shape else "bold")
        shape = " × ".join(map(str, module.shape))
        times = f"  ×{module.copies}" if module.copies > 1 and module.shape else ""
        out.append(f" {fit(shape + times, SHAPE)} {module.parameters:>12,} ",
                   style="default not bold")  # fmt: skip
        out.append(f"{percent(module.share)} ", style="default not bold")
        out.append(f"{bar(module.share, cells).rstrip()}\n", style="blue")
    return out


def _trunks(modules: tuple[Module, ...]) -> list[str]:
    """The lines that join each module to its parent: "├─ ", "│  └─ "."""
    trunks = []
    for i, module in enumerate(modules):
        if module.depth == 0:
            trunks.append("")
            continue
        parts = []
        for depth in range(1, module.depth + 1):
            after = next((m.depth for m in modules[i + 1 :] if m.depth <= depth), 0)
            more = after == depth
            own = depth == module.depth
            parts.append(("├─ " if more else "└─ ") if own else ("│  " if more else "   "))
        trunks.append("".join(parts))
    return trunks
