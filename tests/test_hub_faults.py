"""What a network, a server and a disk do wrong, and what holds afterwards: the model is whole, to
the byte, or no command sees any of it; and the next run, without the fault, makes it whole."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from dataclasses import dataclass
from email.utils import formatdate
from types import SimpleNamespace

import pytest
from hub_models import tiny_model
from hub_server import QUICK, TOKEN, HubServer, Told, assert_whole, fetch, in_process, server

from llmcli import hub
from llmcli.errors import LLMCLIError, NotFoundError
from llmcli.hub import cache

__all__ = ["server"]  # the fixture

WEIGHTS = "/cdn/org/tiny"  # where the weights really come from, after the redirect
INFO = "/api/models/org/tiny"
FILES = tiny_model()
N = len(FILES["model.safetensors"])


@dataclass(frozen=True)
class Case:
    """A fault; `code` 0: it is overcome, having said `said`; else the error's code and sentence."""

    where: str
    kind: str
    said: str
    code: int = 0
    times: int = 1
    what: tuple = ()

    @property
    def options(self) -> dict:
        return dict(self.what)


def case(where, kind, said, code=0, times=1, **what):
    where_short = where.strip("/").split("/")[0]
    many = "always" if times > 50 else f"{times}x"
    status = what.get("status", "")
    extra = f" after {what['after']}" if "after" in what else ""
    label = f"{kind} {status}{extra} at {where_short} {many}".replace("  ", " ")
    return pytest.param(Case(where, kind, said, code, times, tuple(what.items())), id=label)


