"""The command line: which commands there are, and how an error becomes a sentence and a code."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from threading import Timer
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import TyperPath

from llmcli import __version__
from llmcli.commands import download, generate, inspect, tokenize
from llmcli.commands.input import received
from llmcli.commands.say import say_error
from llmcli.errors import FULL, LLMCLIError, NotFoundError, ResourceError, shown_path

Misused: type[Any] = typer.BadParameter.__mro__[1]  # Typer's own kind of error, named nowhere else


class Command(TyperCommand):
    """A command that tells who wrote two words without quotes what to do.

    Its help has a section for each option that names one (Typer's "panel"), to the next that does.
    Whether a file can be read it finds out by reading it: that is another code than a wrong option.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for param in self.params:
            if isinstance(param.type, TyperPath):
                param.type.readable = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Misused as error:
            if "unexpected extra argument" in error.message:
                error.message += ". A text of several words stands in quotes."
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        section = "Options"
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            section = getattr(param, "rich_help_panel", None) or section
            is_argument = param.param_type_name == "argument"
            if told := param.get_help_record(ctx):
                sections.setdefault("Arguments" if is_argument else section, []).append(told)
        for title, options in sections.items():
            with formatter.section(title):
                formatter.write_dl(options)


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
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    rich_markup_mode=None,
)

# What torch and the loader of libraries say of it, which have no error of their own for it.
NO_ROOM = ("allocate memory", "out of memory", "failed to map segment")
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


def main() -> None:
    """Run the command line and exit with a code of the table in the README."""
    signals = Signals()
    for name in ("stdout", "stderr"):
        stream = _stream(name)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # which is asked for the terminal's size
    # Torch's kernels announce that they will go. Who packs weights for them hushes that, but a
    # signal at that moment would let it out.
    warnings.filterwarnings("ignore", "fbgemm_", UserWarning)
    # What importing torch makes is no garbage. To look through it takes a tenth of a second
    # meanwhile, and at exit a third.
    gc.set_threshold(100_000)
    code: Any = 0
    try:
        with explained():
            code = _run()
    except typer.Exit as failed:
        code = failed.exit_code
    except Exception:
        if not signals.came:
            raise
        _abandon_stdout()
        code = 128 + signals.came
    finally:
        gc.freeze()
    sys.exit(code)


def _run() -> Any:
    """Run the app: its exit code."""
    if os.environ.get("_LLMCLI_COMPLETE") == "complete_bash":
        _drop_equals_signs()
    try:
        app(prog_name="llmcli")
    except SystemExit as done:
        return done.code
    return 0


def _drop_equals_signs() -> None:
    """Take the "=" of `--option=value` out of bash's words: it makes three of them."""
    words, at = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    before = [word for word in words[:at] if word != "="]
    os.environ["COMP_WORDS"] = "\n".join([*before, *words[at:]])
    os.environ["COMP_CWORD"] = str(at - len(words[:at]) + len(before))


class Signals:
    """The signals that ask for an end, each as an exception: half-written files are taken away.

    `came` is the last one. Where C code has swallowed the exception, and something else failed for
    it, it says why. C++ code that makes torch ready dies of an exception instead: until torch is
    imported, a signal comes again and again.
    """

    AGAIN_S = 0.02

    def __init__(self) -> None:
        self.came = 0
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows lacks one
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
                signal.signal(number, self._hear)

    def _hear(self, number: int, _: object) -> None:
        self.came = number
        if being_imported("torch"):
            again = Timer(self.AGAIN_S, signal.raise_signal, [number])
            again.daemon = True
            again.start()
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)


def being_imported(name: str) -> bool:
    """Whether the import of a module has begun and not ended."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _stream(name: str) -> Any:
    """stdout or stderr as the commands need it: UTF-8, whole, and there."""
    stream = getattr(sys, name)
    if stream is None:  # closed: what is said there is heard by nobody
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    lines, buffer = stream.line_buffering or stream.write_through, stream.detach()
    if isinstance(buffer, io.RawIOBase):  # PYTHONUNBUFFERED: it may take half of what is written
        buffer = io.BufferedWriter(buffer)
    kind = Conversation if name == "stderr" else io.TextIOWrapper
    return kind(buffer, "utf-8", "replace", line_buffering=lines or name == "stderr")


class Conversation(io.TextIOWrapper):
    """stderr, to which nobody has to listen: the answer on stdout does not depend on it."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def reported(command: Callable[..., None], as_typed: Collection[str] = ()) -> Callable[..., None]:
    """`command`, whose known errors end as one or two lines on stderr and their exit code.

    Its texts are decoded, its paths name files. Those in `as_typed` are left as they are: they may
    be the names of folders, or bytes.
    """

    @wraps(command)
    def run(**given: Any) -> None:
        with explained():
            command(**{
                name: value if name in as_typed else received(name, value)
                for name, value in given.items()
            })  # fmt: skip

    return run


@contextmanager
def explained() -> Iterator[None]:
    """Known errors end as one or two lines on stderr and their exit code, stdout's too."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()  # the reader has gone, which is its right
    except LLMCLIError as error:
        fail(error)
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        known = of_the_system(error)
        if known is None:
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            _abandon_stdout()
        known.__cause__ = error
        fail(known)


def of_the_system(error: Exception) -> LLMCLIError | None:
    """What the system refuses, as a known error; None for a bug of ours."""
    said = any(words in str(error) for words in NO_ROOM)
    no_file = isinstance(error, OSError) and error.errno == errno.ENOMEM  # could be mapped
    if isinstance(error, MemoryError) or said or no_file:
        return ResourceError("There is not enough memory.", "See llmcli generate --dry-run.")
    if not isinstance(error, OSError):
        return None
    why, name = error.strerror or type(error).__name__, error.filename
    if error.errno == errno.ENOSPC:
        return ResourceError("The disk is full.", "Free some space and run this again.")
    if error.errno in FULL:
        return ResourceError(f"The output finds no room: {why}.", "Raise the limit of its size.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceError(f"No more file can be opened: {why}.", "Try: ulimit -n 1024")
    if error.errno in REFUSED and name:
        return NotFoundError(
            f"{shown_path(name)} cannot be used: {why}.", "Check the path and its permissions."
        )
    if error.errno == errno.ENOENT and name is None:  # of all calls, the one that asks where we are
        return NotFoundError("The working folder is gone.", "Go to another one.")
    return None


def _abandon_stdout() -> None:
    """Let what is still in stdout's buffer go nowhere at exit, where it would fail once more."""
    with suppress(OSError):  # a stdout without a descriptor keeps no one waiting
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: LLMCLIError) -> None:
    """Say what happened on stderr and exit with the error's code."""
    say_error(error)
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


app.command(cls=Command)(reported(generate.generate, {"model"}))
app.command(cls=Command)(reported(inspect.inspect, {"model"}))
app.command(cls=Command)(reported(tokenize.tokenize, {"texts", "model", "versus", "vocab"}))
app.command(cls=Command)(reported(download.download, {"names"}))
