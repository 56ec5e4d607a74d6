"""One file: its bytes from the hub into the cache, resumed where they stopped, hashed, then shown.

A blob is written as <hash>.incomplete and renamed when its hash is right: what has the name has
the content. The lock file is the one that huggingface_hub takes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from llmcli.errors import FULL, IntegrityError, NotFoundError, ResourceError, shown
from llmcli.hub.http import Attempts, Hiccup, Hub
from llmcli.hub.library import WeakFileLock
from llmcli.hub.listing import Listing, RemoteFile
from llmcli.units import sized

CHUNK_NBYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)")


class Progress(Protocol):
    """What a download tells while it runs."""

    def planned(self, model: str, commit: str, nbytes: int) -> None:
        """So many bytes make the model, those that are here included; more may be found later."""

    def at(self, file: str, position: int, nbytes: int) -> None:
        """`file` has come as far as byte `position` of `nbytes`."""

    def checking(self, file: str, position: int, nbytes: int) -> None:
        """`file` is hashed as far as byte `position` of `nbytes`."""

    def done(self, file: str, nbytes: int, fetched: bool) -> None:
        """`file` is whole and verified; not `fetched`: it was here before."""

    def say(self, text: str) -> None:
        """A retry, a wait, a file fetched anew: one line."""


class _WrongContent(Exception):
    """What came is not what the hub states; the text says how."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Brings the files of one commit into `blobs`, a folder of files named by their hash."""

    hub: Hub
    listing: Listing
    blobs: Path
    locks: Path
    progress: Progress
    received: dict[str, int] = field(default_factory=dict)  # bytes that came, by file

    def bring(self, file: RemoteFile, trusted: bool = False) -> Path:
        """The blob of `file`, verified; `trusted` where it was, and has not changed since.

        Raises NetworkError, IntegrityError (twice the wrong content), ResourceError.
        """
        blob = self.blobs / file.hash
        with locked(self.locks / f"{file.hash}.lock", file.name, self.progress.say):
            if trusted and is_file_of(blob, file.nbytes):
                self.progress.done(file.name, file.nbytes, fetched=False)
                return blob
            if blob.is_file():
                if self._is_right(blob, file):
                    self.progress.done(file.name, file.nbytes, fetched=False)
                    return blob
                self.progress.say(f"{file.name}: the copy in the cache is damaged; fetched anew")
                blob.unlink()  # no command may use it, whatever happens next
            self._fetch(file, incomplete := self.blobs / f"{file.hash}.incomplete")
            os.replace(incomplete, blob)
        self.progress.done(file.name, file.nbytes, fetched=True)
        return blob

    def _fetch(self, file: RemoteFile, path: Path) -> None:
        """Fill `path` until it is `file`; wrong content is dropped and fetched once more."""
        attempts = Attempts(file.name, self.hub.patience, self.progress.say)
        for last in (False, True):
            try:
                attempts.until(lambda: self._pull(file, path))
                if self._is_right(path, file):
                    return
                raise _WrongContent("has a wrong hash")
            except _WrongContent as wrong:
                path.unlink(missing_ok=True)
                if last:
                    raise IntegrityError(
                        f"{self.listing.name.repo}: {file.name} {wrong}, twice; it is not kept.",
                        "Try again later, or another --revision.",
                    ) from None
                self.progress.say(f"{file.name} {wrong}; fetched anew")

    def _pull(self, file: RemoteFile, path: Path) -> None:
        """Append to `path` what it lacks. Raises Hiccup where less comes, _WrongContent for more.

        Bytes are written as they come: however this ends, the next attempt goes on from there.
        """
        with _opened(path) as out:
            here = os.fstat(out).st_size
            here = here if here <= file.nbytes else 0
            if here < file.nbytes:
                with self.hub.get(self._path(file), offset=here) as response:
                    here = self._judge(response, file, here)
                    os.ftruncate(out, here)
                    os.lseek(out, here, os.SEEK_SET)
                    self.progress.at(file.name, here, file.nbytes)
                    for chunk in response.iter_bytes():
                        here += len(chunk)
                        self.received[file.name] = self.received.get(file.name, 0) + len(chunk)
                        if here > file.nbytes:
                            raise _WrongContent(f"is longer than the {file.nbytes} bytes stated")
                        _write(out, chunk, file.nbytes - here)
                        self.progress.at(file.name, here, file.nbytes)
            else:
                os.ftruncate(out, here)
            if here < file.nbytes:
                raise Hiccup(f"it ended at byte {here} of {file.nbytes}")
            os.fsync(out)

    def _judge(self, response: Any, file: RemoteFile, here: int) -> int:
        """The byte that the response's body begins at: `here`, or 0 where no range was served."""
        status, headers = response.status_code, response.headers
        span = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        total = span[2] if span else headers.get("Content-Length", "") if status == 200 else ""
        plain = headers.get("Content-Encoding", "identity") == "identity"
        if plain and status in (200, 206, 416) and total.isdecimal() and int(total) != file.nbytes:
            raise _WrongContent(f"has {int(total)} bytes, not the {file.nbytes} stated")
        if status == 200:
            return 0
        if status == 206 and here and span and span[1] and int(span[1]) == here:
            return here
        if status in (206, 416):
            (self.blobs / f"{file.hash}.incomplete").unlink(missing_ok=True)
            raise Hiccup(f"the server does not go on at byte {here}")
        refusal = self.hub.refusal(
            response, self.listing.name.repo, self.listing.commit, f"{file.name} of {self._commit}"
        )
        if isinstance(refusal, NotFoundError):
            refusal.remedy = "It may have been moved just now: run the same command again."
        raise refusal

    def _path(self, file: RemoteFile) -> str:
        return f"/{self.listing.name.repo}/resolve/{self.listing.commit}/{quote(file.name)}"

    @property
    def _commit(self) -> str:
        return f"{self.listing.name.repo}@{self.listing.commit[:12]}"

    def _is_right(self, path: Path, file: RemoteFile) -> bool:
        """Whether the content is what the hub states."""
        if not is_file_of(path, file.nbytes):
            return False
        return file.hash == digest(
            path, file.hash, lambda n: self.progress.checking(file.name, n, file.nbytes)
        )


