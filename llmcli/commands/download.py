"""`llmcli download`: models from the Hugging Face hub, whole and verified; and what is here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli.commands import download_here as here
from llmcli.commands.download_here import SCHEMA, parsed, print_rows, progress_on
from llmcli.commands.options import Json, Quiet
from llmcli.commands.say import say
from llmcli.errors import IntegrityError, NotFoundError, UsageError
from llmcli.strict_json import strict
from llmcli.units import sized

if TYPE_CHECKING:
    from pathlib import Path

    from llmcli.hub.download import Result


def _names(incomplete: str) -> list[str]:
    from llmcli.hub import EMBEDDED, known_names

    names = [name for name in known_names() if name not in EMBEDDED]
    return [name for name in names if name.startswith(incomplete)]


def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="gpt2, distilgpt2, ..., or org/name on the hub.",
            autocompletion=_names,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="A branch, tag or commit, as in org/name@REVISION. [default: main]",
        ),
    ] = None,
    tokenizer_only: Annotated[
        bool, typer.Option("--tokenizer-only", help="All but the weights: enough to tokenize.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and their bytes; fetch none.")
    ] = False,
    list_local: Annotated[bool, typer.Option("--list", help="Show the models that are here.")] = (
        False
    ),
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hash the files of a downloaded model again and compare."),
    ] = False,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Remove a model (NAME) or one revision of it (NAME@REVISION)."
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch models, whole and verified, into the Hugging Face cache.

    llmcli download gpt2

    llmcli download gpt2-medium --dry-run

    llmcli download --verify gpt2

    Without a name: what can be had. The last line on stdout is the model's folder.
    """
    modes = {"--list": list_local, "--verify": verify, "--remove": remove, "--dry-run": dry_run}
    details = {"--tokenizer-only": tokenizer_only, "--revision": revision is not None}
    _refuse_nonsense(
        [mode for mode, wanted in modes.items() if wanted],
        [detail for detail, wanted in details.items() if wanted],
        names or [],
    )
    if list_local:
        here.tell_here(as_json, quiet)
    elif not names:
        _offer(as_json)
    elif remove:
        here.remove(names, revision, as_json, quiet)
    elif verify:
        here.verify([parsed(name, revision) for name in names], as_json, quiet)
    else:
        _fetch(names, revision, tokenizer_only, dry_run, as_json, quiet)


def _refuse_nonsense(modes: list[str], details: list[str], names: list[str]) -> None:
    """Raises UsageError where options contradict each other, or one would do nothing."""
    from llmcli.hub import EMBEDDED

    named = bool(names)
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(modes)} do not go together.", "Choose one.")
    if modes == ["--list"] and (details or named):
        what = details[0] if details else "a name"
        raise UsageError(f"--list does not go with {what}.", "It shows all that is here.")
    if "--tokenizer-only" in details and modes not in ([], ["--dry-run"]):
        raise UsageError(f"--tokenizer-only does not go with {modes[0]}.", "Leave one out.")
    if not named and modes != ["--list"] and (modes or details):
        raise UsageError("Name a model.", "What can be had: llmcli download")
    ours = [name for name in names if name in EMBEDDED]
    if ours and (modes or details):
        raise UsageError(
            f"{ours[0]} is a part of llmcli: it is whole, and stays.",
            f"{[*modes, *details][0]} means nothing for it.",
        )


