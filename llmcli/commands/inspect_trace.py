"""`inspect --trace`: a recorded run as it was, or one of its steps to be computed again."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmcli.commands.inspect_options import Recorded
from llmcli.commands.made import Made
from llmcli.commands.say import say
from llmcli.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from llmcli.commands.recorded import PastStep
    from llmcli.inspection.catalogue import ViewEntry
    from llmcli.inspection.recorded import Held
    from llmcli.inspection.values import View
    from llmcli.trace import Reader


def check_options(recorded: Recorded, prompt: str | None, view: list[str] | None) -> None:
    """Raises UsageError where options about a trace contradict each other."""
    if recorded.trace is None:
        for name, value in asdict(recorded).items():
            if value is not None:
                raise UsageError(f"--{name} needs --trace.", "For example: --trace run.jsonl")
        return
    if prompt is not None:
        raise UsageError("A prompt and --trace do not go together.", "Choose one of them.")
    if recorded.step is not None and recorded.diff is not None:
        raise UsageError("--step and --diff do not go together.", "Choose one of them.")
    if recorded.step is None and view:
        raise UsageError(
            f"--view {view[0]} is about one step of the trace.", "Say which, as in --step 7."
        )


def wanted(recorded: Recorded, view: list[str] | None) -> dict[str, ViewEntry]:
    """What to show of a trace: views of a step, or what the traces themselves say."""
    from llmcli.inspection.catalogue import TRACES, entries

    if recorded.step is not None:
        return entries(view or ["next"])
    name = "trace" if recorded.diff is None else "diff"
    return {name: TRACES[name]}


def overview(recorded: Recorded, rows: int | None, quiet: bool) -> Made:
    """The trace alone, or beside another: no torch, no model."""
    from llmcli.commands.files import tell_damage
    from llmcli.inspection import diff, trace
    from llmcli.trace import Reader

    assert recorded.trace is not None
    reader = Reader(recorded.trace)
    readers: list[Reader] = [reader]
    made: View
    if recorded.diff is None:
        made = trace.view(reader, recorded.run, rows)
    else:
        readers.append(Reader(recorded.diff))
        made = diff.view(reader, readers[1], recorded.run or 0)
    for each in readers:
        tell_damage(each, quiet)
    return Made([made], {"model": _about(reader)})


def _about(reader: Reader) -> dict[str, Any]:
    model = reader.header["model"]
    return {key: model.get(key) for key in ("name", "revision", "dtype", "device")}


def tell_held(held: Held | None, past: PastStep, quiet: bool) -> None:
    """What the check of a step came to. Raises IntegrityError where it failed."""
    where = f"step {past.step.index} of {past.run.name}"
    if held is None:
        if not quiet:
            say(f"{where} is changed, so it is not checked.")
        return
    fact = f"by {held.max_difference:.2g}, and {held.tolerance:g} may be"
    if not held.passed:
        raise IntegrityError(
            f"{where} does not come out as it was recorded: logprobs differ {fact}.",
            "Other weights, another dtype or another machine computed it; see --trace without "
            "--step.",
        )
    if not quiet:
        say(f"{where} comes out as recorded:\nlogprobs differ {fact}.")
        if past.step.forced:
            from llmcli.render.text import quoted

            token = quoted(past.step.chosen.text)
            say(f"The token taken there was forced: {token}, --token id:{past.step.id}.")
