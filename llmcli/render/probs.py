"""The most probable next tokens of each step: a picture for a terminal, rows for a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from llmcli.render.drawing import CHOSEN, bar, fit, percent, tail

TOKEN_CELLS = 18
TSV_HEADER = "sample\tstep\tchosen\trank\tid\ttoken\tprob\tdrawn_prob\tentropy_bits\tkept\tforced"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have come: `token` is quoted and harmless."""

    id: int
    token: str
    prob: float
    drawn_prob: float | None  # after the filters; None: of a prompt, of which nothing is drawn
    rank: int  # from 0
    chosen: bool


def legend(width: int) -> Text:
    """What the columns are, once, above the first step."""
    return Text(
        f"  {'next token'.ljust(TOKEN_CELLS)} {'probability'.ljust(width - TOKEN_CELLS - 20)}"
        "  model   drawn",
        style="dim",
    )


def picture(
    index: int,
    before: str,
    candidates: Sequence[Candidate],
    entropy_bits: float,
    kept: float | None,
    width: int,
    forced: bool = False,
) -> Text:
    """One step: the text so far, then a line per candidate, the chosen one marked."""
    rank = next(c.rank for c in candidates if c.chosen)
    facts = f"  rank {rank}, entropy {entropy_bits:.2f} bits"
    if kept is not None:
        facts += f", kept {percent(kept).strip()}"
    if forced:
        facts = f"  forced,{facts[1:]}"
    head = f"{index:>3} "
    room = width - cell_len(head) - cell_len(facts) - 1
    out = Text()
    out.append(head, style="bold cyan")
    out.append(set_cell_size(tail(before, room), room))
    out.append(facts + "\n", style="dim")
    for candidate in candidates:
        out.append_text(_line(candidate, width))
    return out


def _line(candidate: Candidate, width: int) -> Text:
    cells = width - TOKEN_CELLS - 20
    style = "bold green" if candidate.chosen else ""
    line = Text(f"{CHOSEN if candidate.chosen else ' '} ", style=style)
    line.append(fit(candidate.token, TOKEN_CELLS) + " ", style=style)
    line.append(bar(candidate.prob, cells), style="green" if candidate.chosen else "cyan")
    drawn = "–" if candidate.drawn_prob is None else percent(candidate.drawn_prob)
    line.append(f" {percent(candidate.prob)} {drawn:>7}\n", style=style)
    return line


def tsv(
    sample: str,
    index: int,
    candidates: Sequence[Candidate],
    entropy_bits: float,
    kept: float | None,
    forced: bool,
) -> str:
    """One step as rows under TSV_HEADER, numbers in full; `forced` is what was chosen."""

    def full(value: float | None) -> str:
        return "" if value is None else f"{value:.6g}"

    return "".join(
        f"{sample}\t{index}\t{int(c.chosen)}\t{c.rank}\t{c.id}\t{c.token}\t{c.prob:.6g}\t{full(c.drawn_prob)}"
        f"\t{entropy_bits:.6g}\t{full(kept)}\t{int(forced and c.chosen)}\n"
        for c in candidates
    )
