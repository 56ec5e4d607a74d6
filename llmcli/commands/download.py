"""`llmcli download`: models from the Hugging Face hub, whole and verified; and what is here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli.commands.options import Json, Quiet
from llmcli.commands.say import say
from llmcli.errors import IntegrityError, NotFoundError, UsageError, shown
from llmcli.units import sized

if TYPE_CHECKING:
    from pathlib import Path

    from llmcli.hub.download import Result
    from llmcli.hub.names import HubName
    from llmcli.render.download import Bars, Lines

SCHEMA = 1


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
        bool, typer.Option("--verify", help="Hash every file of a model that is here anew.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove a model, or one revision of it.")
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
        _list(as_json, quiet)
    elif not names:
        _offer(as_json)
    elif remove:
        _remove(names, revision, as_json, quiet)
    elif verify:
        _verify([_parsed(name, revision) for name in names], as_json, quiet)
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


def _parsed(name: str, revision: str | None) -> HubName:
    """The hub's name for what the user typed. Raises NotFoundError with the nearest names."""
    from llmcli.hub import named, resolve

    if parsed := named(name, revision):
        return parsed
    folder = resolve(name)  # the error, if it is no folder either
    raise UsageError(f"{folder} is a folder, not a model on the hub.", "Use it with --model.")


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
    from llmcli.strict_json import strict

    parsed = [(name, None if name in EMBEDDED else _parsed(name, revision)) for name in names]
    done: list[dict[str, Any]] = []
    for typed, name in parsed:
        if name is None:
            done.append({"model": typed, "commit": None, "folder": str(EMBEDDED[typed])})
            if not as_json:
                print(EMBEDDED[typed])
            continue
        try:
            with _progress(quiet or dry_run) as progress:
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
    from llmcli.config import read_config
    from llmcli.tokenizer import Tokenizer

    if new == "config":
        read_config(folder)
    elif new == "text":
        Tokenizer.from_folder(folder)
    else:
        read_checkpoint(folder)


def _progress(quiet: bool) -> Bars | Lines:
    from llmcli.render.download import Bars, Lines, Quiet

    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


def _summary(result: Result) -> str:

    fetched = sized(result.fetched_nbytes) if result.fetched_nbytes else "nothing"
    n_files = len(result.files)
    return f"{result.name} is here: {n_files} files, {sized(result.nbytes)}; {fetched} was fetched."


def _print_plan(result: Result) -> None:
    """The files that a download would bring: a table, or rows for a pipe."""
    head = ("file", "bytes", "here")
    rows = [(f.name, f.nbytes, "yes" if result.is_here(f) else "no") for f in result.files]
    total = (f"to fetch of {result.name}", result.fetched_nbytes, "")
    _print_rows(head, [*rows, total] if sys.stdout.isatty() else rows, numbers=[1])


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
    from llmcli.strict_json import strict

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
    _print_rows(head, rows, numbers=[1, 2, 3])
    if terminal:
        say(
            "\nMemory: the weights in float32, a full KV cache. Get one: llmcli download NAME\n"
            f"NAME may be any org/name with safetensors of: {', '.join(sorted(FAMILIES))}.",
        )


def _list(as_json: bool, quiet: bool) -> None:
    """The models in the cache, whoever put them there."""
    from llmcli.hub.cache import local_models
    from llmcli.strict_json import strict

    found = list(local_models())
    if as_json:
        models = [
            {
                "model": m.repo,
                "commit": m.commit or None,
                "refs": list(m.refs),
                "nbytes": m.nbytes,
                "state": m.state,
                "folder": str(m.folder),
            }
            for m in found
        ]
        print(strict({"schema": SCHEMA, "models": models}))
        return
    if not found and not quiet:
        say("No model is in the cache yet: fable comes with llmcli, llmcli download gpt2 gets one.")
    terminal = sys.stdout.isatty()
    head = ("model", "commit", "refs", "size" if terminal else "bytes", "state")
    rows = [
        (
            m.repo,
            m.commit[:12] if terminal else m.commit,
            ",".join(m.refs),
            sized(m.nbytes) if terminal else m.nbytes,
            m.state,
        )
        for m in found
    ]
    _print_rows(head, rows, numbers=[3])


