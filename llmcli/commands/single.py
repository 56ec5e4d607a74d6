"""`generate` of one prompt: which writer shows it, and what is told beside it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcli.commands import results
from llmcli.commands.job import Job
from llmcli.commands.loading import Place, load
from llmcli.commands.writers import (
    InOrder,
    JsonlWriter,
    JsonWriter,
    PictureWriter,
    TextWriter,
    TintWriter,
    TsvWriter,
    Writer,
    as_json,
)
from llmcli.streaming import TextStream

if TYPE_CHECKING:
    from llmcli.gpt.generation import Step


@dataclass(frozen=True, slots=True)
class Show:
    """What of a run is shown, and how."""

    num_samples: int
    separator: str
    color_probs: bool
    echo: bool
    json: bool
    jsonl: bool
    stats: bool
    color: str

    @property
    def as_picture(self) -> bool:
        """Whether there is a person to draw for."""
        return sys.stdout.isatty() or self.color == "always"


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt, told again: its text, and what the model thought of each of its tokens."""

    text: str
    steps: Sequence[Step]
    texts: Sequence[str]  # the piece of text that each step made certain

    def before(self, place: int) -> str:
        """The text ahead of the token of step `place`."""
        rest = sum(len(text) for text in self.texts[place:])
        return self.text[: len(self.text) - rest]


def run_one(job: Job, place: Place, ids: Sequence[int], show: Show) -> None:
    """Continue one prompt, as many times as asked for, and show it as it comes."""
    started, n = time.perf_counter(), show.num_samples
    model = load(job.opened, place, n, len(ids) + job.max_new_tokens)
    load_s = time.perf_counter() - started
    scored: Sequence[Step] = ()
    if show.echo and (show.json or show.jsonl or show.color_probs or job.top_probs):
        from llmcli.gpt.generation import score

        scored = score(model, ids, job.top_probs)
    echo = _echo(job, ids, scored)
    head = results.header(
        job.opened, model, job.sampling, job.seed, load_s,
        prompt=_prompt_json(job, ids, echo),
        options={
            "max_new_tokens": job.max_new_tokens, "stop": list(job.stops),
            "keep_stop": job.keep_stop, "stop_ids": sorted(job.stop_ids),
            "force": [list(pair) for pair in sorted(job.forced.items())],
            "num_samples": n, "cache": job.use_cache,
        },
    )  # fmt: skip
    writer = _writer(job, show, head, echo)
    streams = job.streams(n)
    times: list[float] = []
    reasons: dict[int, str] = {}
    try:
        for piece in job.run(model, [ids] * n, [(0, sample) for sample in range(n)], streams):
            writer.take(piece)
            times.append(piece.step.time_s)
            if piece.finish_reason:
                reasons[piece.step.row] = piece.finish_reason
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM: what there is so far is the answer
        writer.end([stream.flush() for stream in streams])
        raise
    writer.end([stream.flush() for stream in streams])
    if show.echo and scored and not (show.json or show.jsonl):
        told = results.perplexity(scored)
        print(f"prompt perplexity {told:.4g} over {len(scored)} tokens", file=sys.stderr)
    if show.stats:
        reason = ", ".join(sorted(set(reasons.values()))) or "interrupted"
        print(results.stats_line(head, len(ids), times, reason), file=sys.stderr)


def _writer(job: Job, show: Show, head: dict, echo: Echo) -> Writer:
    opened, n = job.opened, show.num_samples
    if show.json:
        return JsonWriter(opened, n, head)
    if show.jsonl:
        return JsonlWriter(opened, n, head)
    if job.top_probs and show.as_picture:
        pictures = [(echo.before(i), step) for i, step in enumerate(echo.steps)]
        return InOrder(PictureWriter(opened, n, echo.text, show.color, pictures), n)
    if job.top_probs:
        return InOrder(TsvWriter(opened, echo.steps), n)
    if show.color_probs and show.as_picture:
        return InOrder(TintWriter(n, show.color, echo if show.echo else None), n)
    return InOrder(TextWriter(n, show.separator, echo.text if show.echo else ""), n)


def _echo(job: Job, ids: Sequence[int], scored: Sequence[Step]) -> Echo:
    """The prompt's text without the tokenizer's prefix, with its steps where it was scored."""
    tokenizer = job.opened.tokenizer
    text = tokenizer.decode(ids[len(tokenizer.prefix_ids) :])
    stream = TextStream(tokenizer)
    texts = [stream.feed(step.id) for step in scored]
    if texts:
        texts[-1] += stream.flush()
    return Echo(text, scored, texts)


def _prompt_json(job: Job, ids: Sequence[int], echo: Echo) -> dict:
    scored = {
        "tokens": [{"position": step.index, **as_json(step, job.opened)} for step in echo.steps],
        "perplexity": results.perplexity(echo.steps),
    }
    return {"text": echo.text, "ids": list(ids), **(scored if echo.steps else {})}
