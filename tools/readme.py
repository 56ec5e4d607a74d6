"""The README's examples, run: `python tools/readme.py` writes what they print today.

An example is a line of an indented block that begins with `$`, with the lines that a backslash
joins to it; what follows, up to the next `$` or the end of the block, is what it printed. Each is
run as on a terminal of COLUMNS, all in one folder, so that one may read what another has written;
a file that `cat` shows is made of what the README shows of it. An example that fails, for want of a
model that is not here, is told and left as it was. Prose that tells of the output is for you to
read again.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
COLUMNS, LINES = 80, 60
INDENT = "    "
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


def examples(lines: list[str]) -> Iterator[tuple[str, slice]]:
    """Each command of the README, and which lines are its output."""
    at = 0
    while at < len(lines):
        if not lines[at].startswith(f"{INDENT}$ "):
            at += 1
            continue
        command = lines[at].removeprefix(f"{INDENT}$ ")
        at += 1
        while command.endswith("\\"):
            command = f"{command[:-1]} {lines[at].strip()}"
            at += 1
        start = at
        while at < len(lines) and not lines[at].startswith(f"{INDENT}$ "):
            if lines[at] and not lines[at].startswith(INDENT):
                break
            at += 1
        end = at
        while end > start and not lines[end - 1]:  # empty lines belong to the prose
            end -= 1
        yield command, slice(start, end)


def printed(command: str, folder: Path) -> list[str] | None:
    """What `command` prints on a terminal, line by line, without colours; None if it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LLMCLI_MODEL"):
        env.pop(name, None)
    with subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        data = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    if process.returncode:
        print(f"{command}\n{data.decode()}", file=sys.stderr)
        return None
    text = ESCAPE.sub("", data.decode()).replace("\r\n", "\n")
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux's way to say that the last writer has gone
        return b""


def main() -> None:
    lines = README.read_text().split("\n")
    made: list[str] = []
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        for command, output in examples(lines):
            if command.startswith("cat "):
                text = "\n".join(line.removeprefix(INDENT) for line in lines[output])
                (Path(folder) / command.removeprefix("cat ")).write_text(text + "\n")
            new = printed(command, Path(folder))
            if new is not None:
                made += lines[done : output.start]
                made += [f"{INDENT}{line}".rstrip() for line in new]
                done = output.stop
    README.write_text("\n".join(made + lines[done:]))


if __name__ == "__main__":
    main()
