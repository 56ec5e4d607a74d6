"""What can be done with models that are in the cache: take them out, hash them anew. No network."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmcli.errors import IntegrityError, NotFoundError, UsageError, shown
from llmcli.hub import cache
from llmcli.hub.cache import Manifest
from llmcli.hub.library import WeakFileLock
from llmcli.hub.names import HubName
from llmcli.hub.transfer import Progress, digest

_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a blob, or SHA-256


@dataclass(frozen=True, slots=True)
class Spot:
    """A model, or one revision of it, in the cache."""

    folder: Path
    commit: str | None  # None: all of it
    ref: str | None  # the branch or tag, where the revision is called by one

    @property
    def is_here(self) -> bool:
        whole = self.commit is None
        return self.folder.is_dir() and (whole or self.commit in cache.commits(self.folder))

    @property
    def sharing(self) -> list[str]:
        """The branches and tags that keep the commit when the one that is named goes."""
        refs = cache.refs(self.folder).get(self.commit or "", []) if self.ref else []
        return [ref for ref in refs if ref != self.ref]


def places(name: HubName, whole: bool) -> list[Spot]:
    """Where the model, or one revision of it, is: a short name may have two homes.

    Raises NotFoundError where it is not.
    """
    found: list[Spot] = []
    for home in filter(None, (name.repo, name.short)):
        folder = cache.repo_folder(home)
        commit = None if whole else cache.commit_of(folder, name.revision)
        is_ref = commit and name.revision in cache.refs(folder).get(commit, [])
        spot = Spot(folder, commit, name.revision if is_ref else None)
        if (whole or commit) and spot.is_here:
            found.append(spot)
    if not found:
        called = name if whole else name.full
        raise NotFoundError(f"{called} is not here.", "See what is: llmcli download --list")
    return found


def remove(name: HubName, spot: Spot) -> int:
    """Take what is at a spot, which is of the model `name`, out of the cache: the bytes set free.

    A branch or tag goes alone where others point at its commit. Raises UsageError while another
    process fetches a file of the model. Other models are not looked at.
    """
    folder, commit = spot.folder, spot.commit
    whole = commit is None
    if not spot.is_here:
        return 0
    if folder.is_symlink() and whole:  # what it leads to is not the cache's
        folder.unlink()
        return 0
    locks = cache.locks_of(folder)
    others = [other for other in cache.commits(folder) if other != commit]
    try:
        with _all_locked(name, locks):
            if spot.ref and spot.sharing:
                (folder / "refs" / spot.ref).unlink(missing_ok=True)
                return 0
            if not whole and (others or folder.is_symlink()):
                return _remove_revision(name, folder, str(commit))
            nbytes = cache.folder_nbytes(folder / "blobs")
            shutil.rmtree(folder)
            shutil.rmtree(locks, ignore_errors=True)
            return nbytes
    except OSError as error:
        raise NotFoundError(
            f"{shown(str(error.filename or folder), 300)} cannot be removed ({error.strerror})."
        ) from error


def _remove_revision(name: HubName, folder: Path, commit: str) -> int:
    """Remove a snapshot, the refs to it, and the blobs that no other snapshot links to."""
    snapshot = folder / "snapshots" / commit
    if snapshot.is_symlink() or snapshot.parent.is_symlink() or (folder / "blobs").is_symlink():
        raise IntegrityError(
            f"{name} cannot be told apart from the rest of {shown(str(folder), 300)}.",
            f"Remove all of it: llmcli download --remove {name.short or name.repo}",
        )
    mine = _blobs(snapshot)
    for other in snapshot.parent.iterdir():
        if other.name != commit:
            mine -= _blobs(other)
    own = [path for path in snapshot.rglob("*") if path.is_file() and not path.is_symlink()]
    nbytes = sum(path.stat().st_size for path in [*own, *(folder / "blobs" / b for b in mine)])
    for ref in cache.refs(folder).get(commit, []):
        (folder / "refs" / ref).unlink(missing_ok=True)
    shutil.rmtree(snapshot)
    Manifest.path(snapshot).unlink(missing_ok=True)
    for blob in mine:
        (folder / "blobs" / blob).unlink(missing_ok=True)
    return nbytes


def _blobs(snapshot: Path) -> set[str]:
    """The names of the blobs, of those that are there, that a snapshot's files lead to."""
    blobs = snapshot.parents[1].resolve() / "blobs"
    targets = [Path(os.path.realpath(path)) for path in snapshot.rglob("*") if path.is_symlink()]
    return {path.name for path in targets if path.parent == blobs and path.is_file()}


@contextmanager
def _all_locked(name: HubName, locks: Path) -> Iterator[None]:
    """Hold every lock of a model's files. Raises UsageError where another process holds one."""
    with ExitStack() as stack:
        try:
            for path in sorted(locks.glob("*.lock")):
                stack.enter_context(WeakFileLock(path, timeout=0.2))
        except TimeoutError:
            raise UsageError(
                f"{name} is being downloaded by another process.", "Remove it when that has ended."
            ) from None
        yield


@dataclass
class Findings:
    """What is wrong with a snapshot: the names of its files."""

    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # without a hash to be compared with


def verify(snapshot: Path, progress: Progress) -> Findings:
    """Hash every file of a snapshot anew, and look for those that belong there and are not.

    A file's hash is its blob's name, or in the manifest. One that is wrong is marked as changed,
    so that the next download looks at it again, and fetches it.
    """
    manifest = Manifest.read(snapshot)
    stamps = manifest.files if manifest else {}
    found = Findings(missing=_missing(snapshot, manifest))
    for path in sorted(path for path in snapshot.iterdir() if not path.is_dir()):
        if path.name in found.missing:
            continue
        hash = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
        hash = stamps[path.name][1] if path.name in stamps else hash
        if not path.is_file():
            found.missing.append(path.name)
        elif not _HASH.fullmatch(hash):
            found.unknown.append(path.name)
        else:
            nbytes = path.stat().st_size
            tell = partial(progress.checking, path.name, nbytes=nbytes)
            if hash == digest(path, hash, tell):
                progress.done(path.name, nbytes, fetched=True)
                continue
            found.damaged.append(path.name)
            with suppress(OSError):  # who may not write here does not download here either
                os.utime(path)
    return found


def _missing(snapshot: Path, manifest: Manifest | None) -> list[str]:
    """What was here once, or without which the rest is of no use, and is no file."""
    gone = [name for name in manifest.files if not (snapshot / name).is_file()] if manifest else []
    part = manifest.part if manifest else cache.state(snapshot) == "tokenizer only"
    try:
        return list(dict.fromkeys([*gone, *cache.missing_files(snapshot, tokenizer_only=part)]))
    except IntegrityError:  # of an index that names no shards: its hash tells
        return gone
