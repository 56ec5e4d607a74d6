"""A whole model into the cache, or nothing that any command would use.

In this order: what the hub has (one request), config.json, the small files, the weights; after
each, `check` may refuse the model before more is fetched. Only when all are verified do they
appear under snapshots/, config.json last, and only then does the branch point there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmcli.errors import IntegrityError, LLMCLIError, NotFoundError, shown
from llmcli.hub import cache, listing, transfer
from llmcli.hub.cache import Manifest
from llmcli.hub.http import Hub, Patience, is_offline
from llmcli.hub.listing import Listing, RemoteFile
from llmcli.hub.names import HubName, is_commit
from llmcli.hub.transfer import Progress, Transfer

# A folder, and what of it is new: "config", then "text", then "weights"; or "tokenizer", without.
Check = Callable[[Path, str], None]


@dataclass
class Result:
    """What a download has come to; in a dry run, what it would come to."""

    name: HubName
    commit: str
    folder: Path
    files: list[RemoteFile] = field(default_factory=list)
    here: dict[str, int] = field(default_factory=dict)  # by file: the bytes that were here before
    fetched_nbytes: int = 0

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    def is_here(self, file: RemoteFile) -> bool:
        """Whether all of `file` was here before."""
        return self.here[file.name] == file.nbytes


def download(
    name: HubName,
    check: Check,
    progress: Progress,
    *,
    tokenizer_only: bool = False,
    dry_run: bool = False,
    patience: Patience | None = None,
) -> Result:
    """The model `name` in the cache, every file what the hub states and every header read.

    With all present, a commit is answered without the network. Raises what goes wrong as a known
    error; what has come so far stays for the next run, out of every other command's sight.
    """
    folder = cache.repo_folder(name.repo)
    if is_commit(name.revision) or is_offline():  # a branch may have moved, and that is asked
        commit = cache.commit_of(folder, name.revision)
        if done := _done_before(name, commit, tokenizer_only):
            return done
    hub = Hub(patience or Patience())
    found = listing.ask(hub, name, progress.say)
    small = found.text_files(tokenizer_only)
    if not dry_run and (done := _unchanged(found, small, tokenizer_only)):
        return done
    weights = [] if tokenizer_only else [found.files[n] for n in found.weight_names()]
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            carrier = Transfer(hub, found, Path(scratch), Path(scratch), progress)
            return _planned(carrier, small, weights, folder)
    try:
        with (
            _to_itself(folder, name, progress),
            tempfile.TemporaryDirectory(prefix="llmcli-") as stage,
        ):
            room = _Room(folder, found.commit)
            carrier = Transfer(hub, found, room.blobs, room.locks, progress)
            delivery = _Delivery(carrier, room, Path(stage), check, name)
            files = delivery.all(small, weights)
            room.show(name, delivery.blobs, files, tokenizer_only)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise NotFoundError(
            f"{shown(str(error.filename), 300)} cannot be written ({error.strerror}).",
            "Choose another folder with HF_HOME.",
        ) from error
    fetched_nbytes = sum(carrier.received.values())
    return Result(name, found.commit, room.snapshot, files, delivery.here, fetched_nbytes)


def _done_before(name: HubName, commit: str | None, tokenizer_only: bool) -> Result | None:
    """The result for a commit of which all is here, verified, and unchanged since."""
    snapshot = cache.repo_folder(name.repo) / "snapshots" / (commit or "none")
    manifest = Manifest.read(snapshot)
    if manifest is None or (manifest.part and not tokenizer_only):
        return None
    if any(_changed(snapshot / file, stamp) for file, stamp in manifest.files.items()):
        return None
    if cache.missing_files(snapshot, tokenizer_only):
        return None
    files = list(listing.known(name, manifest).files.values())
    here = {file.name: file.nbytes for file in files}
    return Result(name, snapshot.name, snapshot, files, here)


def _unchanged(found: Listing, small: list[RemoteFile], tokenizer_only: bool) -> Result | None:
    """The result where the branch is what it was, and all of it is here: nothing is written."""
    if cache.commit_of(cache.repo_folder(found.name.repo), found.name.revision) != found.commit:
        return None
    done = _done_before(found.name, found.commit, tokenizer_only)
    return done if done and {file.name for file in small} <= done.here.keys() else None


def _changed(path: Path, stamp: tuple[int, str, int]) -> bool:
    """Whether a file is not the one that was verified: its size and time tell."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # a name with a NUL
        return True
    return (found.st_size, found.st_mtime_ns) != (stamp[0], stamp[2])


def _planned(
    carrier: Transfer, small: list[RemoteFile], weights: list[RemoteFile], folder: Path
) -> Result:
    """What would be fetched. The index alone is really fetched, to scratch: it names the shards."""
    found = carrier.listing
    if weights and weights[0].name == cache.INDEX:
        index = folder / "blobs" / weights[0].hash
        index = index if index.is_file() else carrier.bring(weights[0])
        weights = [*weights, *found.shards(cache.shards(index))]
    files = [*small, *weights]
    here = {file.name: _nbytes_here(folder / "blobs", file) for file in files}
    to_fetch = sum(file.nbytes - here[file.name] for file in files)
    snapshot = folder / "snapshots" / found.commit
    return Result(found.name, found.commit, snapshot, files, here, to_fetch)


def _nbytes_here(blobs: Path, file: RemoteFile) -> int:
    """How much of a file an earlier run has brought, right or wrong."""
    for path in (blobs / file.hash, blobs / f"{file.hash}.incomplete"):
        if path.is_file():
            return min(file.nbytes, path.stat().st_size)
    return 0