ALWAYS = 99
GATED, NONE = {"X-Error-Code": "GatedRepo"}, {"X-Error-Code": "RepoNotFound"}
CASES = [
    # a connection that ends
    case(INFO, "drop", "connection was cut; retry 1 of 5"),
    case(INFO, "drop", "connection was cut, also after 5 retries", 4, ALWAYS),
    case("config.json", "drop", "connection was cut; retry 1 of 5"),
    case(WEIGHTS, "drop", "connection was cut; retry 5 of 5", times=5),
    case(WEIGHTS, "drop", "connection was cut, also after 5 retries", 4, ALWAYS),
    case(WEIGHTS, "cut", "connection was cut; retry 1 of 5", after=0),
    case(WEIGHTS, "cut", "connection was cut; retry 1 of 5", after=N // 2),
    case(WEIGHTS, "cut", "connection was cut; retry 5 of 5", times=5, after=N // 9),
    case(WEIGHTS, "cut", "connection was cut; retry 1 of 5", after=N - 1),
    case(WEIGHTS, "cut", "connection was cut, also after 5 retries", 4, ALWAYS, after=1000),
    # a server that falls silent
    case(INFO, "stall", "no byte for 0.4 s; retry 1 of 5"),
    case(WEIGHTS, "stall", "no byte for 0.4 s; retry 1 of 5", after=0),
    case(WEIGHTS, "stall", "no byte for 0.4 s; retry 2 of 5", times=2, after=N // 3),
    # a server that cannot now
    case(INFO, "status", "HTTP 429; retry 1 of 5", status=429),
    case(INFO, "status", "HTTP 503; retry 1 of 5 in 0 s", status=503, headers={"Retry-After": "0"}),
    case(WEIGHTS, "status", "HTTP 500; retry 1 of 5", status=500),
    case(WEIGHTS, "status", "HTTP 503; retry 5 of 5", times=5, status=503),
    case(WEIGHTS, "status", "HTTP 503, also after 5 retries", 4, ALWAYS, status=503),
    case(
        WEIGHTS, "status", "HTTP 429, and wants to be asked again in 3600 s", 4,
        status=429, headers={"Retry-After": "3600"},
    ),
    case(WEIGHTS, "status", "storage host answers HTTP 403; retry 1 of 5", status=403),
    case(WEIGHTS, "status", "HTTP 403, also after 5 retries", 4, ALWAYS, status=403),
    # a server that will not
    case(INFO, "status", "does not accept the token", 4, ALWAYS, status=401),
    case(INFO, "status", "gated, or not yours", 4, ALWAYS, status=403, headers=GATED),
    case("resolve", "status", "gated, or not yours", 4, ALWAYS, status=403, headers=GATED),
    case("resolve", "status", "gated, or not yours", 4, ALWAYS, status=401, headers=GATED),
    case(INFO, "status", "has no model org/tiny", 3, ALWAYS, status=404, headers=NONE),
    case("config.json", "status", "has no config.json of org/tiny@", 3, ALWAYS, status=404),
    case(WEIGHTS, "status", "has no model.safetensors of", 3, ALWAYS, status=404),
    case(INFO, "status", "HTTP 418", 4, ALWAYS, status=418),
    # redirects
    case(INFO, "redirect", "redirects in a circle", 4, ALWAYS),
    case("resolve", "redirect", "redirects in a circle", 4, ALWAYS),
    case(
        "model.safetensors", "redirect", "an address that is none", 4, ALWAYS,
        headers={"Location": "file:///etc/passwd"},
    ),
    # content that is not what the hub states
    case(WEIGHTS, "wrong byte", "model.safetensors has a wrong hash; fetched anew"),
    case(WEIGHTS, "wrong byte", "model.safetensors has a wrong hash, twice", 5, ALWAYS),
    case("tokenizer.json", "wrong byte", "tokenizer.json has a wrong hash; fetched anew"),
    case("config.json", "wrong byte", "config.json has a wrong hash, twice", 5, ALWAYS),
    case(WEIGHTS, "lies shorter", f"has {N - 7} bytes, not the {N} stated; fetched anew"),
    case(WEIGHTS, "lies shorter", f"has {N - 7} bytes, not the {N} stated, twice", 5, ALWAYS),
    case(WEIGHTS, "lies longer", f"has {N + 7} bytes, not the {N} stated, twice", 5, ALWAYS),
    case(WEIGHTS, "body", "has 7 bytes, not", 5, ALWAYS, body=b"<html/>"),
    case(INFO, "status", "does not answer as a Hugging Face hub", 4, status=200, body=b"<html>"),
    case(INFO, "status", "states no commit", 5, status=200, body=b'{"siblings": []}'),
]  # fmt: skip


def run(told: Told, **options):
    """What a download raises, with its whole traceback as text."""
    try:
        fetch("org/tiny", told, **options)
    except LLMCLIError as error:
        return error, "".join(traceback.format_exception(error))
    return None, ""


def assert_nothing_is_seen() -> None:
    """No command finds the model, nor any file of it."""
    with pytest.raises(NotFoundError):
        hub.resolve("org/tiny")
    folder = cache.repo_folder("org/tiny")
    assert not list((folder / "snapshots").glob("*"))
    assert not list((folder / "refs").rglob("*"))
    for blob in (folder / "blobs").glob("*"):  # what is kept is right, or marked as unfinished
        assert blob.suffix == ".incomplete" or blob.name in HASHES, blob


HASHES: set[str] = set()


@pytest.fixture(autouse=True)
def repository(server: HubServer) -> str:
    from hub_models import git_hash, is_lfs, sha256

    HASHES.update(sha256(d) if is_lfs(n) else git_hash(d) for n, d in FILES.items())
    return server.put("org/tiny", FILES)


@pytest.mark.parametrize("case", CASES)
def test_after_a_fault_the_model_is_whole_or_unseen(case: Case, server: HubServer):
    server.fail(case.where, case.kind, case.times, **case.options)
    told = Told()
    error, trace = run(told)
    said = "\n".join([*told.lines, str(error)])
    assert case.said in said
    assert "\n" not in str(error)
    if case.code:
        assert error.exit_code == case.code, said
        assert_nothing_is_seen()
    else:
        assert error is None, said
    for secret in (TOKEN, TOKEN[3:], "SECRETSIGNATURE", "Bearer"):
        assert secret not in said + trace
    server.faults.clear()
    assert_whole(fetch("org/tiny").folder, FILES)
    assert hub.resolve("org/tiny").name == server.refs["org/tiny", "main"]
    assert not list(cache.repo_folder("org/tiny").rglob("*.incomplete"))


def weights_ranges(server: HubServer) -> list[str]:
    return [seen.range for seen in server.seen if seen.path.startswith("/cdn/")]


def test_a_cut_file_goes_on_where_it_stopped(server: HubServer):
    server.fail(WEIGHTS, "cut", after=1000)
    server.fail(WEIGHTS, "cut", after=500)
    fetch("org/tiny")
    assert weights_ranges(server) == ["", "bytes=1000-", "bytes=1500-"]
    sent = server.n_sent
    assert sent < N + 10_000, "no byte of the weights came twice"


def test_the_next_run_goes_on_where_this_one_stopped(server: HubServer):
    server.fail(WEIGHTS, "cut", after=1000)
    server.fail(WEIGHTS, "status", ALWAYS, status=503)
    assert run(Told())[0].exit_code == 4
    server.faults.clear()
    server.seen.clear()
    resumed = fetch("org/tiny")
    assert_whole(resumed.folder, FILES)
    assert resumed.fetched_nbytes == N - 1000
    assert weights_ranges(server) == ["bytes=1000-"]


@pytest.mark.parametrize("kind", ["ignores range", "wrong range"])
def test_a_range_that_is_not_served_starts_the_file_anew(server: HubServer, kind: str):
    server.fail(WEIGHTS, "cut", after=1000)
    server.fail(WEIGHTS, kind)
    assert_whole(fetch("org/tiny").folder, FILES)


def test_416_starts_the_file_anew(server: HubServer):
    server.fail(WEIGHTS, "cut", after=1000)
    server.fail(WEIGHTS, "status", status=416)
    told = Told()
    assert_whole(fetch("org/tiny", told).folder, FILES)
    assert weights_ranges(server) == ["", "bytes=1000-", ""]
    assert "the server does not go on at byte 1000; retry 2 of 5" in told.lines[1]


@pytest.mark.parametrize("content", [b"garbage" * 100, b"x" * (N + 5), b"x" * N])
def test_a_damaged_remainder_is_found_out_and_dropped(server: HubServer, content: bytes):
    blobs = cache.repo_folder("org/tiny") / "blobs"
    blobs.mkdir(parents=True)
    from hub_models import sha256

    (blobs / f"{sha256(FILES['model.safetensors'])}.incomplete").write_bytes(content)
    assert_whole(fetch("org/tiny").folder, FILES)


def test_retry_after_is_waited_for_in_seconds_or_as_a_date(server: HubServer):
    server.fail(WEIGHTS, "status", status=429, headers={"Retry-After": "1"})
    told = Told()
    fetch("org/tiny", told)
    assert told.lines == ["model.safetensors: the server answers HTTP 429; retry 1 of 5 in 1 s"]
    from llmcli.hub.http import _retry_after

    def asked(value: str) -> float | None:
        return _retry_after(SimpleNamespace(headers={"Retry-After": value}, status_code=429))

    assert asked(formatdate(4102444800, usegmt=True)) > 1e8
    assert asked("soon") is None
    limit = SimpleNamespace(headers={"RateLimit": '"api";r=0;t=55'}, status_code=429)
    assert _retry_after(limit) == 55


def test_a_branch_that_moves_meanwhile_gives_one_commit_whole(server: HubServer):
    new = tiny_model(seed=9)
    moved = []

    def move(path: str) -> None:
        if "resolve" in path and not moved:
            moved.append(server.put("org/tiny", new))

    old = server.refs["org/tiny", "main"]
    server.before = move
    first = fetch("org/tiny")
    assert first.commit == old
    assert_whole(first.folder, FILES)
    second = fetch("org/tiny")
    assert second.commit == moved[0]
    assert_whole(second.folder, new)
    assert hub.resolve("org/tiny") == second.folder
    assert hub.resolve(f"org/tiny@{old}") == first.folder


def test_a_new_commit_that_fails_leaves_the_old_one_in_its_place(server: HubServer):
    old = fetch("org/tiny")
    new = server.put("org/tiny", tiny_model(seed=9))
    server.fail(WEIGHTS, "wrong byte", ALWAYS)
    assert run(Told())[0].exit_code == 5
    assert hub.resolve("org/tiny") == old.folder
    assert not (old.folder.parent / new).exists()


@pytest.mark.parametrize("kind", ["no length", "chunked"])
def test_a_file_of_unstated_length_is_held_to_what_the_hub_states(server, kind):
    server.fail(WEIGHTS, kind)
    assert_whole(fetch("org/tiny").folder, FILES)


def test_a_lying_size_in_the_listing_is_damage(server: HubServer):
    def lie(info: dict) -> None:
        for sibling in info["siblings"]:
            if "lfs" in sibling:
                sibling["lfs"]["size"] += 9

    server.edit = lie
    error, _ = run(Told())
    assert error.exit_code == 5
    assert f"has {N} bytes, not the {N + 9} stated, twice" in str(error)
    assert_nothing_is_seen()


def test_a_size_that_no_disk_holds_is_refused_before_a_byte_is_fetched(server: HubServer):
    def lie(info: dict) -> None:
        for sibling in info["siblings"]:
            if "lfs" in sibling:
                sibling["lfs"]["size"] = 10**16

    server.edit = lie
    error, _ = run(Told())
    assert error.exit_code == 7
    assert "9,095 TiB are needed" in str(error)
    assert "are available" in str(error)
    assert len(server.seen) == 1
    assert_nothing_is_seen()


@pytest.mark.parametrize(("number", "said"), [
    (errno.ENOSPC, "The disk is full: "),
    (errno.EDQUOT, "may not grow larger here (Disk quota exceeded)"),
    (errno.EFBIG, "may not grow larger here (File too large)"),
])  # fmt: skip
def test_a_file_that_finds_no_room_is_said(server: HubServer, monkeypatch, number, said):
    from llmcli.hub import transfer

    real, room = os.write, [4000]

    def write(out: int, data) -> int:
        if len(data) > 5000 or room[0] < 1000:
            if room[0] < 1000:
                raise OSError(number, os.strerror(number))
            room[0] = 0
            return real(out, data[:1000])
        return real(out, data)

    monkeypatch.setattr(transfer.os, "write", write)
    error, _ = run(Told())
    monkeypatch.undo()
    assert error.exit_code == 7
    assert said in str(error)
    assert "still needed" in str(error)


def test_no_host_of_that_name_is_one_sentence_at_once(server: HubServer, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    told = Told()
    error, trace = run(told)
    assert error.exit_code == 4
    assert "no-such-host.invalid cannot be resolved" in str(error)
    assert told.lines == []
    assert TOKEN not in trace


def test_a_password_in_the_endpoint_is_never_shown(server: HubServer, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url.replace("//", "//user:ThePassword@"))
    server.fail("/api/", "status", ALWAYS, status=403)
    error, trace = run(Told())
    assert error.exit_code == 4
    assert "ThePassword" not in trace


def test_a_server_that_compresses_unasked_is_understood(server: HubServer):
    server.fail(WEIGHTS, "gzip")
    server.fail("tokenizer.json", "gzip")
    told = Told()
    assert_whole(fetch("org/tiny", told).folder, FILES)
    assert told.lines == []


def test_nobody_listening_is_tried_five_times_again(server: HubServer, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    told = Told()
    error, _ = run(told)
    assert error.exit_code == 4
    assert "no connection to 127.0.0.1:9, also after 5 retries" in str(error)
    assert len(told.lines) == 5


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://x", "http://", "http://[::1"])
def test_an_endpoint_that_is_no_address_is_a_usage_error(server, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert run(Told())[0].exit_code == 2


@pytest.mark.parametrize("token", ["hf_\x01abc", "hf_Geheimnisé", "hf a b"])
def test_a_token_that_cannot_be_one_is_never_shown(server, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    error, trace = run(Told())
    assert token not in f"{error}{trace}"
    if error:
        assert error.exit_code == 4


@pytest.fixture
def fresh_session():
    """None that the library has made before, or keeps."""
    from huggingface_hub import close_session

    close_session()
    yield
    close_session()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALL_PROXY", "socks5://user:secret@127.0.0.1:1080", "a SOCKS proxy"),
        ("HTTPS_PROXY", "http://user:secret@[::1", "The proxy .* no address"),
        ("HTTPS_PROXY", "ftp://user:secret@x:1", "The proxy .* no address"),
        ("SSL_CERT_FILE", "/nowhere", "certificates .* cannot be read"),
        ("SSL_CERT_FILE", __file__, "certificates .* cannot be read"),
    ],
)
def test_a_session_that_cannot_be_made_is_a_network_error(
    server, fresh_session, monkeypatch, variable, value, said
):
    if variable == "ALL_PROXY":  # as where the package is not installed
        monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(variable, value)
    error, trace = run(Told())
    assert error.exit_code == 4
    assert re.search(said, str(error))
    assert "secret" not in f"{error}{trace}"


@pytest.mark.parametrize(
    ("place", "said"), [("/dev/null/token", "Not a directory"), ("token", "it holds no text")]
)
def test_a_token_that_cannot_be_read_is_named(server, monkeypatch, tmp_path, place, said):
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / place))
    error, _ = run(Told())
    assert error.exit_code == 3
    assert re.search(f"token in .*oken cannot be read: {said}", str(error))


def test_a_setting_that_the_library_cannot_read_is_a_usage_error():
    done = in_process("download", "org/tiny", HF_HUB_DOWNLOAD_TIMEOUT="soon")
    assert done.returncode == 2
    assert done.stderr.startswith("llmcli: huggingface_hub cannot read its settings: ")
    assert "'soon'" in done.stderr.splitlines()[0]


def test_the_token_goes_to_the_hub_and_to_no_other_host(server: HubServer):
    fetch("org/tiny")
    for seen in server.seen:
        expected = "" if seen.path.startswith("/cdn/") else f"Bearer {TOKEN}"
        assert seen.token == expected, seen
    assert {seen.host.partition(":")[0] for seen in server.seen} == {"127.0.0.1", "localhost"}


def test_offline_nothing_is_asked(server: HubServer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error, _ = run(Told())
    assert error.exit_code == 4
    assert "HF_HUB_OFFLINE" in str(error)
    assert server.seen == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    commit = fetch("org/tiny").commit
    server.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for revision in (None, "main", commit, commit[:9]):
        assert fetch("org/tiny", revision=revision).commit == commit
    assert server.seen == []


def test_patience_is_as_the_readme_says():
    from llmcli.hub.http import Patience

    assert Patience() == Patience(20.0, 5, (1.0, 2.0, 4.0, 8.0, 16.0), 300.0)
    assert QUICK.retries == 5
