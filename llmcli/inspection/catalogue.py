"""Which views there are. Imported without torch: help, completion and errors read it.

A view is two files: `inspection/NAME.py` computes it (`view`, and `tensors` where there are any),
`render/views/NAME.py` draws it (`draw`). This table is the third and last place that knows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from llmcli.errors import UsageError, shown


@dataclass(frozen=True, slots=True)
class Entry:
    """A view's one line of help, and the options that it looks at."""

    about: str
    uses: frozenset[str]
    prompt: bool = True  # whether it is about a prompt
    long: bool = False  # whether the prompt may be longer than the context


SAMPLING = (
    "seed bias repetition_penalty presence_penalty frequency_penalty penalty_window temperature "
    "top_k top_p min_p typical_p"
)


CHANGES = "ablate knockout steer steer_prompt patch reference baseline"


def _entry(about: str, uses: str = "", prompt: bool = True, long: bool = False) -> Entry:
    always = "model json color save quiet"
    computed = f" dtype device threads {CHANGES}" if prompt else ""
    return Entry(about, frozenset(f"{always}{computed} {uses}".split()), prompt, long)


VIEWS = {
    "model": _entry("sizes, parameters, memory and FLOPs; needs no prompt", prompt=False),
    "next": _entry("the story of the next token on one screen (default)", "position rows"),
    "tokens": _entry("ids, bytes, and how the model expected each token", "position rows tensors",
                     long=True),
    "attention": _entry("all heads as small maps; with --layer and --head one in full",
                        "layer head position rows tensors"),
    "lens": _entry("the best guess after each layer; with --token its rank",
                   "position token rows tensors"),
    "attribution": _entry("a logit as a sum over embeddings, heads, MLPs and biases",
                          "position token versus rows tensors"),
    "sampling": _entry("logits, each filter, the draw, and what each stage cuts",
                       f"position rows tensors {SAMPLING}"),
    "ablation": _entry("all heads and MLPs, ranked by what a logit loses without them",
                       "position token versus rows"),
    "patching": _entry("what each place of --clean brings back when put into --corrupt",
                       "position token versus clean corrupt rows"),
    "change": _entry("what --ablate, --knockout, --steer or --patch did to the prompt",
                     "position token rows tensors"),
    "check": _entry("proof that the views, the cache and the fast path agree",
                    "position token"),
}  # fmt: skip


# What inspect shows of a trace; --trace and --diff ask for them, not --view.
TRACES = {
    "trace": _entry("a recorded run: its tokens, the improbable ones, time and totals",
                    "trace run rows", prompt=False),
    "diff": _entry("where two recorded runs part, and how far apart they were before",
                   "trace diff run rows", prompt=False),
}  # fmt: skip


def entries(names: Iterable[str]) -> dict[str, Entry]:
    """The entries of `names`, in their order, each once. Raises UsageError with nearest names."""
    found = {}
    for name in names:
        if name not in VIEWS:
            near = get_close_matches(name, VIEWS, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(
                f"There is no view called {shown(name)!r}.", f"{hint}Views: {', '.join(VIEWS)}."
            )
        found[name] = VIEWS[name]
    return found
