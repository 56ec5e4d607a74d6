"""Where the steps of a run go: text, a picture of the probabilities, or rows of them.

A writer is told of each step with the piece of text that has become certain, and of the end with
the rest; it is closed on Ctrl-C too, so what was generated is out.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Protocol

from llmcli.commands.options import ColorMode
from llmcli.render.text import harmless, quoted
from llmcli.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llmcli.gpt.generation import Choice, Step
    from llmcli.render.probs import Candidate


class Writer(Protocol):
    def step(self, step: Step, piece: str) -> None: ...

    def end(self, rest: str) -> None: ...


class TextWriter:
    """The text alone, as it comes: to the byte in a pipe, harmless on a terminal."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()

    def step(self, step: Step, piece: str) -> None:
        self._write(piece)

    def end(self, rest: str) -> None:
        self._write(rest)
        if self.terminal:
            self._write("\n")

    def _write(self, text: str) -> None:
        if self.terminal:
            sys.stdout.write(harmless(text))
        else:
            sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()


class TsvWriter:
    """The probabilities of each step as rows, for a pipe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llmcli.render.probs import TSV_HEADER

        self.tokenizer = tokenizer
        print(TSV_HEADER, flush=True)

    def step(self, step: Step, piece: str) -> None:
        from llmcli.render.probs import tsv

        rows = candidates(step, self.tokenizer)
        print(tsv(step.index, rows, step.entropy_bits), end="", flush=True)

    def end(self, rest: str) -> None:
        pass


class PictureWriter:
    """The probabilities of each step as bars beside the text so far, for a terminal."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, color: ColorMode) -> None:
        from llmcli.render.console import console
        from llmcli.render.probs import legend

        self.tokenizer, self.text, self.prompt = tokenizer, "", prompt
        self.console = console(color.value)
        self.console.print(legend(self.width))

    @property
    def width(self) -> int:
        return min(self.console.width, 120)

    def step(self, step: Step, piece: str) -> None:
        from llmcli.render.probs import picture

        rows = candidates(step, self.tokenizer)
        before = self.prompt + self.text
        lines = picture(step.index, before, rows, step.entropy_bits, self.width)
        self.console.print(lines, end="")
        self.text += piece

    def end(self, rest: str) -> None:
        self.console.print()
        self.console.file.write(harmless(self.text + rest) + "\n")


def candidates(step: Step, tokenizer: Tokenizer) -> list[Candidate]:
    """The step's most probable tokens in order, and the chosen one, wherever it ranks."""
    from llmcli.render.probs import Candidate

    def shown(choice: Choice, rank: int) -> Candidate:
        return Candidate(
            id=choice.id,
            token=quoted(tokenizer.token_bytes(choice.id)),
            prob=math.exp(choice.logprob),
            drawn_prob=math.exp(choice.drawn_logprob),
            rank=rank,
            chosen=choice.id == step.id,
        )

    rows = [shown(choice, rank) for rank, choice in enumerate(step.top)]
    if not any(row.chosen for row in rows):
        rows.append(shown(step.chosen, step.rank))
    return rows