@dataclass
class _Delivery:
    """Brings files in order, and shows them to `check` in a folder of their own."""

    carrier: Transfer
    room: _Room
    stage: Path
    check: Check
    name: HubName
    blobs: dict[str, Path] = field(default_factory=dict)
    here: dict[str, int] = field(default_factory=dict)

    def all(self, small: list[RemoteFile], weights: list[RemoteFile]) -> list[RemoteFile]:
        """Every file, verified and checked, once the disk has been found to have room."""
        self._reserve([*small, *weights])
        if small[0].name == listing.CONFIG:
            self._bring(small[:1])
            if weights:
                self._look("config")
        self._bring(small[1:] if self.blobs else small)
        self._look("text" if weights else "tokenizer")
        if weights and weights[0].name == cache.INDEX:
            self._bring(weights)
            with self._named_plainly():
                names = cache.shards(self.stage / cache.INDEX)
            weights = [*weights, *self.carrier.listing.shards(names)]
            self._reserve([*small, *weights])
        if weights:
            self._bring([file for file in weights if file.name not in self.blobs])
            self._look("weights")
        return [*small, *weights]

    def _reserve(self, files: list[RemoteFile]) -> None:
        """Tell the size of it all, and raise ResourceError where the disk has no room for it."""
        nbytes = sum(file.nbytes for file in files)
        self.carrier.progress.planned(self.name.repo, self.carrier.listing.commit, nbytes)
        needed = 0
        for file in {file.hash: file for file in files}.values():
            needed += file.nbytes - _nbytes_here(self.room.blobs, file)
        transfer.check_room(self.room.blobs, needed)

    def _bring(self, files: list[RemoteFile]) -> None:
        stamps = self.room.verified
        for file in files:
            blob = self.room.blobs / file.hash
            stamp = stamps.get(file.hash)
            trusted = stamp is not None and not _changed(blob, stamp)
            self.here[file.name] = _nbytes_here(self.room.blobs, file)
            self.blobs[file.name] = self.carrier.bring(file, trusted)
            (self.stage / file.name).symlink_to(self.blobs[file.name].absolute())

    def _look(self, new: str) -> None:
        with self._named_plainly():
            self.check(self.stage, new)

    @contextlib.contextmanager
    def _named_plainly(self) -> Iterator[None]:
        """Errors that speak of the stage's folder shall speak of the model."""
        try:
            yield
        except LLMCLIError as error:
            error.fact = error.fact.replace(f"{self.stage}/", f"{self.name.repo}: ")
            error.fact = error.fact.replace(str(self.stage), self.name.repo)
            error.args = (f"{error.fact} {error.remedy}".rstrip(),)
            raise


@contextlib.contextmanager
def _to_itself(folder: Path, name: HubName, progress: Progress) -> Iterator[None]:
    """Have the model's place until all is shown: nobody removes it meanwhile."""
    locks = cache.locks_of(folder)
    _make(locks, inside=folder.parent)
    with transfer.locked(locks / "download.lock", name.repo, progress.say):
        yield


class _Room:
    """The model's place in the cache: made if need be, and nothing in it leads out of it."""

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder = folder
        self.blobs, self.snapshot = folder / "blobs", folder / "snapshots" / commit
        self.locks = cache.locks_of(folder)
        for inner in (self.blobs, self.snapshot.parent, folder / "refs", folder / ".llmcli"):
            _make(inner, inside=folder)
        _make(self.locks, inside=folder.parent)
        self.verified: dict[str, tuple[int, str, int]] = {}
        for other in cache.commits(folder):
            if manifest := Manifest.read(self.snapshot.parent / other):
                self.verified |= {stamp[1]: stamp for stamp in manifest.files.values()}

    def show(
        self, name: HubName, blobs: dict[str, Path], files: list[RemoteFile], part: bool
    ) -> None:
        """Link the verified files, config.json last; write what was verified; move the branch."""
        _make(self.snapshot, inside=self.folder)
        for file in sorted(files, key=lambda file: file.name == listing.CONFIG):
            self._link(file, self.snapshot / file.name)
        old = Manifest.read(self.snapshot)
        stamps = dict(old.files) if old else {}
        for file in files:
            stamps[file.name] = (file.nbytes, file.hash, blobs[file.name].stat().st_mtime_ns)
        part = part and (old is None or old.part)
        text = json.dumps({"schema": 1, "part": part, "files": stamps}, indent=1)
        self._write(Manifest.path(self.snapshot), text)
        if name.revision != self.snapshot.name:
            ref = self.folder / "refs" / name.revision
            _make(ref.parent, inside=self.folder)
            if cache.commit_of(self.folder, name.revision) != self.snapshot.name:
                self._write(ref, self.snapshot.name)

    def _link(self, file: RemoteFile, path: Path) -> None:
        target = os.path.join("..", "..", "blobs", file.hash)
        with contextlib.suppress(OSError):
            if os.readlink(path) == target:
                return
        if path.is_dir() and not path.is_symlink():
            raise NotFoundError(
                f"{shown(str(path), 300)} is in the way: a folder.", "Move it away first."
            )
        link = self._scratch()
        os.symlink(target, link)
        os.replace(link, path)

    def _write(self, path: Path, text: str) -> None:
        """Put a file in its place whole: who reads it meanwhile sees the old one or the new."""
        scratch = self._scratch()
        scratch.write_text(text)
        os.replace(scratch, path)

    def _scratch(self) -> Path:
        return self.folder / ".llmcli" / f"{uuid.uuid4().hex}.tmp"


def _make(folder: Path, inside: Path) -> None:
    """Make `folder`; one that a link leads out of `inside` is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotFoundError(f"{shown(str(folder), 300)} is in the way: no folder.") from error
    if not folder.resolve().is_relative_to(inside.resolve()):
        raise IntegrityError(
            f"{shown(str(folder), 300)} leads out of the cache.", "Remove that link first."
        )
