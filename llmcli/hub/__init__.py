"""Model name -> folder on disk. Knows names and folders, not what the files hold.

`names` and `cache` are read by every command and import nothing heavy; `library`, `http`,
`listing`, `transfer` and `download` are for `llmcli download` alone: huggingface_hub is imported
there.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from llmcli.errors import NotFoundError, shown
from llmcli.hub import cache
from llmcli.hub.names import EMBEDDED, KNOWN, HubName, is_commit, is_name, nearest, parse

__all__ = ["EMBEDDED", "cached", "known_names", "named", "present", "resolve", "revision_of"]


def resolve(name: str, tokenizer_only: bool = False) -> Path:
    """The folder of the model called `name`; the network is never asked.

    In this order: the embedded model, a short name, a folder, `org/name[@revision]`, or an old name
    without an org, in the Hugging Face cache. Raises NotFoundError with the nearest names, or the
    command that gets the model.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name.partition("@")[0] not in KNOWN and (folder := _folder(name)):
        return folder
    wanted = named(name)
    if wanted is None:
        near = nearest(name, cache.repos())
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise NotFoundError(
            f"There is no model called {shown(name)!r}.",
            f"{hint}A model is a folder, org/name on the hub, or one of: "
            f"{', '.join([*EMBEDDED, *KNOWN])}.",
        )
    return cached(wanted, tokenizer_only)


def named(name: str, revision: str | None = None) -> HubName | None:
    """The hub's model called `name`; one without an org where the cache has it, as old ones are."""
    repo = name.partition("@")[0]
    bare = is_name(repo) and cache.repo_folder(repo).is_dir()
    return parse(name, revision, bare)


def revision_of(folder: Path) -> str | None:
    """The commit of a folder that `resolve` found in the cache, else None."""
    in_cache = folder.parent.name == "snapshots" and is_commit(folder.name)
    return folder.name if in_cache else None


def known_names() -> list[str]:
    """What `--model` may be, for completion: ours, the short names, what is whole in the cache."""
    names = [*EMBEDDED, *KNOWN]
    with suppress(OSError):  # of a cache that may not be read nothing can be proposed
        for model in cache.local_models():
            if model.state == "whole" and model.repo not in (*EMBEDDED, *KNOWN):
                main = "main" in model.refs
                names.append(model.repo if main else f"{model.repo}@{model.commit[:12]}")
    return names


def _folder(name: str) -> Path | None:
    """`name` as a path to a folder. Raises NotFoundError where it is a file.

    PermissionError is raised where one may not even look: that is not to be told as its absence.
    """
    path = Path(name)
    if not name.strip():  # an empty variable, and not the folder where one happens to be
        raise NotFoundError("The model has no name.", "For example: -m fable, or -m FOLDER")
    try:
        path = path.expanduser()
        if path.is_dir():
            return path
        exists = path.exists()
    except PermissionError:
        raise
    except (OSError, ValueError, RuntimeError):  # too long, holding NUL, or no such user's home
        exists = False
    if exists:
        raise NotFoundError(
            f"{shown(name)} is a file, not a model's folder.",
            "Name the folder that holds config.json, tokenizer.json and model.safetensors.",
        )
    return None


def cached(wanted: HubName, tokenizer_only: bool = False) -> Path:
    """The snapshot in the cache, whole. Raises NotFoundError with the command that gets it."""
    snapshot = present(wanted, tokenizer_only)
    if missing := cache.missing_files(snapshot, tokenizer_only):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise NotFoundError(
            f"{wanted} is not whole here: {missing[0]}{more} is missing.",
            f"Get the rest with: llmcli download {wanted}",
        )
    return snapshot


def present(wanted: HubName, tokenizer_only: bool = False) -> Path:
    """The snapshot in the cache, whole or not; a short name's old home without an org counts too.

    Raises NotFoundError with the whole snapshots of other revisions, or the command that gets it.
    """
    here: list[Path] = []
    for repo in dict.fromkeys((wanted.repo, wanted.short or wanted.repo)):
        folder = cache.repo_folder(repo)
        commit = cache.commit_of(folder, wanted.revision)
        if commit is not None and (folder / "snapshots" / commit).is_dir():
            here.append(folder / "snapshots" / commit)
    if here:
        return min(here, key=lambda snapshot: bool(cache.missing_files(snapshot, tokenizer_only)))
    folder = cache.repo_folder(wanted.repo)
    others = [c for c in cache.commits(folder) if cache.state(folder / "snapshots" / c) == "whole"]
    remedy = f"Get it with: llmcli download {wanted}"
    if names := " or ".join(f"{wanted.repo}@{commit[:12]}" for commit in others):
        remedy = f"Here is {names}: use that name, or get this one with: llmcli download {wanted}"
    raise NotFoundError(f"{wanted} is not downloaded yet.", remedy)
