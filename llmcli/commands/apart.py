"""Work that a process beside this one does, so that it holds up nothing here.

Forked: it knows what this process knows, and is sent what comes later through a pipe. What was sent
it does even where this process is killed.
"""

from __future__ import annotations

import errno
import marshal
import os
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Any, Protocol

BUG = 255  # the exit code of an error that is none of the system's, whose numbers are smaller


class Work(Protocol):
    """What is done with each thing that comes, and at the end."""

    def take(self, thing: Any) -> None: ...

    def close(self) -> None: ...


def apart(work: Work) -> Work:
    """`work` as a process of its own, or as it is where there can be none.

    What it takes is of Python's plain types; arrays arrive as bytes. What fails there raises the
    same OSError here, when the next thing is given or at the end.
    """
    if sys.platform != "linux":  # elsewhere the system's libraries do not bear a fork, or lack it
        return work
    try:
        return _Apart(work)
    except OSError:  # too many processes, or too little memory for another
        return work


class _Apart:
    def __init__(self, work: Work) -> None:
        source, sink = os.pipe()
        ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # for this process alone to hear
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        try:
            with warnings.catch_warnings():  # of threads, of which the child touches none
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
            if not self.pid:  # the signals stay blocked: it ends when what it is sent does
                os.close(sink)
                os._exit(_exit_code(source, work))
        except OSError:
            os.close(sink)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(source)
        self.sink = open(sink, "wb")  # noqa: SIM115 (until it is closed)

    def take(self, thing: Any) -> None:
        try:
            marshal.dump(thing, self.sink)
            self.sink.flush()
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.sink.close()
        if not self.pid:
            return
        pid, self.pid = self.pid, 0
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == BUG:
            raise RuntimeError("the process that writes has failed")
        if code < 0:
            raise OSError(errno.EIO, f"the process that writes was killed by signal {-code}")
        if code:
            raise OSError(code, os.strerror(code))


def _exit_code(source: int, work: Work) -> int:
    """Do `work` on all that comes: the number of the system's error, 0 for none."""
    try:
        with open(source, "rb") as file:
            with suppress(EOFError):  # also where the last thing is cut off, as by a kill
                while True:
                    work.take(marshal.load(file))
            work.close()
    except OSError as error:
        return error.errno or errno.EIO
    except BaseException:
        traceback.print_exc()
        return BUG
    return 0
