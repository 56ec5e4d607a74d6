"""A recorded run: its text tinted by probability, what was improbable in it, time and totals."""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from llmcli.render.drawing import (
    Canvas,
    bar,
    columns,
    fit,
    footnotes,
    heading,
    name,
    number,
    percent,
    tail,
    wrapped,
)
from llmcli.render.text import harmless, on_one_line
from llmcli.render.tint import legend, tinted
from llmcli.units import plural, sized

if TYPE_CHECKING:
    from llmcli.inspection.trace import Improbable, Trace, TraceRun

LINES = 12  # of the text, and of the list of runs, unless --rows says otherwise
TOKEN = 16


def draw(view: Trace, canvas: Canvas) -> Text:
    out = heading(
        "trace",
        tail(view.file, 30),
        plural(view.n_tokens, "token"),
        plural(view.n_runs, "run"),
        f"{view.total_s:.2f} s",
        width=canvas.width,
    )
    out.append("\n")
    for label, value in _facts(view):
        out.append(f"  {label:<9}", style="dim")
        out.append("\n           ".join(wrapped(value, canvas.width - 11)) + "\n")
    out.append("\n").append_text(_text(view, canvas))
    if view.improbable:
        out.append("\n").append_text(_improbable(view, canvas.width))
    if view.n_runs > 1:
        out.append("\n").append_text(_runs(view, canvas))
    if view.layers:
        out.append("\n").append_text(_layers(view, canvas.width))
    for line in view.damaged:
        where = f"line {line.line}" if line.line else "the rest"
        out.append(f"\n  damaged: {where}, {harmless(line.why)}", style="bold red")
    return out.append("\n" * bool(view.damaged)).append_text(footnotes(view.notes, canvas.width))


def _facts(view: Trace) -> list[tuple[str, str]]:
    revision = f" at {view.revision[:12]}" if view.revision else ""
    facts = [
        ("model", f"{view.model}{revision}, {view.dtype} on {view.device}"),
        ("recorded", f"{view.created}, {view.versions}"),
        ("options", f"--seed {view.seed} {view.options}"),
    ]
    if view.changes:
        facts.append(("changed", view.changes))
    rate = number(view.tokens_per_s, 0)
    first_s = view.runs[0].first_token_s
    first = "" if first_s is None else f", the first token after {1000 * first_s:.0f} ms"
    forced = f", {view.n_forced} forced" if view.n_forced else ""
    return [
        *facts,
        ("time", f"{view.total_s:.2f} s, {rate} tok/s{first}"),
        ("text", f"perplexity {number(view.perplexity, 3)}, {number(view.mean_entropy_bits)} bits "
                 f"of doubt a token; {view.n_finished} of {view.n_runs} finished{forced}"),
        ("file", f"{sized(view.nbytes)}, {number(view.nbytes_per_step, 0)} B a token"),
    ]  # fmt: skip


def _text(view: Trace, canvas: Canvas) -> Text:
    """The prompt dimmed, then each token in the colour of its probability, line by line."""
    head = f"run {view.run} of {view.n_runs}" if view.n_runs > 1 else "the text"
    out = (
        Text()
        .append(head, style="bold")
        .append("  ")
        .append_text(legend(canvas.color))
        .append("\n")
    )
    width, most = canvas.width - 2, canvas.rows or LINES
    line, used, n_lines = Text(" "), 0, 1
    decoder = getincrementaldecoder("utf-8")("replace")  # a character may take several tokens
    pieces: list[tuple[str, float | None]] = [(word, None) for word in _words(view.prompt)]
    due = 0
    for row in view.tokens:
        if row.step != due:  # those between cannot be read
            pieces.append((" […]", None))
        pieces.append((decoder.decode(row.token.text), row.prob))
        due = row.step + 1
    for i, (text, prob) in enumerate(pieces):
        made = tinted(on_one_line(text), prob)
        if used + cell_len(made.plain) > width and used:
            out.append_text(line.append("\n"))
            line, used = Text(" "), 0
            n_lines += 1
            if n_lines > most:
                left = sum(prob is not None for _, prob in pieces[i:])
                return out.append(f"  {plural(left, 'token')} more; a pipe has them\n", "dim")
        line.append_text(made) if prob is not None else line.append(made.plain, style="dim")
        used += cell_len(made.plain)
    return out.append_text(line.append("\n"))


def _words(text: str) -> list[str]:
    """`text` in pieces that a line may end after."""
    words = text.split(" ")
    return [word + " " for word in words[:-1]] + words[-1:]


def _improbable(view: Trace, width: int) -> Text:
    several = view.n_runs > 1
    cells = max(4, min(24, width - 2 * TOKEN - 46 - 5 * several))
    most = max(row.surprisal_bits for row in view.improbable) or 1.0
    out = Text().append("least expected", style="bold").append("  of all tokens\n", style="dim")
    runs = [("run", -4)] if several else []
    out.append_text(columns(("  step", 6), *runs, ("token", TOKEN), ("bits", -5), ("", cells),
                            ("prob", -7), ("rank", -5), ("likeliest", TOKEN + 8)))  # fmt: skip
    for row in view.improbable:
        out.append_text(_line(row, several, cells, most))
    return out


def _line(row: Improbable, several: bool, cells: int, most: float) -> Text:
    out = Text().append(f"{row.step:>6} ", style="cyan")
    if several:
        out.append(f"{row.run:>4} ")
    mark = " forced" if row.forced else ""
    out.append(f"{fit(name(row.token.text) + mark, TOKEN)} {row.surprisal_bits:5.2f} ")
    out.append(bar(row.surprisal_bits / most, cells), style="yellow")
    out.append(f" {percent(row.prob)} {row.rank:>5} ")
    if row.likeliest is not None and row.likeliest_prob is not None:
        out.append(f"{fit(name(row.likeliest.text), TOKEN)} {percent(row.likeliest_prob)}")
    return out.append("\n")


def _layers(view: Trace, width: int) -> Text:
    cells = max(10, min(40, width - 36))
    out = Text().append("layer by layer", style="bold")
    out.append("  of all tokens: the layer's best guess is the token\n", style="dim")
    out.append_text(columns(("  after", 8), ("", cells), ("agrees", -7), ("KL bits", -8)))
    for row in view.layers:
        out.append(f"  {fit(row.after, 6)} ", style="cyan")
        out.append(bar(row.agrees, cells), style="blue")
        out.append(f" {percent(row.agrees)} {number(row.mean_kl_bits):>8}\n")
    return out


def _runs(view: Trace, canvas: Canvas) -> Text:
    shown = view.runs[: canvas.rows or LINES]
    out = columns(("  run", 5), ("prompt", 14), ("sample", -6), ("tokens", -6), ("finish", 10),
                  ("perplexity", -10), ("tok/s", -7))  # fmt: skip
    for row in shown:
        out.append_text(_run(row, row.run == view.run))
    if len(shown) < len(view.runs):
        out.append(f"  {len(view.runs) - len(shown)} more; --rows shows them\n", style="dim")
    return out


def _run(row: TraceRun, here: bool) -> Text:
    out = Text().append(f"{'▶' if here else ' '}{row.run:>4} ", style="cyan")
    prompt = "" if row.prompt_id is None else harmless(str(row.prompt_id))
    out.append(f"{fit(prompt, 14)} {row.sample:>6} {row.n_tokens:>6} ")
    out.append(fit(row.finish_reason or "unfinished", 10))
    return out.append(f" {number(row.perplexity):>10} {number(row.tokens_per_s, 0):>7}\n")
