"""What can be done with models that are in the cache: take them out, hash them anew. No network."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from llmcli.errors import IntegrityError, NotFoundError, UsageError, shown
from llmcli.hub import cache
from llmcli.hub.cache import Manifest
from llmcli.hub.library import WeakFileLock
from llmcli.hub.names import HubName
from llmcli.hub.transfer import Progress, digest

_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a blob, or SHA-256


def place(name: HubName, whole: bool) -> tuple[Path, str | None]:
    """The model's folder in the cache, and the commit. Raises NotFoundError where it is not."""
    folder = cache.repo_folder(name.repo)
    if not folder.is_dir() and name.short:
        folder = cache.repo_folder(name.short)
    commit = cache.commit_of(folder, name.revision)
    if not folder.is_dir() or (not whole and commit not in cache.commits(folder)):
        called = name if whole else name.full
        raise NotFoundError(f"{called} is not here.", "See what is: llmcli download --list")
    return folder, commit


def remove(name: HubName, whole: bool) -> int:
    """Take a model, or one revision where not `whole`, out of the cache: the bytes set free.

    Raises UsageError while another process fetches a file of it. Other models are not looked at.
    """
    folder, commit = place(name, whole)
    if folder.is_symlink() and whole:  # what it leads to is not the cache's
        folder.unlink()
        return 0
    locks = cache.locks_of(folder)
    others = [other for other in cache.commits(folder) if other != commit]
    try:
        with _all_locked(name, locks):
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


def verify(snapshot: Path, progress: Progress) -> tuple[list[str], list[str]]:
    """Hash every file of a snapshot anew: the damaged ones, and those that have no known hash.

    A file's hash is its blob's name, or in the manifest. Where one is wrong the manifest goes, so
    that the next download looks at every file again, and fetches that one.
    """
    manifest = Manifest.read(snapshot)
    stamps = manifest.files if manifest else {}
    paths = sorted(path for path in snapshot.iterdir() if not path.is_dir())
    damaged = [name for name in stamps if not (snapshot / name).exists()]
    unknown: list[str] = []
    for path in paths:
        hash = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
        hash = stamps[path.name][1] if path.name in stamps else hash
        if path.is_file() and not _HASH.fullmatch(hash):
            unknown.append(path.name)
            continue
        nbytes = path.stat().st_size if path.is_file() else 0
        tell = partial(progress.checking, path.name, nbytes=nbytes)
        right = path.is_file() and hash == digest(path, hash, tell)
        if right:
            progress.done(path.name, nbytes, fetched=True)
        elif path.name not in damaged:
            damaged.append(path.name)
    if damaged and manifest:
        Manifest.path(snapshot).unlink(missing_ok=True)
    return damaged, unknown
