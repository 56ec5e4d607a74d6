"""What a picture is of, as a shell names it: for the commands that look further."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from llmcli.shell import quoted

MAX_TEXT = 600  # characters that a command repeats
FILE = "your-prompt.txt"  # stands for a file that holds another prompt


@dataclass(frozen=True, slots=True)
class Subject:
    """A prompt, or a step of a trace, and the options that it was looked at with."""

    text: str = ""
    step: tuple[str, ...] = ()  # the options that name it
    model: tuple[str, ...] = ()  # the options that say which, and how it computes
    changes: tuple[str, ...] = ()  # options, too

    def command(self, words: str, width: int) -> str:
        """`llmcli` and `words`, on several lines where one of `width` does not hold them.

        Words with {} are about the prompt, which is put there, with the model; else they stand for
        themselves, with the model.
        """
        verb, about, rest = words.partition(" {}")
        ending = ""
        if about and self.step and verb == "inspect":
            verb += f" {shlex.join(self.step)}"
        elif about and (len(self.text) > MAX_TEXT or self.text == "-" or "\0" in self.text):
            verb, ending = f"{verb} -", f" < {FILE}"
        elif about and self.text.startswith("-"):
            ending = f" -- {quoted(self.text)}"
        elif about:
            verb += f" {quoted(self.text)}"
        options = shlex.join((*self.model, *self.changes) if about else self.model)
        parts = [part for part in (f"llmcli {verb}", options, f"{rest}{ending}".strip()) if part]
        line = " ".join(parts)
        return line if len(line) <= width else " \\\n            ".join(parts)


NO_SUBJECT = Subject()
