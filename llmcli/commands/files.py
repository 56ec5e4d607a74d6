"""Files that a command writes: at once and whole, or as it goes; and what cannot be read again."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from llmcli.commands.say import say
from llmcli.errors import FULL, NotFoundError, ResourceError, UsageError, shown_path

if TYPE_CHECKING:
    from llmcli.trace import Damage, Reader

N_DAMAGED = 3  # lines that are named one by one


def sha256_of(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def regular(path: Path) -> Path:
    """Where `path` leads, links followed. Raises UsageError where no regular file is or can be.

    /dev/stdout is none, even where stdout is: what goes there is no file of that name.
    """
    real, folder = Path(os.path.realpath(path)), os.path.realpath(path.parent)
    is_file = folder != "/dev" and not folder.startswith("/proc/")
    with suppress(OSError):  # nothing is there yet
        is_file &= stat.S_ISREG(real.lstat().st_mode)  # a link here leads round in a loop
    if not is_file:
        raise UsageError(
            f"{shown_path(path)} is no regular file, and would be replaced by one.",
            "Name a new file.",
        )
    return real


def refuse_inputs(
    option: str, path: Path | None, inputs: Iterable[Path | None], use: str = "this run reads"
) -> None:
    """Raises UsageError where `path`, about to be written, is one of `inputs`, as `use` tells."""
    for input in inputs:
        if path is None or input is None:
            continue
        there = os.path.exists(path) and os.path.exists(input)
        if path.samefile(input) if there else os.path.realpath(path) == os.path.realpath(input):
            raise UsageError(
                f"{option} {shown_path(path)} is a file that {use}.", "Name another one."
            )


def check_writable(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Raise before any work is done where `path` cannot be written."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise UsageError(
            f"{option} {shown_path(path)} must end in {' or '.join(suffixes)}.",
            f"For example: {option} {shown_path(path.with_suffix(suffixes[0]))}",
        )
    folder = path.parent
    with writing(path):  # to look may be refused, too
        if not folder.is_dir():
            raise unwritable(path, "there is no such folder")
        if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
            raise unwritable(path, "it is a folder" if path.is_dir() else "permission denied")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that gets the name `path` at the end, or is gone if there is no good end.

    A link stays, and what it leads to is replaced, its mode kept. Raises UsageError for what is no
    regular file, NotFoundError where it cannot be made, ResourceError where the disk is full.
    """
    target = regular(path)
    unfinished = target.with_name(f".llmcli-{secrets.token_hex(8)}.part")  # the name may be long
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, unfinished)
        unfinished.replace(target)
    except OSError as error:
        if error.errno in FULL:
            raise ResourceError(
                f"{shown_path(path)} was not written ({error.strerror}).",
                "Free some space, or write elsewhere.",
            ) from error
        if error.filename and str(error.filename) not in map(str, (unfinished, target)):
            raise  # of another file, opened meanwhile
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def write(path: Path, data: bytes) -> None:
    """The whole of `data`, or what was there before."""
    with replacing(path) as file:
        file.write(data)


def unwritable(path: Path, why: str | OSError) -> NotFoundError:
    """What to say where `path`, as it was typed, cannot be written."""
    if isinstance(why, OSError):
        why = (why.strerror or type(why).__name__).lower()
    return NotFoundError(
        f"{shown_path(path)} cannot be written: {why}.", "Name a file in a folder of yours."
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written becomes a sentence; a full disk does too."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise  # said in one place for all commands
        raise unwritable(path, error) from error


def tell_damage(reader: Reader, quiet: bool = False) -> None:
    """On stderr: the lines that could not be read."""
    if quiet or not reader.damaged:
        return
    for damage in reader.damaged[:N_DAMAGED]:
        passed = "" if damage.is_gap else "; passed over"
        say(f"{reader.name}, {_where(damage)}: {damage.why}{passed}.")
    if (more := len(reader.damaged) - N_DAMAGED) > 0:
        say(f"{reader.name}: {more} more damaged line{'s' * (more > 1)}.")


def _where(damage: Damage) -> str:
    return f"line {damage.line}" if damage.line else "from here on"
