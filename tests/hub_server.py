"""A Hugging Face hub on 127.0.0.1 that serves tiny random models, and fails as it is told to.

It speaks what huggingface_hub 1 and 2 speak: model info, tree, resolve with a redirect of LFS files
to another host name ("localhost"), ETag, X-Linked-Etag and -Size, X-Repo-Commit, Range.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hub_models import git_hash, is_lfs, sha256

from llmcli.hub.download import Result, download
from llmcli.hub.http import Patience
from llmcli.hub.names import parse
from llmcli.hub.transfer import Progress


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path holds `where`."""

    where: str
    kind: str
    times: int = 1
    after: int = 0  # bytes
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    method: str = "GET"


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    host: str
    range: str
    token: str
    agent: str


class HubServer(ThreadingHTTPServer):
    """Use as a context manager; `url` is the endpoint."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.cdn = f"http://localhost:{self.server_address[1]}"
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.edit: Callable[[dict[str, Any]], None] = lambda info: None  # the model info, lying
        self.before: Callable[[str], None] = lambda path: None  # each request
        self.rate = 0.0  # bytes a second; 0: as fast as it goes
        self.n_sent = 0
        self.closing = threading.Event()

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def put(self, repo: str, files: dict[str, bytes], *refs: str) -> str:
        """A commit of `repo`, at which its `refs` (main) point from now on: its hash."""
        names = "".join(f"{name}{sha256(data)}" for name, data in sorted(files.items()))
        commit = hashlib.sha1(f"{repo}{names}".encode()).hexdigest()
        self.commits[repo, commit] = files
        self.refs |= {(repo, ref): commit for ref in refs or ("main",)}
        return commit

    def fail(self, where: str, kind: str, times: int = 1, **what: Any) -> None:
        self.faults.append(Fault(where, kind, times, **what))

    def paths(self) -> list[str]:
        """The requests so far: method and path, without the query."""
        return [f"{seen.method} {seen.path.partition('?')[0]}" for seen in self.seen]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.where in path and fault.method == method:
                fault.times -= 1
                return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = self.headers
        get = headers.get
        self.server.seen.append(
            Seen(
                self.command,
                self.path,
                get("Host", ""),
                get("Range", ""),
                get("Authorization", ""),
                get("User-Agent", ""),
            )
        )
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.before(path)
        fault = self.server.fault(self.command, path)
        if fault and self._fails(fault):
            return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._api("/".join(parts[2:4]), parts[4:], parse_qs(url.query))
        elif parts[0] == "cdn":
            files = self.server.commits["/".join(parts[1:3]), parts[3]]
            self._send_file(files["/".join(parts[4:])], fault)
        elif "resolve" in parts[2:3]:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), fault)
        else:
            self._error(404)

    def _fails(self, fault: Fault) -> bool:
        """Whether this fault leaves nothing more to do."""
        if fault.kind == "status":
            self._send(fault.status, fault.body, fault.headers)
        elif fault.kind == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault.kind == "stall" and not fault.after:
            self.server.closing.wait(30)
            self.close_connection = True
        elif fault.kind == "redirect":
            self._send(302, b"", {"Location": fault.headers.get("Location", self.path)})
        else:
            return False
        return True

    def _commit(self, repo: str, revision: str) -> str | None:
        commit = self.server.refs.get((repo, revision), revision)
        return commit if (repo, commit) in self.server.commits else None

    def _api(self, repo: str, rest: list[str], query: dict[str, list[str]]) -> None:
        if not any(known == repo for known, _ in self.server.commits):
            return self._error(404, "RepoNotFound")
        revision = "/".join(rest[1:]) or "main"
        commit = self._commit(repo, revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        files = self.server.commits[repo, commit]
        if rest[:1] == ["tree"]:
            return self._send_json([_entry(name, data) for name, data in files.items()])
        blobs = "blobs" in query
        siblings = [_sibling(name, data, blobs) for name, data in files.items()]
        info = {"_id": "1", "id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
        info |= {"private": False, "tags": [], "downloads": 0, "likes": 0}
        self.server.edit(info)
        self._send_json(info)

    def _resolve(self, repo: str, revision: str, name: str, fault: Fault | None) -> None:
        commit = self._commit(repo, revision)
        data = self.server.commits.get((repo, commit or ""), {}).get(name)
        if data is None:
            return self._error(404, "EntryNotFound" if commit else "RevisionNotFound")
        headers = {"X-Repo-Commit": commit or "", "Accept-Ranges": "bytes"}
        if not is_lfs(name):
            return self._send_file(data, fault, headers | {"ETag": f'"{git_hash(data)}"'})
        headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        signed = f"{self.server.cdn}/cdn/{repo}/{commit}/{name}?Signature=SECRETSIGNATURE"
        self._send(302, b"", headers | {"Location": signed})

    def _send_file(
        self, data: bytes, fault: Fault | None, headers: dict[str, str] | None = None
    ) -> None:
        kind, headers, status, start = fault.kind if fault else "", dict(headers or {}), 200, 0
        if kind == "wrong byte":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        elif kind == "body" and fault:
            data = fault.body
        elif kind == "lies shorter":
            data = data[:-7]
        elif kind == "lies longer":
            data += b"longer!"
        elif kind == "gzip":
            data = gzip.compress(data)
            headers["Content-Encoding"] = "gzip"
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and kind != "ignores range":
            start, status = int(wanted[6:].partition("-")[0]), 206
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            start = max(0, start - 3) if kind == "wrong range" else start
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        after = fault.after if fault and kind in ("cut", "stall", "reset") else None
        self._send(status, data[start:], headers, after, kind)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str = "") -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        after: int | None = None,
        kind: str = "",
    ) -> None:
        self.send_response(status)
        chunked = kind == "chunked"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif kind != "no length":
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
            self.send_header("Connection", "close")
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if chunked:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        with suppress(OSError):
            self._write(body if after is None else body[:after])
            if kind == "stall":
                self.server.closing.wait(30)
            if after is not None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    def _write(self, data: bytes) -> None:
        step = max(1, min(64 << 10, int(self.server.rate / 50))) if self.server.rate else 1 << 20
        for start in range(0, len(data), step):
            chunk = data[start : start + step]
            self.wfile.write(chunk)
            self.server.n_sent += len(chunk)
            if self.server.rate:
                time.sleep(len(chunk) / self.server.rate)


def _sibling(name: str, data: bytes, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    sibling = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
    if is_lfs(name):
        sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
    return sibling


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
    if is_lfs(name):
        entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    return entry


# --- for the test files that import it -----------------------------------------------------------

TOKEN = "hf_TheSecretThatNobodySees"
QUICK = Patience(stall_s=0.4, backoff_s=(0.01,), longest_wait_s=5)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, which every command of this test asks, with a cache of its own and a token."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-login"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # for power cuts, which no test makes
    with HubServer() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


class Told(Progress):
    """Keeps what a download says, and takes no notice of how far it is."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def fetch(name: str, told: Told | None = None, **options: Any) -> Result:
    """A download with the command's own checks, but with little patience."""
    from llmcli.commands.download import _check

    parsed = parse(name, options.pop("revision", None))
    assert parsed
    options = {"patience": QUICK, **options}
    return download(parsed, _check, told or Told(), **options)


def assert_whole(folder: Path, files: dict[str, bytes]) -> None:
    """The folder holds what the repository has, to the byte, and nothing that is not needed."""
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json"} < names
    assert not {name for name in names if name.endswith((".bin", ".h5", ".msgpack", ".md"))}
    for name in names:
        assert (folder / name).read_bytes() == files[name], name


def in_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, which asks what the hub's client asks only once."""
    return subprocess.run(
        [sys.executable, "-m", "llmcli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
