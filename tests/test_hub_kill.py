"""A download that dies at any moment, by SIGKILL or Ctrl-C: unseen, then resumed to the byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hub_models import git_hash, sha256, tiny_model
from hub_server import HubServer, assert_whole, fetch, server

from llmcli import hub
from llmcli.errors import NotFoundError
from llmcli.hub import cache

__all__ = ["server"]  # the fixture

FILES = tiny_model(n_shards=2, n_embd=64)
LARGE = max(FILES, key=lambda name: len(FILES[name]))

# A process that has imported everything and forks a download at each line: a start takes no time,
# and the child is killed at a point of the download, not of Python's imports.
NURSERY = """
import os, sys
from llmcli.commands.download import _check
from llmcli.hub.download import download
from llmcli.hub.names import parse
from llmcli.hub.transfer import Progress
class Silent(Progress): pass
import llmcli.tokenizer, llmcli.checkpoint, llmcli.config, tempfile
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        download(parse("org/tiny"), _check, Silent())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def wait_until(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


class Nursery:
    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=pipe, stdout=pipe, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self) -> int:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        return int(self.process.stdout.readline())


@pytest.fixture
def nursery(server: HubServer):
    made = Nursery()
    yield made
    made.process.stdin.close()
    made.process.wait(10)


def assert_unseen_or_whole() -> bool:
    """No command sees the model, or all of it is there; what has a hash's name has the hash."""
    folder = cache.repo_folder("org/tiny")
    for blob in (folder / "blobs").glob("*"):
        if blob.suffix != ".incomplete":
            data = blob.read_bytes()
            assert blob.name in (sha256(data), git_hash(data))
    try:
        assert_whole(hub.resolve("org/tiny"), FILES)
    except NotFoundError:
        return False
    return True


def test_killed_at_twenty_points_the_download_resumes_to_the_byte(server, nursery):
    server.put("org/tiny", FILES)
    total = sum(
        len(FILES[name]) for name in FILES if not name.endswith((".bin", ".h5", ".msgpack"))
    )
    draw = random.Random(5)
    n_killed = 0
    for _ in range(20):
        server.n_sent, server.rate = 0, 5_000_000
        point = draw.randrange(total)
        child = nursery.start()
        deadline = time.monotonic() + 20
        while server.n_sent < point and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        n_killed += nursery.end() == signal.SIGKILL
        was_whole = assert_unseen_or_whole()
        server.n_sent, server.rate = 0, 0
        assert_whole(fetch("org/tiny").folder, FILES)
        assert_unseen_or_whole()
        assert not list(cache.repo_folder("org/tiny").rglob("*.incomplete"))
        if not was_whole and point > total // 2:
            assert server.n_sent < total, "what had come was not asked for again"
        shutil.rmtree(cache.cache_dir())  # from nothing again
    assert n_killed >= 15, "the points were too late"


def test_killed_between_any_two_steps_on_disk(server):
    """SIGKILL at the n-th call of each system function, for every n that there is."""
    server.put("org/tiny", FILES)
    code = (
        "import os, sys, signal, pathlib\n"
        "from llmcli.hub.download import download\nfrom llmcli.hub.names import parse\n"
        "from llmcli.hub.transfer import Progress\n"
        "class Silent(Progress): pass\n"
        "def counted(*a, **k):\n"
        "    global n\n"
        "    n -= 1\n"
        "    if n < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*a, **k)\n"
        "for name in sys.argv[1:]:\n"
        "    real, status, n0 = getattr(os, name), 9, 0\n"
        "    while status:\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            n = n0; setattr(os, name, counted)\n"
        "            download(parse('org/tiny'), lambda folder, new: None, Silent()); os._exit(0)\n"
        "        status, n0 = os.waitpid(child, 0)[1], n0 + 1\n"
        "        print(name, status, flush=True)\n"
        "        sys.stdin.readline()\n"
    )
    calls = ["replace", "symlink", "fsync", "mkdir", "ftruncate"]
    pipe = subprocess.PIPE
    run = subprocess.Popen([sys.executable, "-c", code, *calls], stdin=pipe, stdout=pipe, text=True)
    killed = []
    while line := run.stdout.readline():
        name, status = line.split()
        whole = assert_unseen_or_whole()
        if status == "0":
            assert whole
            shutil.rmtree(cache.cache_dir())
        else:
            assert int(status) == signal.SIGKILL
            killed.append(name)
        run.stdin.write("\n")
        run.stdin.flush()
    assert run.wait(10) == 0
    assert set(killed) == set(calls)
    assert len(killed) > 30


def test_who_waits_for_a_process_that_is_killed_goes_on_in_its_place(server):
    server.put("org/tiny", FILES)
    server.rate = 200_000
    first, second = Nursery(), Nursery()

    def ranges() -> list[str]:
        return [seen.range for seen in server.seen if "/cdn/" in seen.path and LARGE in seen.path]

    child = first.start()
    wait_until(ranges)
    second.start()
    time.sleep(0.4)
    assert ranges() == [""], "the second waits"
    os.kill(child, signal.SIGKILL)
    server.rate = 0
    assert first.end() == signal.SIGKILL
    assert second.end() == 0
    assert_whole(hub.resolve("org/tiny"), FILES)
    assert ranges()[1].startswith("bytes=")
    for nursery in (first, second):
        nursery.process.stdin.close()
        nursery.process.wait(10)


def test_ctrl_c_says_that_nothing_is_lost(server, tmp_path):
    server.put("org/tiny", FILES)
    server.rate = 300_000
    run = subprocess.Popen(
        [sys.executable, "-m", "llmcli", "download", "org/tiny"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any("/cdn/" in path for path in server.paths()))
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 130
    assert out == ""
    assert err.rstrip().endswith(
        "Stopped. The same command goes on from here: nothing that came is lost."
    )
    assert "Traceback" not in err
    blobs = cache.repo_folder("org/tiny") / "blobs"
    kept = sum(path.stat().st_size for path in blobs.glob("*.incomplete"))
    assert kept > 0
    server.rate, server.n_sent = 0, 0
    assert_whole(fetch("org/tiny").folder, FILES)
    assert server.n_sent < sum(len(data) for data in FILES.values()) - kept
