"""What a picture is of, as a shell names it: for the commands that look further."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

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
        elif about and (len(self.text) > MAX_TEXT or self.text == "-"):  # which means stdin
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


def quoted(text: str) -> str:
    """`text` as one word of a command; what cannot be seen as bash and zsh escape it."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(c: str) -> str:
    if c == "\n":
        return "\\n"
    if c in "\\'":
        return f"\\{c}"
    return c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 1 << 16 else f"\\U{ord(c):08x}"