def _remove(names: list[str], revision: str | None, as_json: bool, quiet: bool) -> None:
    from llmcli.hub.upkeep import Spot, places, remove
    from llmcli.strict_json import strict

    removed: list[dict[str, Any]] = []
    wanted = _to_remove(names, revision)
    gone: set[Spot] = set()
    spots = {name: places(name, whole) for name, whole in wanted.items()}  # all, or none is removed
    for name, whole in wanted.items():
        called = str(name) if whole else name.full
        try:
            nbytes = sum(remove(name, spot) for spot in spots[name] if spot not in gone)
            gone.update(spots[name])
        except Exception:
            if as_json and removed:
                print(strict({"schema": SCHEMA, "removed": removed}), flush=True)
            raise
        removed.append({"model": called, "nbytes": nbytes})
        if not quiet and not as_json:
            say(f"{called} is removed: {sized(nbytes)} set free.")
    if as_json:
        print(strict({"schema": SCHEMA, "removed": removed}))


def _to_remove(names: list[str], revision: str | None) -> dict[HubName, bool]:
    """What is to go, and whether the whole model: only where no revision is named, `main` too."""
    wanted: dict[HubName, bool] = {}
    for typed in names:
        name = _parsed(typed, revision)
        wanted[name] = wanted.get(name, False) or (revision is None and "@" not in typed)
    whole = {name.repo for name in wanted if wanted[name]}
    return {name: all for name, all in wanted.items() if all or name.repo not in whole}


def _verify(names: list[HubName], as_json: bool, quiet: bool) -> None:
    """Hash all files of each model. Raises IntegrityError naming what is damaged or missing."""
    from llmcli.hub import present
    from llmcli.hub.upkeep import verify
    from llmcli.strict_json import strict

    reports: list[dict[str, Any]] = []
    folders = [present(name, tokenizer_only=True) for name in names]  # all are here, or none read
    for name, folder in zip(names, folders, strict=True):
        with _progress(quiet) as progress:
            found = verify(folder, progress)
        report = {
            "model": str(name),
            "folder": str(folder),
            "damaged": found.damaged,
            "missing": found.missing,
            "unverifiable": found.unknown,
        }
        reports.append(report)
        if not as_json and not _finding(report):
            print(folder, flush=True)
    if as_json:
        print(strict({"schema": SCHEMA, "models": reports}), flush=True)
    bad = [report for report in reports if _finding(report)]
    for report in bad[:-1]:
        say(f"llmcli: {_finding(report)}")
    if bad:
        anew = " ".join(report["model"] for report in bad)
        raise IntegrityError(_finding(bad[-1]), f"Fetch it anew: llmcli download {anew}")


def _finding(report: dict[str, Any]) -> str:
    """What is wrong with a model: one line, the first file of each kind named; "" if nothing."""
    parts = []
    faults = {
        "damaged": "damaged",
        "missing": "missing",
        "unverifiable": "of no known hash: not verified",
    }
    for key, fault in faults.items():
        if files := list(report[key]):
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            verb = "are" if more else "is"
            parts.append(f"{shown(files[0])}{more} {verb} {fault}")
    return f"{report['model']}: {'; '.join(parts)}." if parts else ""


def _print_rows(head: tuple[str, ...], rows: list[tuple[Any, ...]], numbers: list[int]) -> None:
    """A table on a terminal, tab-separated values elsewhere, both on stdout."""
    if not sys.stdout.isatty():
        for row in (head, *rows):
            print(*row, sep="\t")
        return
    from llmcli.render.console import console
    from llmcli.render.download import table

    console().print(table(head, rows, numbers))
