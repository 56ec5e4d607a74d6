"""Which views there are. Imported without torch: completion, errors and --baseline read it.

A view is two files: `inspection/NAME.py` computes it (`view`, and `tensors` where there are any),
`render/views/NAME.py` draws it (`draw`). A row here makes it one; its line stands in the docstring
of `commands/inspect.py`, too, which is the help (a test compares them), and the README tells of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from llmcli.config import Sampling
from llmcli.errors import UsageError, shown

if TYPE_CHECKING:
    from llmcli.inspection.ask import Ask
    from llmcli.inspection.run import Run
    from llmcli.inspection.values import View

ALWAYS = "model json color save quiet"
COMPUTING = "dtype quantize device threads"
CHANGING = "ablate knockout steer steer_prompt patch reference baseline"
SAMPLING = " ".join(["seed", *(field.name for field in fields(Sampling))])


@dataclass(frozen=True, slots=True)
class ViewEntry:
    """A view's one line of help, and the options that it looks at."""

    about: str
    own: str = ""  # options that not every view looks at
    prompt: bool = True  # whether it is about a prompt
    weights: bool = True  # whether it reads them; else the header and the config are enough
    changes: bool = True  # whether the run of its prompt may be changed
    long: bool = False  # whether the prompt may be longer than the context
    plain: bool = False  # text in a pipe, too, and no rows
    proof: bool = False  # not compared under --baseline
    experiment: bool = False  # compares with the untouched run itself: --baseline makes no second

    @property
    def uses(self) -> frozenset[str]:
        """All the options that it looks at."""
        computing = COMPUTING if self.weights else ""
        changing = CHANGING if self.prompt and self.changes else ""
        return frozenset(f"{ALWAYS} {computing} {changing} {self.own}".split())


VIEWS = {
    "model": ViewEntry("sizes, parameters, memory and FLOPs; needs no prompt", prompt=False,
                       weights=False, plain=True, proof=True),
    "next": ViewEntry("the story of the next token on one screen (default)", "position rows"),
    "tokens": ViewEntry("ids, bytes, and how the model expected each token",
                        "position rows tensors", long=True),
    "attention": ViewEntry("all heads as small maps; with --layer and --head one in full",
                           "layer head position rows tensors"),
    "head": ViewEntry("one head at one position, step by step: q, k, softmax, v, W_O",
                      "layer head position rows tensors"),
    "lens": ViewEntry("the best guess after each layer; with --token its rank",
                      "position token rows tensors"),
    "mlp": ViewEntry("a layer's strongest neurons at a position, and what each writes",
                     "layer position token versus rows tensors"),
    "residual": ViewEntry("the stream at a position: what each part adds, each layer norm",
                          "position tensors"),
    "attribution": ViewEntry("a logit as a sum over embeddings, heads, MLPs and biases",
                             "position token versus rows tensors"),
    "sampling": ViewEntry("logits, each filter, the draw, and what each stage cuts",
                          f"position rows tensors {SAMPLING}"),
    "circuits": ViewEntry("a head's weights alone: QK, OV, composition; needs no prompt",
                          "layer head token rows tensors", prompt=False),
    "ablation": ViewEntry("all heads and MLPs, ranked by what a logit loses without them",
                          "position token versus rows"),
    "patching": ViewEntry("what each place of --clean brings back when put into --corrupt",
                          "position token versus clean corrupt rows"),
    "steer": ViewEntry("a vector made from examples; or a text at growing strengths",
                       "positive negative method layer save_vector rows sweep max_new_tokens "
                       f"{SAMPLING}", experiment=True),
    "change": ViewEntry("what --ablate, --knockout, --steer or --patch did to the prompt",
                        "position token rows tensors", experiment=True),
    "embed": ViewEntry("token and position vectors, their sum; cosines of tokens",
                       "position rows tensors"),
    "neighbors": ViewEntry("tokens nearest to --token or --analogy; needs no prompt",
                           "token analogy rows", prompt=False),
    "positions": ViewEntry("how alike the learned position vectors are; needs no prompt",
                           "position rows tensors", prompt=False),
    "why": ViewEntry("a short report on a token: parts and words for and against",
                     "position token versus rows", plain=True),
    "explain": ViewEntry("the guided walk through the whole computation, in plain words",
                         "page all layer head", changes=False, plain=True),
    "check": ViewEntry("proof that the views, the cache and the fast path agree",
                       "position token", proof=True),
}  # fmt: skip


# What inspect shows of a trace; --trace and --diff ask for them, not --view.
TRACES = {
    "trace": ViewEntry("a recorded run: its tokens, the improbable ones, time and totals",
                       "trace run rows", prompt=False, weights=False),
    "diff": ViewEntry("where two recorded runs part, and how far apart they were before",
                      "trace diff run rows", prompt=False, weights=False),
}  # fmt: skip


class Computing(Protocol):
    """A module that computes a view; `tensors` and `cost`, where it has them, take the same."""

    def view(self, run: Run, ask: Ask) -> View: ...


def computing(name: str) -> Computing:
    """The module that computes a view of a prompt or of weights; with it comes torch."""
    return cast(Computing, import_module(f"llmcli.inspection.{name}"))


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
