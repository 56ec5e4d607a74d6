"""The Hugging Face cache as it lies on disk, read without its library: start-up stays instant.

    models--org--name/refs/main                 a branch or tag: the commit's 40 letters
    models--org--name/snapshots/<commit>/<file> a link to ../../blobs/<hash>
    models--org--name/blobs/<hash>              the content; <hash>.incomplete while it comes
    models--org--name/.llmcli/<commit>.json     ours: what was verified, see `Manifest`

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Nothing in here is trusted:
other programs write it too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.checkpoint import read_checkpoint
from llmcli.errors import IntegrityError, LLMCLIError, UnsupportedModelError, shown_path
from llmcli.hub.names import is_commit, is_name

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What text becomes ids with: one of these sets of files is enough.
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
MAX_JSON_NBYTES = 64 << 20


def cache_dir() -> Path:
    """Where models are: HF_HUB_CACHE, or `hub` in HF_HOME, or in XDG_CACHE_HOME/huggingface."""
    env = os.environ.get
    home = env("HF_HOME") or os.path.join(env("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = env("HF_HUB_CACHE") or env("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def repo_folder(repo: str) -> Path:
    return cache_dir() / "--".join(["models", *repo.split("/")])


def locks_of(folder: Path) -> Path:
    """Where the locks of a model's `folder` are."""
    return folder.parent / ".locks" / folder.name


def commit_of(folder: Path, revision: str) -> str | None:
    """The commit that `revision` (a branch, a tag, a commit or its beginning) is in the cache."""
    if is_commit(revision):
        return revision
    try:
        commit = (folder / "refs" / revision).read_text("ascii")[:41].strip()
        if is_commit(commit):
            return commit
    except (OSError, ValueError):
        pass
    near = [c for c in commits(folder) if len(revision) >= 7 and c.startswith(revision)]
    return near[0] if len(near) == 1 else None


def commits(folder: Path) -> list[str]:
    """The commits of which there is a snapshot, whole or not."""
    return sorted(name for name in _names(folder / "snapshots") if is_commit(name))


def refs(folder: Path) -> dict[str, list[str]]:
    """commit -> the branches and tags that point at it."""
    found: dict[str, list[str]] = {}
    for path in sorted((folder / "refs").rglob("*")):
        name = path.relative_to(folder / "refs").as_posix()
        if path.is_file() and (commit := commit_of(folder, name)):
            found.setdefault(commit, []).append(name)
    return found


def missing_files(snapshot: Path, tokenizer_only: bool = False) -> list[str]:
    """What `snapshot` lacks to be a model, or to tokenize; nothing where it is whole."""
    manifest = Manifest.read(snapshot)
    wanted = list(manifest.files) if manifest and not tokenizer_only else []
    if not any(all((snapshot / name).is_file() for name in files) for files in TOKENIZERS):
        wanted.append(TOKENIZERS[0][0])
    if not tokenizer_only:
        wanted += ["config.json", *weight_files(snapshot)]
    return [name for name in dict.fromkeys(wanted) if not (snapshot / name).is_file()]


def weight_files(snapshot: Path) -> list[str]:
    """The files that hold the weights: one, or the shards that the index names, and the index."""
    if (snapshot / WEIGHTS).exists() or not (snapshot / INDEX).exists():
        return [WEIGHTS]
    return [INDEX, *shards(snapshot / INDEX)]


def shards(index: Path) -> list[str]:
    """The files that a checkpoint's index names. Raises IntegrityError where one is not beside it.

    A name that could lead elsewhere, or that a terminal would obey, is damage.
    """
    raw = _read_json(index)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    plain = [name for name in names if isinstance(name, str) and is_plain(name)]
    if not names or len(plain) < len(names):
        raise IntegrityError(
            f"{shown_path(index)} does not name safetensors files beside it.",
            "Choose another model.",
        )
    return sorted(set(plain))


def is_plain(name: str) -> bool:
    """Whether this is a safetensors file's name and no path, on any system."""
    return (
        name.endswith(".safetensors")
        and name.isascii()
        and name.isprintable()
        and not name.startswith(".")
        and not set(name) & set('/\\:*?"<>| ')
        and len(name) <= 200
    )


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which files of a commit were found to be what the hub says, and when they last changed.

    It only saves work: a file that has changed since is hashed again, and without a manifest all
    are.
    """

    part: bool  # the tokenizer only
    files: dict[str, tuple[int, str, int]]  # name -> size in bytes, hash, modification time in ns

    @staticmethod
    def path(snapshot: Path) -> Path:
        return snapshot.parents[1] / ".llmcli" / f"{snapshot.name}.json"

    @classmethod
    def read(cls, snapshot: Path) -> Manifest | None:
        if not is_commit(snapshot.name) or snapshot.parent.name != "snapshots":
            return None
        try:
            raw = _read_json(cls.path(snapshot))
            files = {str(k): (int(n), str(h), int(t)) for k, (n, h, t) in raw["files"].items()}
            return cls(bool(raw["part"]), files)
        except (IntegrityError, OverflowError, ValueError, TypeError, KeyError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A revision in the cache; without a `commit` it is what an interrupted download has left."""

    repo: str
    commit: str
    refs: tuple[str, ...]
    nbytes: int
    state: str  # "whole", "tokenizer only", "partial", "damaged"
    folder: Path


def repos() -> list[str]:
    """What the models in the cache are called; none where it may not be read."""
    with suppress(OSError):
        return [model.repo for model in local_models()]
    return []


def local_models() -> Iterator[LocalModel]:
    """Every revision of every model in the cache, ours or another program's, by name.

    Raises PermissionError where it may not be read.
    """
    for entry in sorted(_names(cache_dir())):
        kind, *parts = entry.split("--")
        folder, repo = cache_dir() / entry, "/".join(parts)
        if kind != "models" or not is_name(repo):
            continue
        by_commit = refs(folder)
        for commit in commits(folder):
            snapshot = folder / "snapshots" / commit
            names = tuple(by_commit.get(commit, ()))
            nbytes = folder_nbytes(snapshot)
            yield LocalModel(repo, commit, names, nbytes, state(snapshot), snapshot)
        if not commits(folder) and (nbytes := folder_nbytes(folder / "blobs")):
            yield LocalModel(repo, "", (), nbytes, "partial", folder)


def state(snapshot: Path) -> str:
    """In one word or two what the snapshot is good for."""
    try:
        if not missing_files(snapshot):
            return "damaged" if _is_damaged(snapshot) else "whole"
    except IntegrityError:
        return "partial"
    weights = os.path.lexists(snapshot / WEIGHTS) or os.path.lexists(snapshot / INDEX)
    part = weights or bool(missing_files(snapshot, tokenizer_only=True))
    return "partial" if part else "tokenizer only"


def _is_damaged(snapshot: Path) -> bool:
    """Whether the weights are not what their headers say; what they hold is not looked at."""
    try:
        read_checkpoint(snapshot)
    except UnsupportedModelError:  # of a dtype that another program may know
        return False
    except LLMCLIError:
        return True
    return False


def folder_nbytes(folder: Path) -> int:
    """The size of the files in `folder`, links followed, what is broken left out."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _names(folder: Path) -> list[str]:
    """What is in `folder`; nothing where there is none. Raises PermissionError."""
    try:
        return os.listdir(folder)
    except PermissionError:
        raise
    except OSError:
        return []


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_NBYTES + 1)
        return json.loads(data) if len(data) <= MAX_JSON_NBYTES else None
    except (OSError, ValueError, RecursionError):
        return None
