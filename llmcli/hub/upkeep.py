"""What can be done with models that are in the cache: take them out, hash them anew. No network."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from huggingface_hub import scan_cache_dir

from llmcli.errors import IntegrityError, NotFoundError, shown
from llmcli.hub import cache
from llmcli.hub.cache import Manifest
from llmcli.hub.names import HubName
from llmcli.hub.transfer import Progress, digest


def remove(name: HubName, whole: bool) -> int:
    """Take a model, or one revision where not `whole`, out of the cache: the bytes set free."""
    folder = cache.repo_folder(name.repo)
    if not folder.is_dir() and name.short:
        folder = cache.repo_folder(name.short)
    commit = cache.commit_of(folder, name.revision)
    others = [other for other in cache.commits(folder) if other != commit]
    if not folder.is_dir() or (not whole and commit not in cache.commits(folder)):
        raise NotFoundError(f"{name} is not here.", "See what is: llmcli download --list")
    if whole or not others:
        nbytes = cache.folder_nbytes(folder / "blobs")
        if folder.is_symlink():  # what it leads to is not the cache's
            folder.unlink()
            return 0
        shutil.rmtree(folder)
        shutil.rmtree(cache.cache_dir() / ".locks" / folder.name, ignore_errors=True)
        return nbytes
    strategy = scan_cache_dir(cache.cache_dir()).delete_revisions(str(commit))
    strategy.execute()
    if (folder / "snapshots" / str(commit)).exists():
        raise IntegrityError(
            f"{name} cannot be told apart from the rest of {shown(str(folder), 300)}.",
            f"Remove all of it: llmcli download --remove {name.short or name.repo}",
        )
    Manifest.path(folder / "snapshots" / str(commit)).unlink(missing_ok=True)
    return strategy.expected_freed_size


def verify(snapshot: Path, progress: Progress) -> list[str]:
    """Hash every file of a snapshot anew: the names of those that are not what they should be.

    A file's hash is its blob's name, or in the manifest. Where one is wrong the manifest goes, so
    that the next download looks at every file again, and fetches that one.
    """
    manifest = Manifest.read(snapshot)
    stamps = manifest.files if manifest else {}
    paths = sorted(path for path in snapshot.iterdir() if not path.is_dir())
    wrong = [name for name in stamps if not (snapshot / name).exists()]
    for path in paths:
        hash = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
        hash = stamps[path.name][1] if path.name in stamps else hash
        nbytes = path.stat().st_size if path.is_file() else 0
        tell = partial(progress.checking, path.name, nbytes=nbytes)
        right = path.is_file() and hash == digest(path, hash, tell)
        if right:
            progress.done(path.name, nbytes, fetched=True)
        elif path.name not in wrong:
            wrong.append(path.name)
    if wrong and manifest:
        Manifest.path(snapshot).unlink(missing_ok=True)
    return wrong