def digest(path: Path, like: str, tell: Callable[[int], None] = lambda position: None) -> str:
    """The hash of a file, of the kind that `like` is: SHA-256, or git's of a blob (SHA-1)."""
    if len(like) == 64:
        state = hashlib.sha256()
    else:
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_NBYTES):
            state.update(chunk)
            position += len(chunk)
            tell(position)
    return state.hexdigest()


def is_file_of(path: Path, nbytes: int) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == nbytes


def check_room(folder: Path, needed: int) -> None:
    """Raises ResourceError where the disk has less than `needed` bytes for `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{sized(needed)} are needed on the disk of {shown(str(folder), 200)}, "
            f"and {sized(free)} are available.",
            "Free some space, or choose another disk with HF_HOME.",
        )


@contextmanager
def locked(path: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock, and say so where another process holds it first."""
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=0.2))
        except TimeoutError:  # filelock's is one
            say(f"{what}: another process fetches it; waiting")
            stack.enter_context(WeakFileLock(path))
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file to write to, made if need be; a link put in its place is not followed."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        out = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        path.unlink()
        out = os.open(path, flags, 0o666)
    try:
        yield out
    finally:
        os.close(out)


def _write(out: int, chunk: bytes, rest: int) -> None:
    try:
        view = memoryview(chunk)
        while view:
            view = view[os.write(out, view) :]
    except OSError as error:
        if error.errno not in FULL:
            raise
        needed = sized(rest + len(chunk))
        if error.errno != errno.ENOSPC:
            raise ResourceError(
                f"The file may not grow larger here ({error.strerror}): {needed} are still needed.",
                "Raise the limit (the disk's, a quota, ulimit -f), or choose another folder with "
                "HF_HOME.",
            ) from error
        free = os.statvfs(out).f_bavail * os.statvfs(out).f_frsize
        raise ResourceError(
            f"The disk is full: {needed} are still needed, and {sized(free)} are available.",
            "Free some space and run this again: it goes on where it stopped.",
        ) from error
