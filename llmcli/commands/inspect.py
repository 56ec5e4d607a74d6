"""`llmcli inspect`: the computation behind the next token, step by step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from llmcli.commands import inspect_options as i
from llmcli.commands import options as o
from llmcli.commands.say import say, say_narrow
from llmcli.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from llmcli.inspection.catalogue import ViewEntry

Group = TypeVar("Group", i.Where, i.OneView, o.Drawing, o.Interventions)


@o.grouped
def inspect(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to look into; - or a pipe reads stdin.")
    ] = None,
    view: i.Views = None,
    model: o.Model = "fable",
    where: i.Where = i.Where(),
    one_view: i.OneView = i.OneView(),
    recorded: i.Recorded = i.Recorded(),
    interventions: o.Interventions = o.Interventions(),
    baseline: o.Baseline = False,
    drawing: o.Drawing = o.Drawing(),
    seed: i.Seed = None,
    compute: o.Compute = o.Compute(dtype=o.DType.float32),
    tensors: i.TensorsFile = None,
    save: i.SaveFile = None,
    json: o.Json = False,
    color: o.Color = o.ColorMode.auto,
    quiet: o.Quiet = False,
) -> None:
    """See how a prompt leads to the next token.

    llmcli inspect "Once upon a time"

    llmcli inspect "Once upon a time" --view attention --layer 2 --head 1

    llmcli inspect "Once upon a time" --view attribution --token " there" --json

    llmcli inspect "Lily had a red ball. She" --ablate L3.H2 --baseline

    llmcli inspect --trace run.jsonl --step 7 --view sampling

    \b
    Views (without a prompt: model):
      next         the story of the next token on one screen (default)
      tokens       ids, bytes, and how the model expected each token
      attention    all heads as small maps; with --layer and --head one in full
      head         one head at one position, step by step: q, k, softmax, v, W_O
      lens         the best guess after each layer; with --token its rank
      mlp          a layer's strongest neurons at a position, and what each writes
      residual     the stream at a position: what each part adds, each layer norm
      attribution  a logit as a sum over embeddings, heads, MLPs and biases
      sampling     logits, each filter, the draw, and what each stage cuts
      circuits     a head's weights alone: QK, OV, composition; needs no prompt
      ablation     all heads and MLPs, ranked by what a logit loses without them
      patching     what each place of --clean brings back when put into --corrupt
      steer        a vector made from examples; or a text at growing strengths
      change       what --ablate, --knockout, --steer or --patch did to the prompt
      embed        token and position vectors, their sum; cosines of tokens
      neighbors    tokens nearest to --token or --analogy; needs no prompt
      positions    how alike the learned position vectors are; needs no prompt
      why          a short report on a token: parts and words for and against
      explain      the guided walk through the whole computation, in plain words
      check        proof that the views, the cache and the fast path agree
      model        sizes, parameters, memory and FLOPs; needs no prompt

    --trace alone shows a run that generate --trace recorded; with --step, any view of that step.

    Layers, heads and positions count from 0, negative ones from the end. On a terminal a view is a
    picture, in a pipe it is TSV. The sampling options are those of generate.
    """
    from llmcli.commands import inspect_output as output
    from llmcli.commands import inspect_trace as traces
    from llmcli.commands.files import check_writable, refuse_inputs
    from llmcli.commands.input import is_piped, read_text
    from llmcli.commands.inspect_request import Request
    from llmcli.commands.inspect_steer import check_steer
    from llmcli.commands.recorded import open_past
    from llmcli.inspection.catalogue import entries

    typed = o.typed_names(ctx)
    if one_view.clean is not None:
        if prompt is not None:
            raise UsageError(
                "--clean is the prompt; there is one already.", "Leave one of them out."
            )
        prompt = one_view.clean
    if not view and (one_view.page is not None or one_view.all):
        view = ["explain"]
    none = prompt is None and recorded.trace is None and not view
    piped = read_text("-", "") if none and is_piped() else ""
    traces.check_options(recorded, prompt, view)
    if recorded.trace is not None:
        wanted = traces.wanted(recorded, view)
    else:
        wanted = entries(view or (["next"] if prompt is not None or piped else ["model"]))
    check_writable("--save", save, (".svg", ".html"))
    check_writable("--tensors", tensors, (".safetensors",))
    check_writable("--save-vector", one_view.save_vector, (".safetensors",))
    read = [recorded.trace, recorded.diff, one_view.positive, one_view.negative,
            interventions.reference]  # fmt: skip
    refuse_inputs("--save", save, read)
    refuse_inputs("--tensors", tensors, read)
    if "steer" in wanted:
        check_steer(wanted, typed, prompt)
    of_prompt = any(entry.prompt for entry in wanted.values())
    unused = _unused(wanted, typed, prompt, of_prompt, quiet)
    where, one_view = _without(where, unused), _without(one_view, unused)
    drawing, interventions = _without(drawing, unused), _without(interventions, unused)
    if where.versus is not None and where.token is None:
        raise UsageError("--versus needs --token.", 'For example: --token " he" --versus " she"')
    draws = not json and o.pictured(color)
    canvas = output.canvas_for(color, where.rows) if draws else None
    if canvas is not None and not quiet:
        say_narrow()
    again = o.words_of(typed, model=model, **asdict(compute))
    past, changed = None, interventions
    if recorded.trace is not None and recorded.step is not None:
        named = model if "model" in typed else None
        run = open_past(recorded.trace, recorded.run or 0, named, quiet)
        past, model = run.step(recorded.step), run.opened.name
        compute, changed = run.compute(compute, typed), run.interventions(interventions)
    changed.check_baseline(baseline and of_prompt)
    if recorded.trace is not None and past is None:
        made = traces.overview(recorded, where.rows, quiet)
    else:
        made = Request(
            model, again, prompt, piped, where, one_view, interventions, changed, baseline, drawing,
            seed, compute, tensors, canvas, quiet, past,
        ).views(wanted)  # fmt: skip
    output.show(made, canvas, color, json)
    if save is not None:
        output.save_pictures(made, save, output.canvas_for(color, where.rows))
    if any(getattr(shown, "passed", True) is False for shown in made.all):
        raise IntegrityError(
            "A check failed: see the line that says FAIL.",
            "Its numbers are not to be trusted here; --device cpu --dtype float32 may pass.",
        )
    if past is not None and of_prompt:
        traces.tell_held(made.held, past, quiet)


FILES = ("tensors", "save_vector")  # who names a file waits for it


def _unused(
    wanted: dict[str, ViewEntry], typed: list[str], prompt: str | None, of_prompt: bool, quiet: bool
) -> list[str]:
    """The options that none of the views looks at, said; UsageError where one names a file."""
    from llmcli.inspection.catalogue import VIEWS

    used = {"view", "prompt"}.union(*(entry.uses for entry in wanted.values()))
    if of_prompt:
        used.add("clean")
    if "baseline" in typed and of_prompt:
        used |= VIEWS["change"].uses  # which --baseline adds
    if "step" in typed:
        used |= {"trace", "step", "run"}
    unused = [name for name in typed if name not in used]
    of = "--trace" if "trace" in wanted or "diff" in wanted else f"--view {', '.join(wanted)}"
    for name in FILES:
        if name in unused:
            able = [view for view, entry in VIEWS.items() if name in entry.uses]
            raise UsageError(
                f"{o.spelled(name)}: {of} has nothing to write there.",
                f"Views{' of a --step' * (of == '--trace')} that have: {', '.join(able)}.",
            )
    words = [o.spelled(name) for name in unused]
    if prompt is not None and not of_prompt:
        words.insert(0, "the prompt")
    if words and not quiet:
        say(f"Not used by {of}: {', '.join(words)}.")
    return unused


def _without(group: Group, unused: Collection[str]) -> Group:
    """A group of options as if `unused` ones had not been typed: their values are never read."""
    left: dict[str, Any] = {f.name: f.default for f in fields(group) if f.name in unused}
    return replace(group, **left)
