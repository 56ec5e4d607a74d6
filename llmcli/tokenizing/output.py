"""Ids -> a file of them: raw numbers, or NumPy's .npy."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

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