def _fetch(
    names: list[str],
    revision: str | None,
    tokenizer_only: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fetch the models one after another, or say what would be fetched."""
    from llmcli.hub import EMBEDDED
    from llmcli.hub.download import download as fetch

    wanted = [(name, None if name in EMBEDDED else parsed(name, revision)) for name in names]
    done: list[dict[str, Any]] = []
    for typed, name in wanted:
        if name is None:
            done.append({"model": typed, "commit": None, "folder": str(EMBEDDED[typed])})
            if not as_json:
                print(EMBEDDED[typed])
            continue
        try:
            with progress_on(quiet or dry_run) as progress:
                result = fetch(
                    name, _check, progress, tokenizer_only=tokenizer_only, dry_run=dry_run
                )
        except KeyboardInterrupt:
            if not quiet and not dry_run:
                say(
                    "Stopped. The same command goes on from here: nothing that came is lost.",
                )
            raise
        except Exception:
            if as_json and done:  # what was done before is not lost with what failed
                print(strict({"schema": SCHEMA, "dry_run": dry_run, "models": done}), flush=True)
            raise
        done.append(_as_json(result))
        if as_json:
            continue
        if dry_run:
            _print_plan(result)
        else:
            if not quiet:
                say(_summary(result))
            print(result.folder, flush=True)
    if as_json:
        print(strict({"schema": SCHEMA, "dry_run": dry_run, "models": done}))


def _check(folder: Path, new: str) -> None:
    """Refuse a model that llmcli cannot run, as soon as the files that tell are there."""
    from llmcli.checkpoint import read_checkpoint
    from llmcli.commands.loading import fitting
    from llmcli.config import read_config
    from llmcli.parameters import match
    from llmcli.tokenizer import Tokenizer

    if new == "config":
        read_config(folder)
    elif new == "tokenizer":
        Tokenizer.from_folder(folder)
    elif new == "text":
        fitting(folder)
    else:
        match(folder, read_checkpoint(folder), read_config(folder))


def _summary(result: Result) -> str:

    fetched = sized(result.fetched_nbytes) if result.fetched_nbytes else "nothing"
    n_files = len(result.files)
    return f"{result.name} is here: {n_files} files, {sized(result.nbytes)}; {fetched} was fetched."


def _print_plan(result: Result) -> None:
    """The files that a download would bring: a table, or rows for a pipe."""
    head = ("file", "bytes", "here")
    rows = [(f.name, f.nbytes, "yes" if result.is_here(f) else "no") for f in result.files]
    total = (f"to fetch of {result.name}", result.fetched_nbytes, "")
    print_rows(head, [*rows, total] if sys.stdout.isatty() else rows, numbers=[1])


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "model": result.name.repo,
        "revision": result.name.revision,
        "commit": result.commit,
        "folder": str(result.folder),
        "nbytes": result.nbytes,
        "fetched_nbytes": result.fetched_nbytes,
        "files": [
            {"name": f.name, "nbytes": f.nbytes, "hash": f.hash, "here": result.is_here(f)}
            for f in result.files
        ],
    }


def _offer(as_json: bool) -> None:
    """The models with short names: what each takes, and whether it is here."""
    from llmcli.config import FAMILIES
    from llmcli.hub import resolve
    from llmcli.hub.names import KNOWN

    def is_here(name: str) -> bool:
        try:
            return bool(resolve(name))
        except (NotFoundError, IntegrityError):
            return False

    models: list[dict[str, Any]] = [
        {
            "model": name,
            "repo": known.repo,
            "n_params": known.n_params,
            "download_nbytes": known.download_nbytes,
            "memory_nbytes": known.memory_nbytes,
            "license": known.license,
            "here": is_here(name),
        }
        for name, known in KNOWN.items()
    ]
    if as_json:
        print(strict({"schema": SCHEMA, "models": models}))
        return
    head = ("model", "parameters", "download", "memory", "license", "here")
    terminal = sys.stdout.isatty()
    rows = [
        (
            m["model"],
            f"{m['n_params'] / 1e6:,.0f} M" if terminal else m["n_params"],
            sized(m["download_nbytes"]) if terminal else m["download_nbytes"],
            sized(m["memory_nbytes"]) if terminal else m["memory_nbytes"],
            m["license"],
            "yes" if m["here"] else "no",
        )
        for m in models
    ]
    print_rows(head, rows, numbers=[1, 2, 3])
    if terminal:
        say(
            "\nMemory: the weights in float32, a full KV cache. Get one: llmcli download NAME\n"
            f"NAME may be any org/name with safetensors of: {', '.join(sorted(FAMILIES))}.",
        )
