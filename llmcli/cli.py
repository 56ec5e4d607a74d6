"""The command line: which commands there are, and how an error becomes a sentence and a code."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from llmcli import __version__
from llmcli.commands import download, generate, inspect, tokenize
from llmcli.commands.say import say
from llmcli.errors import FULL, LLMCLIError, ResourceError

Misused: type[Any] = typer.BadParameter.__mro__[1]  # Typer's own kind of error, named nowhere else


class Command(TyperCommand):
    """A command that tells who wrote two words without quotes what to do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Misused as error:
            if "unexpected extra argument" in error.message:
                error.message += ". A text of several words stands in quotes."
            raise


class Commands(TyperGroup):
    """All commands; a text in the place of one is most likely to be continued."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except Misused as error:
            if "Did you mean" not in error.message:
                error.message += " A text is continued by llmcli generate TEXT."
            raise


app = typer.Typer(
    name="llmcli",
    cls=Commands,
    help="Generate text with a language model, and see how each token came about.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a bug keeps Python's own traceback
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

NO_MEMORY = ResourceError("There is not enough memory.", "See llmcli generate --dry-run.")


def main() -> None:
    """Run the command line and exit with a code of the table in the README."""
    # Ended politely, a command still closes its files and takes its half-written ones away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: what is said there is heard by nobody
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
            if name == "stderr":
                sys.stderr = Conversation(stream.detach(), "utf-8", "replace", line_buffering=True)
    # Torch's kernels announce that they will go. Who packs weights for them hushes that, but a
    # signal at that moment would let it out.
    warnings.filterwarnings("ignore", "fbgemm_", UserWarning)
    # What importing torch makes is no garbage. To look through it takes a tenth of a second
    # meanwhile, and at exit a third.
    gc.set_threshold(100_000)
    try:
        app(prog_name="llmcli")
    finally:
        gc.freeze()


class Conversation(io.TextIOWrapper):
    """stderr, to which nobody has to listen: the answer on stdout does not depend on it."""

    def write(self, text: str) -> int:
        with suppress(BrokenPipeError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            super().flush()


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose known errors end as one or two lines on stderr and their exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            _abandon_stdout()  # the reader has gone, which is its right
        except LLMCLIError as error:
            fail(error)
        except (MemoryError, RuntimeError) as error:
            # torch has no error of its own for memory, but for GPUs
            said = str(error)
            told = "allocate memory" in said or "out of memory" in said
            if not (told or isinstance(error, MemoryError)):
                raise
            fail(NO_MEMORY)
        except OSError as error:
            if error.errno == errno.ENOMEM:  # a file could not be mapped
                fail(NO_MEMORY)
            if error.errno not in FULL:
                raise
            _abandon_stdout()
            fail(ResourceError("The disk is full.", "Free some space and run this again."))

    return run


def _abandon_stdout() -> None:
    """Let what is still in stdout's buffer go nowhere at exit, where it would fail once more."""
    with suppress(OSError):  # a stdout without a descriptor keeps no one waiting
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: LLMCLIError) -> None:
    """Say what happened on stderr and exit with the error's code."""
    if os.environ.get("LLMCLI_DEBUG") == "1":
        traceback.print_exception(error)
    say(f"llmcli: {error.fact}")
    if error.remedy:
        say(error.remedy)
    raise typer.Exit(error.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"llmcli {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Generate text with a language model, and see how each token came about.

    llmcli generate "Once upon a time"

    echo "Once upon a time" | llmcli generate --top-probs 5

    llmcli tokenize "Once upon a time"
    """


for command in (generate.generate, inspect.inspect, tokenize.tokenize, download.download):
    app.command(cls=Command)(reported(command))
