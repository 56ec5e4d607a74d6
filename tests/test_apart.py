"""Work in a process of its own: in order, whole, told of what fails, and longer than a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from llmcli.commands.apart import apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


class ToFile:
    def __init__(self, path):
        self.file = open(path, "wb", buffering=0)  # noqa: SIM115 (until it is closed)

    def take(self, thing):
        assert os.getpid() != PARENT
        self.file.write(repr(thing).encode() + b"\n")

    def close(self):
        self.file.write(b"the end\n")
        self.file.close()


PARENT = os.getpid()


def test_all_is_done_in_order_before_close_returns(tmp_path):
    things = [(i, "text", None, 0.5, bytes([i]) * 100_000) for i in range(40)]  # beyond a pipe's
    work = apart(ToFile(tmp_path / "file"))
    for thing in things:
        work.take(thing)
    work.close()
    work.close()
    told = (tmp_path / "file").read_text().splitlines()
    assert told == [*map(repr, things), "the end"]


def test_arrays_arrive_as_their_bytes(tmp_path):
    import numpy as np

    array = np.arange(3, dtype=np.float32)
    work = apart(ToFile(tmp_path / "file"))
    work.take((1, array))
    work.close()
    assert (tmp_path / "file").read_text().startswith(repr((1, array.tobytes())))


def test_what_the_system_refuses_there_is_raised_here():
    work = apart(ToFile("/dev/full"))

    def give():
        for _ in range(1000):
            work.take("x")
            time.sleep(0.01)

    with pytest.raises(OSError, match="No space") as raised:
        give()
    assert raised.value.errno == errno.ENOSPC
    work.close()


def test_at_the_end_at_the_latest():
    work = apart(ToFile("/dev/full"))
    with pytest.raises(OSError, match="No space"):
        work.close()


def test_that_it_was_killed_is_said(tmp_path):
    work = apart(ToFile(tmp_path / "file"))
    os.kill(work.pid, signal.SIGKILL)
    with pytest.raises(OSError, match="killed by signal 9"):
        work.close()


def test_a_bug_there_is_one_here(tmp_path, capfd):
    work = apart(ToFile(tmp_path / "file"))
    work.take("x")
    work.close()

    class Broken(ToFile):
        def take(self, thing):
            raise ZeroDivisionError

    work = apart(Broken(tmp_path / "file"))
    work.take("x")
    with pytest.raises(RuntimeError):
        work.close()
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_what_was_sent_is_done_after_a_kill(tmp_path, sent):
    """Of the one process, or of both where they can hear it."""
    path = tmp_path / "file"
    script = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_apart import ToFile, apart
signal.signal(signal.SIGINT, signal.SIG_DFL)
work = apart(ToFile({str(path)!r}))
for i in range(30):
    work.take(i)
    if i == 9:
        os.kill(os.getpid() if {sent!r} == "SIGKILL" else 0, signal.{sent})
"""
    done = subprocess.run(  # noqa: PLW1510 (its code is looked at)
        [sys.executable, "-c", script], start_new_session=True, timeout=60
    )
    assert done.returncode == -getattr(signal, sent)
    deadline = time.monotonic() + 30
    while not path.read_text().endswith("the end\n") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.read_text().split("\n") == [*map(str, range(10)), "the end", ""]


def test_where_nothing_can_be_forked_it_is_done_here(tmp_path, monkeypatch):
    def refused():
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    work = ToFile(tmp_path / "file")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    n_open = len(os.listdir("/proc/self/fd"))
    assert apart(work) is work
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert len(os.listdir("/proc/self/fd")) == n_open
    work.file.close()
