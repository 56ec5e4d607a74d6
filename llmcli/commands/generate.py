"""`llmcli generate`: prompts continued, token by token."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

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
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", min=1, metavar="N", help="Stop after so many tokens."
        ),
    ] = 400,
    drawing: o.Drawing = o.Drawing(),
    seed: o.Seed = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel="Where to stop",
            help="End before this text. Repeatable.",
        ),
    ] = None,
    stop_id: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="End at this token. Repeatable.")
    ] = None,
    keep_stop: Annotated[
        bool, typer.Option("--keep-stop", help="Print the stop text or token, too.")
    ] = False,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token, and print it.")
    ] = False,
    truncate_prompt: Annotated[
        Literal["left", "right"] | None,
        typer.Option(
            rich_help_panel="Prompts",
            help="Which end to drop of a prompt that the context does not hold.",
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=1, max=4096, metavar="N", help="Continue the prompt this many times.")
    ] = 1,
    separator: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The line between samples in a pipe. [default: ---]"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Many prompts: one a line, or JSON lines with `prompt`; - is stdin.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=4096, metavar="N", help="How many at once. [default: 16]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the results of --prompts go; finished ones are skipped."
        ),
    ] = None,
    interventions: o.Interventions = o.Interventions(),
    baseline: o.Baseline = False,
    force: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP=TOKEN", help='Take this token at this step: "3= cat", 3=464 by id.'
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel="Traces",
            help="Keep every step, as .jsonl or .jsonl.gz.",
        ),
    ] = None,
    trace_lens: Annotated[
        bool, typer.Option("--trace-lens", help="Keep what each layer would have said, too.")
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compute a recorded run again: is it the same here?"),
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Draw its tokens again: is the text the same?")
    ] = False,
    from_step: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Go on from this step of --replay, with changes."),
    ] = None,
    run: Annotated[
        int | None, typer.Option(min=0, metavar="R", help="Which run of --replay.")
    ] = None,
    compute: o.Compute = o.Compute(),
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute all tokens anew at each step: slower.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell the memory needed and the speed expected.")
    ] = False,
    top_probs: Annotated[
        int,
        typer.Option(
            min=0,
            max=100,
            metavar="K",
            rich_help_panel="Output",
            help="Show the K likeliest tokens at each step.",
        ),
    ] = 0,
    color_probs: Annotated[
        bool, typer.Option("--color-probs", help="Tint each token by its probability.")
    ] = False,
    echo: Annotated[
        bool, typer.Option("--echo", help="Print the prompt too, with its own probabilities.")
    ] = False,
    json: o.Json = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one JSON line per event.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print timings on stderr, even with -q.")
    ] = False,
    color: o.Color = o.ColorMode.auto,
    quiet: o.Quiet = False,
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
    from llmcli.commands.single import Show, run_one
    from llmcli.commands.traced import tracing_to

    _check_combinations(
        prompt=prompt, prompts=prompts, out=out, json=json, jsonl=jsonl, top_probs=top_probs,
        color_probs=color_probs, echo=echo, dry_run=dry_run, stats=stats, separator=separator,
        batch_size=batch_size, baseline=baseline, trace=trace, **asdict(interventions),
    )  # fmt: skip
    names = o.typed_names(ctx)
    replays.check_options(names)
    tracing = tracing_to(trace, trace_lens, quiet)
    past = None
    if replay is not None:
        which = run if from_step is None else run or 0  # all runs, or the one that goes on
        past = open_past(replay, which, model if "model" in names else None, quiet)
        compute = past.compute(compute, names)
        if from_step is None:
            replays.show(replays.replay(past, compute, resample, not no_cache, quiet), json, color)
            return
        interventions = past.interventions(interventions)
        if "max_new_tokens" not in names:
            max_new_tokens = past.job.max_new_tokens
    interventions.check_baseline(baseline)
    opened = past.opened if past else open_model(model)
    sampling = sampling_from(opened, drawing, past.sampling if past else None)
    if "" in (stop or ()):
        raise UsageError("--stop needs a text to end before.", 'For example: --stop "The end"')
    job = Job(
        opened, sampling, secrets.randbits(32) if seed is None else seed, max_new_tokens,
        eos_ids=frozenset(() if ignore_eos else opened.config.eos_ids),
        stop_ids=_known_ids(stop_id or [], opened.config.vocab_size),
        stops=tuple(stop or ()), keep_stop=keep_stop,
        forced=forced_ids(opened, force or (), max_new_tokens),
        top_probs=top_probs if top_probs or json or jsonl or color_probs else None,
        use_cache=not no_cache,
    )  # fmt: skip
    changes = read_changes(opened, interventions)
    if trace or out:
        read = [prompts, replay, interventions.reference, *opened.files, *changes.files]
        refuse_inputs("--trace", trace, read)
        refuse_inputs("--out", out, read)
        refuse_inputs("--trace", trace, [out], "--out writes")
    if past is not None and from_step is not None:
        job = replays.continued(past, job, names, from_step)
    if prompts is not None:
        run_many(
            job, compute, prompts, out, truncate_prompt, batch_size or 16, num_samples,
            keep_seed=seed is not None, quiet=quiet, changes=changes, tracing=tracing,
        )  # fmt: skip
        return
    if past is not None:
        ids = list(past.record.begun.ids)
    else:
        text = read_text(prompt, 'llmcli generate "Once upon a time"')
        told = (lambda _: None) if quiet else say
        ids = prompt_ids(opened, text, truncate_prompt, told, max_new_tokens)
        if not text and prompt != "" and not quiet:  # from a pipe it may be a mistake
            say("The prompt is empty: the model begins a text of its own.")
    job.check_forced(len(ids))
    if color_probs and not (o.pictured(color) or quiet):
        say("--color-probs: no terminal, so plain text; --color always tints.")
    if dry_run:
        tell_budget(job, compute, ids, num_samples, json)
        return
    if (baseline or top_probs) and o.pictured(color) and not (json or jsonl or quiet):
        say_narrow()
    show = Show(
        num_samples, "---" if separator is None else separator, color_probs, echo, json,
        jsonl, stats, color.value, baseline, quiet,
    )  # fmt: skip
    run_one(job, compute, ids, show, changes, tracing)


def _check_combinations(**given: object) -> None:
    """Refuse options that contradict each other or that nothing would read."""
    on = {name for name, value in given.items() if value not in (None, False, 0)}
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
    if not on & {"json", "jsonl"}:
        clashes.append({"baseline", "top_probs"})
    for pair in clashes:
        if pair <= on:
            first, second = sorted(o.spelled(name) for name in pair)
            raise UsageError(f"{first} and {second} do not go together.", "Choose one of them.")
    remedies = {"out": "One prompt's text: > FILE.", "batch_size": "Leave it out."}
    for name in remedies.keys() & on if "prompts" not in on else ():
        raise UsageError(f"{o.spelled(name)} is for --prompts.", remedies[name])


def _known_ids(ids: list[int], vocab_size: int) -> frozenset[int]:
    for id in ids:
        if not 0 <= id < vocab_size:
            raise UsageError(
                f"--stop-id {id} is not an id from 0 to {vocab_size - 1}.",
                "llmcli tokenize says which id a text has.",
            )
    return frozenset(ids)
