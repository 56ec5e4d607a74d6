"""`llmcli generate`: prompts continued, token by token."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import typer

from llmcli.commands import generate_options as g
from llmcli.commands import options as o
from llmcli.commands.say import say, say_narrow
from llmcli.errors import UsageError
from llmcli.trace import CHANGES


@o.grouped
def generate(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What to continue; - or a pipe reads stdin.")
    ] = None,
    model: o.Model = "fable",
    max_new_tokens: g.MaxNewTokens = 400,
    drawing: o.Drawing = o.Drawing(),
    seed: g.Seed = None,
    ending: g.Ending = g.Ending(),
    inputs: g.Inputs = g.Inputs(),
    interventions: o.Interventions = o.Interventions(),
    baseline: o.Baseline = False,
    force: g.Force = None,
    traces: g.Traces = g.Traces(),
    compute: o.Compute = o.Compute(),
    no_cache: g.NoCache = False,
    dry_run: g.DryRun = False,
    show: g.Show = g.Show(),
) -> None:
    """Continue a prompt.

    llmcli generate "Once upon a time"

    llmcli generate "Tom had a red ball." --temperature 0 --top-probs 5

    llmcli generate "Lily saw a" --num-samples 3 --color-probs

    cat prompt.txt | llmcli generate --seed 7 --stop "The end" > story.txt

    llmcli generate --prompts prompts.txt --out stories.jsonl

    llmcli generate "Lily had a red ball." --ablate L3.H2 --baseline

    llmcli generate "Tom had a red" --trace run.jsonl

    llmcli generate --replay run.jsonl --from-step 7 --force "7= cat"

    The next token is drawn after these filters, in this order: bias, repetition, presence and
    frequency penalty, temperature, top-k, top-p, min-p, typical-p.
    """
    import secrets

    from llmcli.commands import replay as replays
    from llmcli.commands.changes import read_changes
    from llmcli.commands.dry_run import tell_budget
    from llmcli.commands.files import refuse_inputs
    from llmcli.commands.input import read_text
    from llmcli.commands.job import Job, forced_ids, prompt_ids
    from llmcli.commands.loading import open_model, sampling_from
    from llmcli.commands.many import run_many
    from llmcli.commands.recorded import open_past
    from llmcli.commands.single import run_one
    from llmcli.commands.traced import tracing_to

    names = o.typed_names(ctx)
    _check_combinations(names)
    replays.check_options(names)
    tracing = tracing_to(traces.trace, traces.trace_lens, show.quiet)
    past, from_step, stops = None, traces.from_step, tuple(ending.stop or ())
    if traces.replay is not None:
        # All runs, or the one that goes on.
        which = traces.run if from_step is None else traces.run or 0
        named = model if "model" in names else None
        past = open_past(traces.replay, which, named, show.quiet)
        compute = past.compute(compute, names)
        if from_step is None:
            made = replays.replay(past, compute, traces.resample, not no_cache, show.quiet)
            replays.show(made, show.json, show.color)
            return
        interventions = past.interventions(interventions)
        if "max_new_tokens" not in names:
            max_new_tokens = past.job.max_new_tokens
    interventions.check_baseline(baseline)
    opened = past.opened if past else open_model(model)
    if "" in stops:
        raise UsageError("--stop needs a text to end before.", 'For example: --stop "The end"')
    job = Job(
        opened,
        sampling_from(opened, drawing, past.sampling if past else None),
        secrets.randbits(32) if seed is None else seed,
        max_new_tokens,
        eos_ids=frozenset(() if ending.ignore_eos else opened.config.eos_ids),
        stop_ids=_known_ids(ending.stop_id or [], opened.config.vocab_size),
        stops=stops,
        keep_stop=ending.keep_stop,
        forced=forced_ids(opened, force or (), max_new_tokens),
        top_probs=show.top_probs if show.probs else None,
        use_cache=not no_cache,
    )
    changes = read_changes(opened, interventions)
    if traces.trace or inputs.out:
        read = [inputs.prompts, traces.replay, interventions.reference, *opened.files,
                *changes.files]  # fmt: skip
        refuse_inputs("--trace", traces.trace, read)
        refuse_inputs("--out", inputs.out, read)
        refuse_inputs("--trace", traces.trace, [inputs.out], "--out writes")
    if past is not None and from_step is not None:
        job = replays.continued(past, job, names, from_step)
    if inputs.prompts is not None:
        run_many(
            job, compute, inputs, changes, tracing, keep_seed=seed is not None, quiet=show.quiet
        )
        return
    if past is not None:
        ids = list(past.record.begun.ids)
    else:
        text = read_text(prompt, 'llmcli generate "Once upon a time"')
        told = (lambda _: None) if show.quiet else say
        ids = prompt_ids(opened, text, inputs.truncate_prompt, told, max_new_tokens)
        if not text and prompt != "":  # from a pipe it may be a mistake
            told("The prompt is empty: the model begins a text of its own.")
    job.check_forced(len(ids))
    if show.color_probs and not (o.pictured(show.color) or show.quiet):
        say("--color-probs: no terminal, so plain text; --color always tints.")
    if dry_run:
        tell_budget(job, compute, ids, inputs.num_samples, show.json)
        return
    drawn = o.pictured(show.color) and not (show.json or show.jsonl)
    if drawn and (baseline or show.top_probs) and not show.quiet:
        say_narrow()
    run_one(job, compute, ids, inputs.num_samples, show, changes, baseline, tracing)


def _check_combinations(typed: Collection[str]) -> None:
    """Refuse options that contradict each other or that nothing would read."""
    clashes = [
        {"prompt", "prompts"}, {"json", "jsonl"}, {"top_probs", "color_probs"},
        {"prompts", "color_probs"}, {"prompts", "echo"}, {"prompts", "json"}, {"prompts", "jsonl"},
        {"prompts", "dry_run"}, {"prompts", "stats"}, {"prompts", "separator"},
        {"json", "color_probs"}, {"jsonl", "color_probs"}, {"jsonl", "dry_run"},
        {"json", "separator"}, {"jsonl", "separator"}, {"top_probs", "separator"},
        {"baseline", "prompts"}, {"baseline", "color_probs"},
        {"baseline", "separator"}, {"baseline", "trace"}, {"dry_run", "trace"},
        *({"dry_run", change} for change in CHANGES),
    ]  # fmt: skip
    if not {"json", "jsonl"}.intersection(typed):
        clashes.append({"baseline", "top_probs"})
    for pair in clashes:
        if pair <= set(typed):
            first, second = sorted(o.spelled(name) for name in pair)
            raise UsageError(f"{first} and {second} do not go together.", "Choose one of them.")
    remedies = {"out": "One prompt's text: > FILE.", "batch_size": "Leave it out."}
    for name in remedies.keys() & set(typed) if "prompts" not in typed else ():
        raise UsageError(f"{o.spelled(name)} is for --prompts.", remedies[name])


def _known_ids(ids: list[int], vocab_size: int) -> frozenset[int]:
    for id in ids:
        if not 0 <= id < vocab_size:
            raise UsageError(
                f"--stop-id {id} is not an id from 0 to {vocab_size - 1}.",
                "llmcli tokenize says which id a text has.",
            )
    return frozenset(ids)
