"""A recorded run at a glance, from its trace alone: no model, no tokenizer and no torch.

Reads the file once, a line after the other; of all texts but the one shown only sums are kept.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmcli.inspection.values import Token, View
from llmcli.shell import quoted
from llmcli.trace import CHANGES, Reader, no_such_run
from llmcli.trace_lines import Begun, Choice, LensLayer, Step
from llmcli.units import Pace, perplexity, rate

IMPROBABLE = 8  # of the least probable tokens, unless asked for more


@dataclass(frozen=True, slots=True)
class TraceLayer:
    """The lens over all steps that recorded it: how near a layer is to the end."""

    after: str  # "embed", or the layer
    agrees: float  # the share of steps whose token is this layer's best guess
    mean_kl_bits: float  # KL(final || here)


@dataclass(frozen=True, slots=True)
class TraceRun:
    """One text of the trace."""

    run: int
    prompt_id: str | int | None
    sample: int
    n_prompt: int
    n_tokens: int
    finish_reason: str | None  # None: it was not finished, or steps of it are missing
    perplexity: float | None
    first_token_s: float | None  # since it began
    tokens_per_s: float | None  # after the second; None where steps are missing


@dataclass(frozen=True, slots=True)
class TraceToken:
    """One step of the text shown."""

    step: int
    token: Token
    prob: float
    surprisal_bits: float
    rank: int
    entropy_bits: float
    kept: float
    forced: bool
    time_s: float


@dataclass(frozen=True, slots=True)
class Improbable:
    """A token that was hardly expected, and the one that was."""

    run: int
    step: int
    token: Token
    surprisal_bits: float
    prob: float
    drawn_prob: float  # after the filters
    rank: int
    forced: bool
    likeliest: Token | None
    likeliest_prob: float | None


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """A line of the file that could not be read, or before which steps are missing; 0: from
    somewhere on all of them."""

    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Trace(View):
    """The run, the tokens of one of its texts, the improbable ones of all."""

    name: ClassVar[str] = "trace"

    file: str
    nbytes: int
    nbytes_per_step: float | None
    created: str
    model: str
    revision: str | None
    dtype: str
    device: str
    versions: str
    seed: int
    options: str
    changes: str
    n_runs: int
    n_finished: int
    n_tokens: int
    n_forced: int
    total_s: float
    tokens_per_s: float | None  # after each batch's second step; None where steps are missing
    perplexity: float | None
    mean_entropy_bits: float | None
    run: int
    prompt: str
    tokens: tuple[TraceToken, ...]
    improbable: tuple[Improbable, ...]
    runs: tuple[TraceRun, ...]
    layers: tuple[TraceLayer, ...]  # none without --trace-lens
    damaged: tuple[DamagedLine, ...]
    notes: tuple[str, ...]


@dataclass
class _Sums:
    """What is kept of one text."""

    begun: Begun
    n: int = 0
    bits: float = 0.0
    pace: Pace = field(default_factory=Pace)
    finish_reason: str | None = None

    def add(self, step: Step) -> None:
        self.n += 1
        self.bits += step.surprisal_bits
        self.pace.add(step.time_s)
        self.finish_reason = step.finish_reason

    def row(self, gap: int | None) -> TraceRun:
        """`gap`: the first step that is missing."""
        whole, first_s = gap is None, None if gap == 0 else self.pace.first_s
        return TraceRun(
            run=self.begun.run,
            prompt_id=self.begun.prompt_id,
            sample=self.begun.draw[1],
            n_prompt=len(self.begun.ids),
            n_tokens=self.n,
            finish_reason=self.finish_reason if whole else None,
            perplexity=perplexity(self.bits * math.log(2) / self.n) if self.n else None,
            first_token_s=None if first_s is None else first_s - self.begun.time_s,
            tokens_per_s=rate(self.pace) if whole else None,
        )


@dataclass
class _Layer:
    """Sums of the lens of one layer."""

    n: int = 0
    n_agree: int = 0
    kl_bits: float = 0.0

    def add(self, seen: LensLayer, id: int) -> None:
        self.n += 1
        self.n_agree += seen.top == id
        self.kl_bits += seen.kl_bits


@dataclass
class _Kept:
    """What is kept of the whole trace."""

    n_improbable: int
    texts: dict[int, _Sums] = field(default_factory=dict)
    batches: dict[float, Pace] = field(default_factory=dict)  # by when their texts began
    tokens: list[TraceToken] = field(default_factory=list)
    improbable: list[tuple[float, int, int, Step]] = field(default_factory=list)  # a heap
    layers: list[_Layer] = field(default_factory=list)
    entropy: float = 0.0
    n_forced: int = 0
    total_s: float = 0.0

    def add(self, step: Step, shown: bool) -> None:
        text = self.texts[step.run]
        text.add(step)
        self.batches.setdefault(text.begun.time_s, Pace()).add(step.time_s)
        self.entropy += step.entropy_bits
        self.n_forced += step.forced
        self.total_s = max(self.total_s, step.time_s)
        self.layers += [_Layer() for _ in step.lens[len(self.layers) :]]
        for layer, seen in zip(self.layers, step.lens, strict=False):
            layer.add(seen, step.id)
        if shown:
            self.tokens.append(_token(step))
        entry = (step.surprisal_bits, -step.run, -step.index, step)
        if len(self.improbable) < self.n_improbable:
            heapq.heappush(self.improbable, entry)
        else:
            heapq.heappushpop(self.improbable, entry)


def view(reader: Reader, run: int | None = None, rows: int | None = None) -> Trace:
    """The trace, with the tokens of `run` (by default the first) and `rows` improbable ones.

    Raises UsageError where there is no such run, what `reader` raises where it is no trace.
    """
    kept = _Kept(rows or IMPROBABLE)
    chosen = run
    for line in reader:
        if isinstance(line, Begun):
            chosen = line.run if chosen is None else chosen
            kept.texts[line.run] = _Sums(line)
        else:
            kept.add(line, line.run == chosen)
    if chosen is None or chosen not in kept.texts:
        raise no_such_run(reader.name, chosen or 0, list(kept.texts))
    return _made(reader, kept, kept.texts[chosen].begun)


def _made(reader: Reader, kept: _Kept, begun: Begun) -> Trace:
    header, gaps = reader.header, reader.gaps
    runs = [text.row(gaps.get(run)) for run, text in kept.texts.items()]
    n, bits = sum(row.n_tokens for row in runs), sum(text.bits for text in kept.texts.values())
    model, options = header["model"], header["options"]
    return Trace(
        file=str(reader.path),
        nbytes=reader.n_bytes,
        nbytes_per_step=reader.n_bytes / n if n else None,
        created=str(header.get("created", "")),
        model=model["name"],
        revision=model.get("revision"),
        dtype=model["dtype"],
        device=model["device"],
        versions=", ".join(f"{name} {version}" for name, version in header["versions"].items()),
        seed=header["seed"],
        options=in_words(options),
        changes=changes_in_words(options),
        n_runs=len(runs),
        n_finished=sum(row.finish_reason is not None for row in runs),
        n_tokens=n,
        n_forced=kept.n_forced,
        total_s=kept.total_s,
        tokens_per_s=None if gaps else rate(*kept.batches.values()),
        perplexity=perplexity(bits * math.log(2) / n) if n else None,
        mean_entropy_bits=kept.entropy / n if n else None,
        run=begun.run,
        prompt=begun.prompt,
        tokens=tuple(kept.tokens),
        improbable=tuple(_improbable(step) for *_, step in sorted(kept.improbable, reverse=True)),
        runs=tuple(runs),
        layers=tuple(
            TraceLayer(str(i - 1) if i else "embed", x.n_agree / x.n, x.kl_bits / x.n)
            for i, x in enumerate(kept.layers)
        ),
        damaged=tuple(DamagedLine(d.line, d.why) for d in reader.damaged),
        notes=("measured: as the run recorded it; --step N computes a step again and checks it.",),
    )  # fmt: skip


def _token(step: Step) -> TraceToken:
    return TraceToken(
        step=step.index,
        token=token(step.chosen),
        prob=math.exp(step.chosen.logprob),
        surprisal_bits=step.surprisal_bits,
        rank=step.rank,
        entropy_bits=step.entropy_bits,
        kept=step.kept,
        forced=step.forced,
        time_s=step.time_s,
    )


def _improbable(step: Step) -> Improbable:
    best = max(step.top, key=lambda c: c.logprob, default=None)
    return Improbable(
        run=step.run,
        step=step.index,
        token=token(step.chosen),
        surprisal_bits=step.surprisal_bits,
        prob=math.exp(step.chosen.logprob),
        drawn_prob=math.exp(step.chosen.drawn_logprob),
        rank=step.rank,
        forced=step.forced,
        likeliest=None if best is None else token(best),
        likeliest_prob=None if best is None else math.exp(best.logprob),
    )


def token(choice: Choice) -> Token:
    """A recorded choice, as views name a vocabulary entry."""
    return Token(choice.id, choice.text)


def in_words(options: Mapping[str, Any]) -> str:
    """The options that matter, as they would be typed: "--temperature 0.7 --stop 'The end'"."""
    return " ".join(
        f"{name} {value}".rstrip() for name, values in _typed(options) for value in values
    )


def said(options: Mapping[str, Any]) -> dict[str, str]:
    """The options that do something, each in a few words."""
    return {name: " ".join(values) or "yes" for name, values in _typed(options)}


def _typed(options: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each option that does something, with what follows it every time that it is typed."""
    off = {"repetition_penalty": 1.0, "top_p": 1.0, "typical_p": 1.0}
    if options.get("cache") is False:
        yield "--no-cache", [""]
    for name, value in options.items():
        if name in (*CHANGES, "steer_prompt", "stop_ids", "hidden_ids", "cache", "reference"):
            continue
        if name == "temperature" or value not in (off.get(name), None, False, 0, 0.0, []):
            yield f"--{name.replace('_', '-')}", _words(name, value)


def _words(name: str, value: Any) -> list[str]:
    if value is True:
        return [""]
    if not isinstance(value, list):
        return [f"{value}"]
    if name == "force":
        return [f"{len(value)} steps"]
    if name == "bias":
        return [_bias(entry) for entry in value]
    return [quoted(f"{each}") for each in value]


def _bias(entry: Any) -> str:
    match entry:
        case [id, None]:
            return f"id:{id}=-inf"
        case [id, float(more)]:
            return f"id:{id}={more:+g}"
    return f"{entry}"  # a stranger's


def changes_in_words(options: Mapping[str, Any]) -> str:
    """The interventions, as they were typed; "" where there are none."""
    words = [f"--{name} {entry}" for name in CHANGES for entry in options.get(name) or ()]
    if options.get("steer_prompt"):
        words.append("--steer-prompt")
    if reference := options.get("reference"):
        words.append(f"--reference {quoted(reference)}")
    return "  ".join(words)
