"""Files that a run writes as it goes, and what of them cannot be read again."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmcli.errors import NotFoundError, shown_path
from llmcli.trace import Damage, Reader

N_DAMAGED = 3  # lines that are named one by one


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written becomes a sentence; a full disk does too."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # said in one place for all commands
        raise NotFoundError(
            f"{shown_path(path)} cannot be written: {error.strerror}.",
            "Name a file in a folder of yours.",
        ) from error


def tell_damage(reader: Reader, quiet: bool = False) -> None:
    """On stderr: the lines that could not be read."""
    if quiet or not reader.damaged:
        return
    for damage in reader.damaged[:N_DAMAGED]:
        print(f"{reader.name}, {_where(damage)}: {damage.why}; passed over.", file=sys.stderr)
    if (more := len(reader.damaged) - N_DAMAGED) > 0:
        print(f"{reader.name}: {more} more damaged line{'s' * (more > 1)}.", file=sys.stderr)


def _where(damage: Damage) -> str:
    return f"line {damage.line}" if damage.line else "from here on"
