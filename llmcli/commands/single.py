"""`generate` of one prompt: which writer shows it, and what is told beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llmcli.commands import beside, results
from llmcli.commands.beside import WithBaseline
from llmcli.commands.changes import Changes, patches_of, tap_for
from llmcli.commands.generate_options import Show
from llmcli.commands.job import Job, Runner
from llmcli.commands.options import Compute, pictured
from llmcli.commands.say import say
from llmcli.commands.traced import Tracing, traced
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
from llmcli.streaming import Piece, TextStream

if TYPE_CHECKING:
    from llmcli.gpt.generation import Step
    from llmcli.gpt.model import GPT
    from llmcli.gpt.tap import Tap


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt, told again: its text, and what the model thought of each of its tokens."""

    first: str  # the text of the first token, which nothing predicts
    texts: Sequence[str]  # the piece of text that each of the others made certain
    steps: Sequence[Step]  # of the others, where they were scored

    @property
    def text(self) -> str:
        return self.before(len(self.texts))

    def before(self, place: int) -> str:
        """The text ahead of the token of step `place`."""
        return self.first + "".join(self.texts[:place])


def run_one(
    job: Job,
    compute: Compute,
    ids: Sequence[int],
    n: int,
    show: Show,
    changes: Changes,
    baseline: bool,
    tracing: Tracing | None = None,
) -> None:
    """Continue one prompt `n` times, and show it as it comes."""
    plan = changes.plan(job.opened, ids)
    started = time.perf_counter()
    model = job.load(compute, [len(ids)], n, not baseline, show.quiet)
    load_s = time.perf_counter() - started
    patch = patches_of(plan, model, ids, show.quiet)
    tap = tap_for(patch, model, tracing.points if tracing else ())
    scored: Sequence[Step] = ()
    if show.echo and show.probs:
        from llmcli.gpt.generation import score

        scored = score(model, ids, job.top_probs or 0, tap)
    echo = _echo(job, ids, scored)
    prompt = _prompt_json(job, ids, echo)
    head = results.header(job, model, load_s, prompt, num_samples=n, **changes.words)
    tell = partial(_tell, job, show, head, ids, scored)
    if baseline:
        pair = WithBaseline.of(job, model, ids, patch, n)
        writers = beside.line_writers(pair, head) if show.jsonl else []
        end = partial(_show_beside, pair, show, head, echo, changes.title, writers)
        with ending(lambda: tell(pair.pieces)), ending(end):
            pair.generate(writers)
    else:
        pieces: list[Piece] = []
        with ending(lambda: tell(pieces)), traced(job, tracing, model, changes, tap) as run:
            writer = _writer(job, show, head, echo, n)
            _stream(job, run, model, ids, tap, n, writer, pieces)


def _tell(
    job: Job, show: Show, head: dict, ids: Sequence[int], scored: Sequence[Step],
    pieces: Sequence[Piece],
) -> None:  # fmt: skip
    """What is said on stderr once the text is there, or has been interrupted."""
    filled = any(job.filled(piece.finish_reason, piece.step.index + 1) for piece in pieces)
    if filled and not show.quiet:
        n_ctx = job.opened.config.n_ctx
        say(f"The context of {n_ctx} tokens is full: nothing can follow.")
    unreached = job.unreached([p.step.index + 1 for p in pieces if p.finish_reason])
    if unreached and not show.quiet:
        say(unreached)
    if show.echo and scored and not (show.json or show.jsonl or show.quiet):
        from llmcli.units import plural

        told = results.perplexity(scored)
        say(f"prompt perplexity {told:.4g} over {plural(len(scored), 'token')}")
    if show.stats:
        reasons = {piece.finish_reason for piece in pieces if piece.finish_reason}
        times = sorted(piece.step.time_s for piece in pieces)
        reason = ", ".join(sorted(reasons)) or "interrupted"
        say(results.stats_line(head, len(ids), times, reason))


def _stream(
    job: Job, run: Runner, model: GPT, ids: Sequence[int], tap: Tap, n: int, writer: Writer,
    pieces: list[Piece],
) -> None:  # fmt: skip
    """Generate, each piece given to `writer` and added to `pieces` as it comes."""
    streams = job.streams(n)
    with ending(lambda: writer.end([stream.flush() for stream in streams])):
        for piece in run(model, [ids] * n, job.draws(n), streams, tap):
            writer.take(piece)
            pieces.append(piece)


@contextmanager
def ending(end: Callable[[], None]) -> Iterator[None]:
    """`end` after the block, and on Ctrl-C or SIGTERM: what there is so far is the answer."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        end()
        raise
    end()


def _show_beside(
    pair: WithBaseline,
    show: Show,
    head: dict,
    echo: Echo,
    title: str,
    writers: Sequence[JsonlWriter],
) -> None:
    if show.jsonl:
        beside.end_lines(pair, writers)
    elif show.json:
        beside.print_json(pair, head)
    else:
        text = echo.text if show.echo else ""
        beside.show(pair, title, show.color, pictured(show.color), text)


def _writer(job: Job, show: Show, head: dict, echo: Echo, n: int) -> Writer:
    opened = job.opened
    if show.json:
        return JsonWriter(opened, n, head)
    if show.jsonl:
        return JsonlWriter(opened, n, head)
    if job.top_probs and pictured(show.color):
        pictures = [(echo.before(i), step) for i, step in enumerate(echo.steps)]
        return InOrder(PictureWriter(opened, n, echo.text, show.color, pictures), n)
    if job.top_probs:
        return InOrder(TsvWriter(opened, echo.steps), n)
    if show.color_probs and pictured(show.color):
        return InOrder(TintWriter(n, show.color, echo if show.echo else None), n)
    return InOrder(TextWriter(n, show.separator, echo.text if show.echo else ""), n)


def _echo(job: Job, ids: Sequence[int], scored: Sequence[Step]) -> Echo:
    """The prompt's text without the tokenizer's prefix, with its steps where it was scored."""
    tokenizer = job.opened.tokenizer
    stream, n_prefix = TextStream(tokenizer), len(tokenizer.prefix_ids)
    texts = [stream.feed(id) if i >= n_prefix else "" for i, id in enumerate(ids)]
    texts[-1] += stream.flush()
    return Echo(texts[0], texts[1:], scored)


def _prompt_json(job: Job, ids: Sequence[int], echo: Echo) -> dict:
    scored = {
        "tokens": [{"position": step.index, **as_json(step, job.opened)} for step in echo.steps],
        "perplexity": results.perplexity(echo.steps),
    }
    return {"text": echo.text, "ids": list(ids), **(scored if echo.steps else {})}
