"""Which views there are. Imported without torch: help, completion and errors read it.

A view is two files: `inspection/NAME.py` computes it (`view`, and `tensors` where there are any),
`render/views/NAME.py` draws it (`draw`). This table is the third and last place that knows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from llmcli.errors import UsageError, shown


@dataclass(frozen=True, slots=True)
class ViewEntry:
    """A view's one line of help, and the options that it looks at."""

    about: str
    uses: frozenset[str]
    prompt: bool = True  # whether it is about a prompt
    weights: bool = True  # whether it reads them; else the header and the config are enough
    long: bool = False  # whether the prompt may be longer than the context
    plain: bool = False  # text in a pipe, too, and no rows
    proof: bool = False  # its numbers are no answer to a change
    experiment: bool = False  # it holds the changed run against the untouched by itself


SAMPLING = (
    "seed bias repetition_penalty presence_penalty frequency_penalty penalty_window temperature "
    "top_k top_p min_p typical_p"
)


CHANGES = "ablate knockout steer steer_prompt patch reference baseline"


def _entry(about: str, uses: str = "", **facts: bool) -> ViewEntry:
    entry = ViewEntry(about, frozenset(), **facts)
    always = "model json color save quiet"
    where = " dtype quantize device threads" if entry.weights else ""
    computed = where + (f" {CHANGES}" if entry.prompt else "")
    return replace(entry, uses=frozenset(f"{always}{computed} {uses}".split()))


VIEWS = {
    "model": _entry("sizes, parameters, memory and FLOPs; needs no prompt", prompt=False,
                    weights=False, plain=True, proof=True),
    "next": _entry("the story of the next token on one screen (default)", "position rows"),
    "tokens": _entry("ids, bytes, and how the model expected each token", "position rows tensors",
                     long=True),
    "attention": _entry("all heads as small maps; with --layer and --head one in full",
                        "layer head position rows tensors"),
    "head": _entry("one head at one position, step by step: q, k, softmax, v, W_O",
                   "layer head position rows tensors"),
    "lens": _entry("the best guess after each layer; with --token its rank",
                   "position token rows tensors"),
    "mlp": _entry("a layer's strongest neurons at a position, and what each writes",
                  "layer position token versus rows tensors"),
    "residual": _entry("the stream at a position: what each part adds, each layer norm",
                       "position tensors"),
    "attribution": _entry("a logit as a sum over embeddings, heads, MLPs and biases",
                          "position token versus rows tensors"),
    "sampling": _entry("logits, each filter, the draw, and what each stage cuts",
                       f"position rows tensors {SAMPLING}"),
    "circuits": _entry("what a head's weights alone say: QK, OV, composition; needs no prompt",
                       "layer head token rows tensors", prompt=False),
    "ablation": _entry("all heads and MLPs, ranked by what a logit loses without them",
                       "position token versus rows"),
    "patching": _entry("what each place of --clean brings back when put into --corrupt",
                       "position token versus clean corrupt rows"),
    "steer": _entry("a vector made from examples; or a text at growing strengths of --steer",
                    "positive negative method layer save_vector rows sweep max_new_tokens "
                    f"{SAMPLING}", experiment=True),
    "change": _entry("what --ablate, --knockout, --steer or --patch did to the prompt",
                     "position token rows tensors", experiment=True),
    "embed": _entry("each token's vector, its position's and their sum; cosines between tokens",
                    "position rows tensors"),
    "neighbors": _entry("tokens nearest to --token or --analogy; needs no prompt",
                        "token analogy rows", prompt=False),
    "positions": _entry("how alike the learned position vectors are; needs no prompt",
                        "position rows tensors", prompt=False),
    "why": _entry("a short report on a token: rank, layer, parts and words for and against",
                  "position token versus rows", plain=True),
    "explain": ViewEntry("the guided walk through the whole computation, in plain words",
                     frozenset("model json color save quiet dtype quantize device threads page all"
                               .split()), plain=True),
    "check": _entry("proof that the views, the cache and the fast path agree",
                    "position token", proof=True),
}  # fmt: skip


# What inspect shows of a trace; --trace and --diff ask for them, not --view.
TRACES = {
    "trace": _entry("a recorded run: its tokens, the improbable ones, time and totals",
                    "trace run rows", prompt=False, weights=False),
    "diff": _entry("where two recorded runs part, and how far apart they were before",
                   "trace diff run rows", prompt=False, weights=False),
}  # fmt: skip


def entries(names: Iterable[str]) -> dict[str, ViewEntry]:
    """The entries of `names`, in their order, each once. Raises UsageError with nearest names."""
    found = {}
    for name in names:
        if name not in VIEWS:
            near = get_close_matches(name, VIEWS, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            if "," in name:
                hint = "Several are asked for one by one: --view tokens --view lens. "
            raise UsageError(
                f"There is no view called {shown(name)!r}.", f"{hint}Views: {', '.join(VIEWS)}."
            )
        found[name] = VIEWS[name]
    return found
