"""Two recorded runs held against each other: where they part, and how far apart they were before.

From the two traces alone, as they were recorded: to compute them again would take away what two
machines, dtypes or versions did differently. No model and no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from llmcli.inspection.trace import changes_in_words, said, token
from llmcli.inspection.values import Token, View
from llmcli.trace import Reader, Record, records
from llmcli.trace_lines import Choice, Step, kl_bits


@dataclass(frozen=True, slots=True)
class DiffFact:
    """Something that the two traces say about themselves, and differently."""

    what: str
    this: str
    other: str


@dataclass(frozen=True, slots=True)
class DiffStep:
    """One step at which both have seen the same tokens."""

    step: int
    token: Token
    other_token: Token
    kl_bits: float  # at least: KL(this || other)
    logprob: float  # of this one's token, here and there
    other_logprob: float | None  # None where the other recorded none for it
    entropy_bits: float
    other_entropy_bits: float


@dataclass(frozen=True, slots=True)
class DiffChoice:
    """A token at the step where the two part: its probability in both, before and after filters."""

    token: Token
    prob: float | None  # None where this trace recorded none for it
    other_prob: float | None
    drawn_prob: float | None
    other_drawn_prob: float | None
    chosen: bool
    other_chosen: bool


@dataclass(frozen=True, slots=True)
class Diff(View):
    """Two runs: what was different about them, the common steps, and the step they part at."""

    name: ClassVar[str] = "diff"

    file: str
    other_file: str
    run: int
    n_tokens: int
    other_n_tokens: int
    same_prompt: bool
    first_difference: int | None  # None where one is the other's beginning, or there is no step
    n_common: int
    mean_kl_bits: float | None
    max_kl_bits: float | None
    max_kl_step: int | None
    text: str  # the prompt and the common tokens
    facts: tuple[DiffFact, ...]
    steps: tuple[DiffStep, ...]
    candidates: tuple[DiffChoice, ...]
    notes: tuple[str, ...]


NOTE = "measured: as recorded; --step N computes a step of either again."
KL_NOTE = (
    "approximate: each KL is at least this much. It is that of the tokens that both recorded, all "
    "others taken as one; --top-probs of generate says how many a trace records."
)


def view(reader: Reader, other: Reader, run: int) -> Diff:
    """The same run of two traces; what they raise where one cannot be read, or has no such run."""
    mine, theirs = (records(r, run)[run] for r in (reader, other))
    same = mine.begun.ids == theirs.begun.ids
    pairs = list(zip(mine.steps, theirs.steps, strict=False)) if same else []
    first = next((i for i, (a, b) in enumerate(pairs) if a.id != b.id), None)
    pairs = pairs[: len(pairs) if first is None else first + 1]
    steps = [_step(a, b) for a, b in pairs]
    worst = max(steps, key=lambda row: row.kl_bits, default=None)
    n = len(steps) - (first is not None)
    return Diff(
        file=str(reader.path),
        other_file=str(other.path),
        run=run,
        n_tokens=len(mine.steps),
        other_n_tokens=len(theirs.steps),
        same_prompt=same,
        first_difference=first,
        n_common=n,
        mean_kl_bits=sum(row.kl_bits for row in steps) / len(steps) if steps else None,
        max_kl_bits=None if worst is None else worst.kl_bits,
        max_kl_step=None if worst is None else worst.step,
        text=mine.begun.prompt
        + b"".join(step.chosen.text for step in mine.steps[:n]).decode("utf-8", "replace"),
        facts=_facts(reader.header, other.header, mine, theirs),
        steps=tuple(steps),
        candidates=() if first is None else _candidates(*pairs[first]),
        notes=(NOTE, KL_NOTE) if worst and worst.kl_bits > 0 else (NOTE,),
    )


def _step(a: Step, b: Step) -> DiffStep:
    there = _listed(b).get(a.id)
    return DiffStep(
        step=a.index,
        token=token(a.chosen),
        other_token=token(b.chosen),
        kl_bits=kl_bits(a, b),
        logprob=a.chosen.logprob,
        other_logprob=None if there is None else there.logprob,
        entropy_bits=a.entropy_bits,
        other_entropy_bits=b.entropy_bits,
    )


def _listed(step: Step) -> dict[int, Choice]:
    return {c.id: c for c in (*step.top, step.chosen)}


def _candidates(a: Step, b: Step) -> tuple[DiffChoice, ...]:
    """All that either recorded, the likeliest first."""
    here, there = _listed(a), _listed(b)
    both = {**there, **here}
    order = sorted(both, key=lambda id: (-both[id].logprob, id))
    return tuple(
        DiffChoice(
            token=token(both[id]),
            prob=_prob(here.get(id)),
            other_prob=_prob(there.get(id)),
            drawn_prob=_drawn(here.get(id)),
            other_drawn_prob=_drawn(there.get(id)),
            chosen=id == a.id,
            other_chosen=id == b.id,
        )
        for id in order
    )


def _prob(choice: Choice | None) -> float | None:
    return None if choice is None else math.exp(choice.logprob)


def _drawn(choice: Choice | None) -> float | None:
    return None if choice is None else math.exp(choice.drawn_logprob)


def _facts(
    header: dict[str, Any], other: dict[str, Any], mine: Record, theirs: Record
) -> tuple[DiffFact, ...]:
    """What differs of the two runs' making."""
    files = [file for each in (header, other) for file in each["model"]["files"].values()]
    # An older trace knows nothing of the weights but their names and shapes.
    key = "sampled_sha256" if all("sampled_sha256" in file for file in files) else "header_sha256"
    sides = [_about(header, mine, key), _about(other, theirs, key)]
    return tuple(
        DiffFact(what, *(side.get(what, "") for side in sides))
        for what in sides[0] | sides[1]
        if sides[0].get(what) != sides[1].get(what)
    )


def _ids(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else ""


def _about(header: dict[str, Any], record: Record, key: str) -> dict[str, str]:
    model = header["model"]
    return {
        "model": model["name"],
        "revision": model.get("revision") or "",
        "weights": ", ".join(f"{file[key][:12]}" for file in model["files"].values()),
        "tokenizer": ", ".join(f"{hash[:12]}" for hash in model["tokenizer_sha256"].values()),
        "computed in": f"{model['dtype']} on {model['device']}",
        "versions": ", ".join(f"{name} {is_}" for name, is_ in header["versions"].items()),
        "seed": str(header["seed"]),
        **said(header["options"]),
        "ends at ids": _ids(header["options"].get("stop_ids")),
        "hides ids": _ids(header["options"].get("hidden_ids")),
        "changes": changes_in_words(header["options"]),
        "prompt": record.begun.prompt,
        "finish": (record.steps[-1].finish_reason if record.steps else None) or "unfinished",
    }
