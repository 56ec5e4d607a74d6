"""A download on a terminal and in a log: what is shown, and that it fits."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time

import pytest
from hub_models import tiny_model
from hub_server import HubServer, assert_whole, server

from llmcli import hub
from llmcli.render import download
from llmcli.render.download import Bars, Lines, lasting, short

__all__ = ["server"]  # the fixture


def test_times_and_names_are_for_people():
    assert [lasting(s) for s in (3.2, 89, 91, 7000)] == ["3 s", "89 s", "2 min", "1.9 h"]
    assert short("model-00001-of-00003.safetensors") == "model-00001-of-00003"
    assert short("x" * 30) == "x" * 23 + "…"


def test_a_log_has_a_line_every_ten_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(download.time, "monotonic", lambda: now[0])
    lines = Lines()
    for second in range(31):
        now[0] = 100.0 + second
        lines.at("model.safetensors", 50 + second * 10, 1000)
    lines.done("model.safetensors", 1000, fetched=True)
    assert capsys.readouterr().err.splitlines() == [
        "model.safetensors: 15 % of 1,000 B, 10 B/s, 85 s left",
        "model.safetensors: 25 % of 1,000 B, 10 B/s, 75 s left",
        "model.safetensors: 35 % of 1,000 B, 10 B/s, 65 s left",
        "model.safetensors: 1,000 B, verified",
    ]


def test_bars_fit_a_terminal_whose_width_changes(monkeypatch):
    columns = [100]
    monkeypatch.setattr(
        download.os, "get_terminal_size", lambda fd: os.terminal_size((columns[0], 30))
    )
    bars = Bars()
    bars.planned("org/tiny", "a" * 40, 2_000_000)
    bars.at("model.safetensors", 500_000, 1_000_000)
    for columns[0] in (100, 60, 30, 120):
        with bars.console.capture() as capture:
            bars.console.print(bars.progress.get_renderable())
        lines = capture.get().splitlines()
        assert len(lines) == 2
        assert {len(line) for line in lines} <= {columns[0] - 4, columns[0] - 3}
        assert ("of 977 KiB" in lines[0]) == (columns[0] > 80), "a narrow one has no amounts"


@pytest.mark.parametrize("columns", [60, 80])
def test_bars_fit_the_terminal_and_are_gone_in_the_end(server: HubServer, columns: int):
    files = tiny_model(n_shards=2)
    server.put("org/tiny", files)
    server.rate = 150_000
    server.fail("/cdn/", "cut", after=3000)
    read, write = pty.openpty()
    subprocess.run(["stty", "cols", str(columns), "rows", "30"], stdin=write, check=True)
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": "", "NO_COLOR": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "llmcli", "download", "org/tiny"],
        stdin=write,
        stdout=subprocess.PIPE,
        stderr=write,
        env=environment,
    )
    os.close(write)
    shown = b""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            shown += os.read(read, 65536)
        except OSError:
            break
    os.close(read)
    out = run.communicate()[0].decode()
    assert run.returncode == 0
    assert_whole(hub.resolve("org/tiny"), files)
    assert out.strip() == str(hub.resolve("org/tiny"))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", shown.decode().replace("\r", "\n"))
    bars = [line for line in text.split("\n") if "━" in line]
    assert any(line.startswith("model-0000") for line in bars)
    assert any(line.startswith("total") for line in bars)
    assert max(map(len, bars)) < columns, "the ^C of the terminal needs room"
    assert "  ! model-00001-of-00002.safetensors: the connection was cut; retry 1 of 5" in text
    assert "  ✓ config.json" in text
    assert shown.decode().rstrip().splitlines()[-1].startswith("org/tiny is here: 7 files")
