"""Ids -> a file of them, under its name only once it is whole: raw numbers, or NumPy's .npy."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from llmcli.errors import NotFoundError, ResourceError, UsageError, shown_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NPY_HEADER = 128  # bytes: room for any number of ids


def dtype_for(vocab_size: int) -> str:
    """The smaller of two types that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class TokenFile:
    """Ids in little-endian order, without a header unless the name ends in .npy."""

    def __init__(self, file: IO[bytes], dtype: str, npy: bool) -> None:
        self.file, self.dtype, self.npy = file, dtype, npy
        self.n_tokens = 0
        if npy:
            file.write(self._header())

    def append(self, ids: NDArray[np.uint32]) -> None:
        kind = "<u2" if self.dtype == "uint16" else "<u4"
        self.file.write(ids.astype(kind, copy=False).data)
        self.n_tokens += len(ids)

    def rewind(self, n_tokens: int) -> None:
        """Forget all ids but the first `n_tokens`."""
        self.file.flush()
        self.file.seek(_NPY_HEADER * self.npy + n_tokens * (2 if self.dtype == "uint16" else 4))
        self.file.truncate()
        self.n_tokens = n_tokens

    def finish(self) -> None:
        """Write down how many ids there are, where the format does."""
        if self.npy:
            self.file.seek(0)
            self.file.write(self._header())

    def _header(self) -> bytes:
        """The .npy format, version 1.0: magic, version, length, a dict in Python's spelling."""
        kind = "<u2" if self.dtype == "uint16" else "<u4"
        fields = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({self.n_tokens},), }}"
        text = fields.encode().ljust(_NPY_HEADER - 11) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def regular(path: Path) -> Path:
    """Where `path` leads, links followed. Raises UsageError where no regular file is or can be."""
    real = Path(os.path.realpath(path))
    with suppress(OSError):  # nothing is there yet
        if not stat.S_ISREG(real.lstat().st_mode):  # a link here is one that leads round in a loop
            raise UsageError(
                f"{shown_path(path)} is no regular file, and would be replaced by one.",
                "Give --out the name of a new file.",
            )
    return real


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that gets the name `path` at the end, or is gone if there is no good end.

    A link stays, and what it leads to is replaced. Raises UsageError for what is no regular file,
    NotFoundError where it cannot be made, ResourceError where the disk is full.
    """
    path = regular(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"{shown_path(path)} was not written ({error.strerror}).",
                "Free some space, or write elsewhere.",
            ) from error
        if str(error.filename) not in map(str, (unfinished, path)):
            raise
        raise NotFoundError(
            f"{shown_path(path)} cannot be written ({error.strerror}).", "Choose another --out."
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
