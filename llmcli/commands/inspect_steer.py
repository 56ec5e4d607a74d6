"""`inspect --view steer`: files of examples made into a vector, or the strengths to try one at."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.commands.input import read_file
from llmcli.commands.made import Made, noted
from llmcli.commands.options import spelled
from llmcli.errors import UsageError, shown, shown_path

if TYPE_CHECKING:
    from llmcli.commands.inspect_request import Request
    from llmcli.commands.loading import Opened
    from llmcli.config import Sampling
    from llmcli.inspection.ask import Sweep
    from llmcli.inspection.plan import Example, Plan

MAX_EXAMPLES_NBYTES = 16 << 20
MAX_STRENGTHS = 100
MAKES = ("negative", "method", "save_vector")  # what --positive goes with
TRIES = ("sweep", "max_new_tokens", "steer", "steer_prompt", "ablate", "knockout", "patch",
         "reference", "baseline")  # fmt: skip
HOW_TO_TRY = "Sweep the vector once it is saved: --steer 'v.safetensors @ L4 * 1' --sweep 0.5,1,2"
HOW_TO_MAKE = "For example: --positive A.txt --negative B.txt --layer 4"


def check_steer(wanted: Collection[str], typed: Collection[str], prompt: str | None) -> None:
    """Refuse what belongs to the other of the view's two uses, before anything is read."""
    from llmcli.inspection.catalogue import SAMPLING

    if "positive" not in typed:
        if lone := next((name for name in MAKES if name in typed), None):
            raise UsageError(f"{spelled(lone)} needs --positive.", HOW_TO_MAKE)
        return
    for name in ("negative", "layer"):
        if name not in typed:
            raise UsageError(f"--positive needs --{name}.", HOW_TO_MAKE)
    if prompt is not None:
        raise UsageError("--positive makes a vector, which needs no prompt.", HOW_TO_TRY)
    if len(wanted) > 1:
        raise UsageError("--positive makes a vector: --view steer stands alone.", HOW_TO_TRY)
    if other := next((name for name in (*TRIES, *SAMPLING.split()) if name in typed), None):
        raise UsageError(f"--positive makes a vector; {spelled(other)} is for one.", HOW_TO_TRY)


def sweep_of(request: Request, plan: Plan, sampling: Sampling) -> Sweep:
    """What to try, from --steer and --sweep: greedily, unless an option says how to draw.

    Raises UsageError where that is not one vector.
    """
    from llmcli.commands.loading import CUTS

    if len(plan.vectors) != 1:
        raise UsageError(
            f"--view steer tries one vector: it needs one --steer, and has {len(plan.vectors)}.",
            'For example: --steer \'" water" - " fire" @ L5 * 1\' --sweep 0.5,1,2. To make one: '
            "--positive A.txt --negative B.txt --layer 4",
        )
    sweep, n_tokens = request.one_view.sweep, request.one_view.max_new_tokens
    strengths = _strengths("0.25,0.5,1,2" if sweep is None else sweep, plan.vectors[0].strength)
    said = [request.seed, *(getattr(request.drawing, name) for name in ("temperature", *CUTS))]
    if all(value is None for value in said):
        sampling = replace(sampling, temperature=0.0)
    from llmcli.inspection.ask import Sweep

    return Sweep(plan, strengths, n_tokens or 40, sampling)


def _strengths(text: str, once: float) -> tuple[float, ...]:
    from llmcli.inspection.grammar import MAX_STRENGTH

    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = float("nan")
        if not abs(value * once) <= MAX_STRENGTH:
            raise UsageError(
                f"--sweep: {shown(part)!r} is not a strength.",
                f"Numbers with commas between them, as in 0.5,1,2; at most {MAX_STRENGTH:.0f}.",
            )
        found.append(value)
    if len(found) > MAX_STRENGTHS:
        raise UsageError(f"--sweep takes at most {MAX_STRENGTHS} strengths.", "Try fewer.")
    return tuple(found)


def vector_from_examples(request: Request) -> Made:
    """The view of the vector that --positive and --negative make; --save-vector keeps it."""
    from llmcli.commands.files import refuse_inputs, write
    from llmcli.commands.inspect_target import index
    from llmcli.commands.loading import model_json, open_model

    given = request.one_view
    assert given.positive is not None  # check_steer saw to it
    assert given.negative is not None
    opened = open_model(request.model)
    layer = index("--layer", request.where.layer, opened.config.n_layer, "layers") or 0
    method = given.method or "mean"
    if given.save_vector is not None:
        read = [given.positive, given.negative, *opened.files]
        refuse_inputs("--save-vector", given.save_vector, read)
    examples = {
        "positive": read_examples("--positive", given.positive, opened),
        "negative": read_examples("--negative", given.negative, opened),
    }
    n_positive, n_negative = map(len, examples.values())
    if method == "pca" and n_positive != n_negative:
        raise UsageError(
            f"--method pca compares line by line: there are {n_positive} positive examples and "
            f"{n_negative} negative ones.",
            "Give as many of each, in pairs, or use --method mean.",
        )
    run = request.run(opened, [])
    from llmcli.inspection.steer import vector_view
    from llmcli.inspection.tensors import packed

    view, vector = vector_view(run, examples, method, layer, request.where.rows)
    about = {"model": model_json(opened, run.model)}
    if given.save_vector is not None:
        made = {"layer": str(layer), "method": method, "model": opened.name}
        write(given.save_vector, packed({"vector": vector}, made))
    return Made([noted(view, run)], about)


def read_examples(option: str, path: Path, opened: Opened) -> list[Example]:
    """The lines of a file as ids; empty ones are left out. Raises errors that name the line."""
    from llmcli.inspection.plan import Example

    example = f"Name a file of examples, one a line: {option} examples.txt"
    lines = read_file(path, MAX_EXAMPLES_NBYTES, example).split("\n")
    prefix, found = opened.tokenizer.prefix_ids, []
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\r")
        if not text.strip():
            continue
        ids = (*prefix, *opened.encode(text))
        if len(ids) > opened.config.n_ctx:
            raise UsageError(
                f"{option}: line {number} has {len(ids)} tokens; the context holds "
                f"{opened.config.n_ctx}.",
                "An example is one line: shorten it.",
            )
        found.append(Example(number, text, ids))
    if not found:
        raise UsageError(f"{shown_path(path)} is empty.", f"{option} takes an example a line.")
    return found
