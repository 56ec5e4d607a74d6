"""`generate --replay`: a recorded run computed again, drawn again, or continued another way."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from llmcli.commands.changes import Changes, patches_of, read_changes, tap_for
from llmcli.commands.job import Job
from llmcli.commands.loading import model_json
from llmcli.commands.made import Made
from llmcli.commands.options import ColorMode, Compute, Interventions, pictured, spelled
from llmcli.commands.recorded import PastRun
from llmcli.commands.traced import versions
from llmcli.errors import IntegrityError, UsageError, shown
from llmcli.trace import Record
from llmcli.trace_lines import TOLERANCE, Step, difference

if TYPE_CHECKING:
    from llmcli.gpt import generation
    from llmcli.gpt.model import GPT
    from llmcli.inspection.replay import Replay
    from llmcli.inspection.values import Token

READ = {  # what a replay looks at; all else is as it was recorded
    "replay", "resample", "run", "model", "dtype", "quantize", "device", "threads", "no_cache",
    "json", "color", "quiet",
}  # fmt: skip
FIELDS = {  # options that --from-step takes anew, by the field of a job that they set
    "seed": "seed", "max_new_tokens": "max_new_tokens", "stop": "stops", "stop_id": "stop_ids",
    "ignore_eos": "eos_ids", "keep_stop": "keep_stop", "no_cache": "use_cache",
}  # fmt: skip


def check_options(typed: Collection[str]) -> None:
    """Raises UsageError where what was typed and --replay contradict each other."""
    if "replay" not in typed:
        for name in ("resample", "from_step", "run"):
            if name in typed:
                raise UsageError(
                    f"{spelled(name)} needs --replay.", "For example: --replay run.jsonl"
                )
        return
    never = {"prompt", "prompts", "out", "batch_size", "truncate_prompt", "dry_run"}
    if "from_step" in typed:
        never.add("resample")
    clash = never.intersection(typed) if "from_step" in typed else set(typed) - READ
    if "resample" in clash:
        raise UsageError(
            "--resample and --from-step do not go together.",
            "--from-step draws what follows again, too.",
        )
    if clash:
        name = min(clash)
        raise UsageError(
            f"{spelled(name).capitalize()} and --replay do not go together: the run is as it was "
            "recorded.",
            "" if name in never else "--from-step N goes on from a step with other options.",
        )


def replay(past: PastRun, compute: Compute, resample: bool, use_cache: bool, quiet: bool) -> Made:
    """The recorded runs computed again and held against what was recorded."""
    from llmcli.inspection.replay import NOTES, Replay, compared, verdict, worst

    job, found = past.job, past.records.values()
    job = replace(job, use_cache=job.use_cache and use_cache)
    longest = replace(job, max_new_tokens=max(len(record.steps) for record in found))
    lengths = [len(record.begun.ids) for record in found]
    loaded = longest.load(compute, lengths, 1, len(found) == 1, quiet)
    dtype = loaded.storage
    coarser = max(past.dtype, dtype, key=TOLERANCE.__getitem__)
    allowed = TOLERANCE[coarser]
    changes = read_changes(past.opened, past.interventions(Interventions()))
    rows, steps = [], []
    for number, record in past.records.items():
        made = list(_again(past, job, record, changes, loaded, resample))
        n = len(record.steps)
        rows.append(compared(made, n, number, math.inf if resample else allowed))
        steps += made
    how = "resampled" if resample else "forced"
    view = Replay(
        file=str(past.path),
        how=how,
        model=past.opened.name,
        dtype=dtype,
        n_runs=len(rows),
        n_compared=len(steps),
        n_identical=sum(row.n_identical for row in rows),
        max_difference=max((row.max_difference for row in rows), default=0.0),
        tolerance=allowed,
        passed=bool(steps) and not past.holed and all(row.first_difference is None for row in rows),
        verdict=verdict(how, rows, coarser, allowed, past.holed),
        facts=tuple(_facts(past, loaded)),
        runs=tuple(rows),
        worst=worst(steps),
        notes=NOTES,
    )
    return Made([view], {"model": model_json(past.opened, loaded)})


def _again(
    past: PastRun, job: Job, record: Record, changes: Changes, model: GPT, resample: bool
) -> Iterator[tuple[Step, float, Token | None]]:
    """Each recorded step, how far its logprobs are off here, and the token drawn if another."""
    from llmcli.inspection.values import Token

    ids, n = record.begun.ids, len(record.steps)
    if not n:
        return
    top_probs = max(len(step.top) for step in record.steps)
    job = replace(job, draw=record.begun.draw, top_probs=top_probs)
    finished = record.steps[-1].finish_reason is not None
    if not resample:
        job = replace(job, max_new_tokens=n, forced=dict(enumerate(record.ids)), stops=())
    elif not finished:
        job = replace(job, max_new_tokens=n)
    tap = tap_for(patches_of(changes.plan(past.opened, ids), model, ids, quiet=True), model)
    pieces = job.run(model, [ids], [job.draw], job.streams(1), tap)
    for recorded, piece in zip(record.steps, pieces, strict=False):
        step = piece.step
        other = step.id != recorded.id
        drawn = Token(step.id, past.opened.token_bytes(step.id)) if other else None
        yield recorded, difference(recorded, _logprobs(step)), drawn
        if drawn:
            return


def _logprobs(step: generation.Step) -> dict[int, float]:
    facts = step.facts
    return {c.id: c.logprob for c in (facts.chosen, *facts.top, *facts.drawn_top)}


def _facts(past: PastRun, model: GPT) -> Iterator[Any]:
    from llmcli.inspection.replay import ReplayFact

    recorded = past.header["model"]
    dtype = model.storage
    pairs = [("computed", f"{recorded['dtype']} on {recorded['device']}",
              f"{dtype} on {model.device}")]  # fmt: skip
    here = versions()
    then = past.header["versions"]
    pairs += [(name, str(then.get(name, "unknown")), here[name]) for name in here]
    for what, before, now in pairs:
        if before != now:
            yield ReplayFact(what, before, now)


def show(made: Made, json: bool, color: ColorMode) -> None:
    """The verdict on stdout. Raises IntegrityError where the run does not come out the same."""
    from llmcli.commands import inspect_output as output

    output.show(made, output.canvas_for(color) if pictured(color) else None, color, json)
    view = cast("Replay", made.views[0])
    if not view.passed:
        apart = any(row.first_difference is not None for row in view.runs)
        raise IntegrityError(
            f"The replay of {shown(view.file)}: {view.verdict}.",
            "Other weights, another dtype, batch or machine computed it."
            if apart
            else "What cannot be read cannot be compared: record it again.",
        )


def continued(past: PastRun, job: Job, typed: Collection[str], step: int) -> Job:
    """The recorded job, its tokens before `step` forced, with what was typed in its place.

    The draws are those of the recorded run: with nothing typed the text is the same.
    """
    record, base = past.record, past.job
    n = len(record.steps)
    if step > n:
        past.check_readable(step)
        raise UsageError(
            f"--from-step {step}: {past.name} has {n} steps in run {record.begun.run}.",
            f"It goes up to {n}, which is after the last one.",
        )
    taken = {field: getattr(job, field) for name, field in FIELDS.items() if name in typed}
    early = [index for index in job.forced if index < step]
    if early:
        raise UsageError(
            f"--force {early[0]}=…: the steps before {step} are the recorded ones.",
            f"--from-step {early[0]} changes that one.",
        )
    later = {index: id for index, id in base.forced.items() if index >= step}
    forced = {**dict(enumerate(record.ids[:step])), **later, **job.forced}
    made = replace(base, sampling=job.sampling, top_probs=job.top_probs, forced=forced, **taken)
    _check_reached(made, past, step)
    if step >= made.max_new_tokens:
        raise UsageError(
            f"--from-step {step}: the run ends after {made.max_new_tokens} tokens.",
            "Let it go on, for example with --max-new-tokens 400.",
        )
    return made


def _check_reached(made: Job, past: PastRun, step: int) -> None:
    """Raises UsageError where what ends a text stands in the recorded part."""
    ids = past.record.ids[:step]
    text = b"".join(map(past.opened.token_bytes, ids)).decode("utf-8", "replace")
    met = made.all_stop_ids.intersection(ids)
    if met or any(stop in text for stop in made.stops):
        by_eos = met.intersection(past.opened.config.eos_ids)
        raise UsageError(
            f"--from-step {step}: what comes before holds what is to end the text.",
            f"Choose an earlier step, or {'--ignore-eos' if by_eos else 'another --stop'}.",
        )
