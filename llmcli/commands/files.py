"""Files that a run writes as it goes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmcli.errors import NotFoundError, shown_path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written becomes a sentence; a full disk does too."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # said in one place for all commands
        raise NotFoundError(f"{shown_path(path)} cannot be written: {error.strerror}.") from error
