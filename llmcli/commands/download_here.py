"""`llmcli download`, of what is here: models listed, hashed anew, removed. No network."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from llmcli.commands.say import say
from llmcli.errors import IntegrityError, UsageError, shown
from llmcli.strict_json import strict
from llmcli.units import sized

if TYPE_CHECKING:
    from llmcli.hub.names import HubName
    from llmcli.render.download import Bars, Lines

SCHEMA = 1


def parsed(name: str, revision: str | None) -> HubName:
    """The hub's name for what the user typed. Raises NotFoundError with the nearest names."""
    from llmcli.hub import named, resolve

    if found := named(name, revision):
        return found
    folder = resolve(name)  # the error, if it is no folder either
    raise UsageError(f"{folder} is a folder, not a model on the hub.", "Use it with --model.")


def progress_on(quiet: bool) -> Bars | Lines:
    from llmcli.render.download import Bars, Lines, Quiet

    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


def tell_here(as_json: bool, quiet: bool) -> None:
    """The models in the cache, whoever put them there."""
    from llmcli.hub.cache import local_models

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
    print_rows(head, rows, numbers=[3])


def remove(names: list[str], revision: str | None, as_json: bool, quiet: bool) -> None:
    from llmcli.hub import upkeep

    removed: list[dict[str, Any]] = []
    wanted = _to_remove(names, revision)
    spots = {
        name: upkeep.places(name, whole) for name, whole in wanted.items()
    }  # all, or none is removed
    for name, whole in wanted.items():
        called = str(name) if whole else name.full
        sharing = [shown(ref) for spot in spots[name] for ref in spot.sharing]
        try:
            nbytes = sum(upkeep.remove(name, spot) for spot in spots[name])
        except Exception:
            if as_json and removed:
                print(strict({"schema": SCHEMA, "removed": removed}), flush=True)
            raise
        removed.append({"model": called, "nbytes": nbytes})
        if not quiet and not as_json:
            stays = f" Its files stay, as those of {', '.join(sharing)}." if sharing else ""
            say(f"{called} is removed: {sized(nbytes)} set free.{stays}")
    if as_json:
        print(strict({"schema": SCHEMA, "removed": removed}))


def _to_remove(names: list[str], revision: str | None) -> dict[HubName, bool]:
    """What is to go, and whether the whole model: only where no revision is named, `main` too."""
    wanted: dict[HubName, bool] = {}
    for typed in names:
        name = parsed(typed, revision)
        wanted[name] = wanted.get(name, False) or (revision is None and "@" not in typed)
    whole = {name.repo for name in wanted if wanted[name]}
    return {name: all for name, all in wanted.items() if all or name.repo not in whole}


def verify(names: list[HubName], as_json: bool, quiet: bool) -> None:
    """Hash all files of each model. Raises IntegrityError naming what is damaged or missing."""
    from llmcli.hub import present, upkeep

    reports: list[dict[str, Any]] = []
    folders = [present(name, tokenizer_only=True) for name in names]  # all are here, or none read
    for name, folder in zip(names, folders, strict=True):
        with progress_on(quiet) as progress:
            found = upkeep.verify(folder, progress)
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


def print_rows(head: tuple[str, ...], rows: list[tuple[Any, ...]], numbers: list[int]) -> None:
    """A table on a terminal, tab-separated values elsewhere, both on stdout."""
    if not sys.stdout.isatty():
        for row in (head, *rows):
            print(*row, sep="\t")
        return
    from llmcli.render.console import console
    from llmcli.render.download import table

    console().print(table(head, rows, numbers))
