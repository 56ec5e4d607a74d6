"""`llmcli download` as its users meet it: streams, requests, tables, and what is fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_models import git_hash, sha256, tiny_model
from hub_server import TOKEN, HubServer, assert_whole, fetch, in_process, server

from llmcli import hub
from llmcli.errors import NotFoundError
from llmcli.hub import cache

__all__ = ["server"]  # the fixture

FILES = tiny_model()
NEEDED = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
WEIGHTS = "model.safetensors"


@pytest.fixture
def commit(server: HubServer) -> str:
    return server.put("org/tiny", FILES)


# --- the road ------------------------------------------------------------------------------------


def test_stdout_is_the_folder_and_stderr_the_conversation(llmcli, server, commit):
    run = llmcli("download", "org/tiny")
    assert run.exit_code == 0, run.output
    folder = Path(run.stdout.splitlines()[-1])
    assert run.stdout == f"{folder}\n"
    assert folder == cache.repo_folder("org/tiny") / "snapshots" / commit
    assert_whole(folder, FILES)
    assert {path.name for path in folder.iterdir()} == {*NEEDED, WEIGHTS}
    lines = run.stderr.splitlines()
    assert lines[0] == f"org/tiny at {commit[:12]}"
    assert lines[1] == "config.json: 122 B, verified"
    assert lines[-1] == "org/tiny is here: 5 files, 49.7 KiB; 49.7 KiB was fetched."
    assert "\x1b" not in run.stderr


def test_quiet_says_nothing_but_errors(llmcli, server, commit):
    server.fail("config.json", "drop")
    server.fail("/cdn/", "status", 0, status=404)
    run = llmcli("download", "org/tiny", "-q")
    assert (run.exit_code, run.stderr) == (0, "")
    assert llmcli("download", "org/none", "-q").stderr.startswith("llmcli: ")


def test_the_requests_of_a_first_and_of_a_second_run(llmcli, server, commit):
    """One for the list, one a file, one more where the hub redirects; then one; then none."""
    llmcli("download", "org/tiny")
    where = f"GET /org/tiny/resolve/{commit}"
    assert server.paths() == [
        "GET /api/models/org/tiny/revision/main",
        *(f"{where}/{name}" for name in [*NEEDED, WEIGHTS]),
        f"GET /cdn/org/tiny/{commit}/{WEIGHTS}",
    ]
    server.seen.clear()
    again = llmcli("download", "org/tiny")
    assert "nothing was fetched" in again.stderr
    assert server.paths() == ["GET /api/models/org/tiny/revision/main"]
    server.seen.clear()
    pinned = llmcli("download", "org/tiny", "--revision", commit)
    assert pinned.stdout == again.stdout
    assert server.paths() == []


def test_nothing_about_the_user_is_sent_or_asked(server, commit):
    """A process of its own: what the client asks it asks once. No /api/agent-harnesses, no more."""
    run = in_process("download", "org/tiny", AI_AGENT="some-agent", HF_HUB_DISABLE_TELEMETRY="0")
    assert run.returncode == 0, run.stderr
    assert len(server.seen) == 7
    assert not [seen for seen in server.seen if "harness" in seen.path or "agent/" in seen.agent]
    assert not list(Path(os.environ["HF_HOME"]).glob(".agent*"))


def test_no_token_is_sent_where_there_is_none(server, commit, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    fetch("org/tiny")
    assert {seen.token for seen in server.seen} == {""}


def test_download_never_imports_torch(server, commit):
    code = (
        "import sys\nfrom llmcli.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "download", "org/tiny"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"torch", "transformers"} & set(run.stderr.splitlines()[-1].split())


OFFLINE = """
import socket
def refuse(*arguments, **options):
    raise RuntimeError("a socket was opened")
socket.socket.__init__ = socket.getaddrinfo = socket.create_connection = refuse
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "-m", "org/tiny", "Once", "--max-new-tokens", "3"],
        ["tokenize", "-m", "org/tiny", "Once"],
        ["inspect", "-m", "org/tiny", "--view", "model"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_other_command_opens_a_socket(arguments, server, commit, tmp_path):
    fetch("org/tiny")
    server.seen.clear()
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    run = in_process(*arguments, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert run.returncode == 0, run.stderr
    assert run.stdout
    assert server.seen == []
    if arguments[0] == "tokenize":
        refused = in_process("download", "org/tiny", PYTHONPATH=str(tmp_path))
        assert "a socket was opened" in refused.stderr, "the test sees nothing"


def test_generate_names_the_command_that_gets_a_model(llmcli, server):
    run = llmcli("generate", "-m", "org/tiny", "Once")
    assert run.exit_code == 3
    assert run.stderr == (
        "llmcli: org/tiny is not downloaded yet.\nGet it with: llmcli download org/tiny\n"
    )
    assert server.seen == []


@pytest.mark.parametrize("words", ["llmcli generate -m ", "llmcli tokenize --versus "])
def test_completion_of_a_model_needs_neither_torch_nor_the_hub(words, server, commit):
    fetch("org/tiny")
    code = (
        "import sys\nfrom llmcli.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    environment = {"_LLMCLI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert {"fable", "gpt2", "org/tiny"} <= set(run.stdout.split())
    assert not {"torch", "huggingface_hub"} & set(run.stderr.split())


# --- what is here --------------------------------------------------------------------------------


def test_without_a_name_what_can_be_had(llmcli, server):
    server.put("distilbert/distilgpt2", FILES)
    llmcli("download", "distilgpt2")
    server.seen.clear()
    rows = [line.split("\t") for line in llmcli("download").stdout.splitlines()]
    assert rows[0] == ["model", "parameters", "download", "memory", "license", "here"]
    assert rows[1] == ["distilgpt2", "81912576", "355816128", "365399040", "Apache-2.0", "yes"]
    assert [row[0] for row in rows[2:]] == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    assert {row[5] for row in rows[2:]} == {"no"}
    found = json.loads(llmcli("download", "--json").stdout)
    assert found["schema"] == 1
    assert found["models"][0]["here"] is True
    assert server.seen == []


def test_the_sizes_are_those_of_the_checkpoints():
    """gpt2's model.safetensors has 548,105,171 bytes, distilgpt2's 352,824,413: within 1 %."""
    from llmcli.hub.names import KNOWN

    for name, nbytes in (("gpt2", 548_105_171), ("distilgpt2", 352_824_413)):
        assert KNOWN[name].download_nbytes == pytest.approx(nbytes, rel=0.01)


def test_list_verify_and_remove(llmcli, server, commit):
    old = server.put("org/tiny", tiny_model(seed=5), "v1")
    for revision in ("main", "v1"):
        fetch("org/tiny", revision=revision)
    server.seen.clear()
    rows = [line.split("\t") for line in llmcli("download", "--list").stdout.splitlines()]
    assert rows[0] == ["model", "commit", "refs", "bytes", "state"]
    assert sorted(rows[1:]) == sorted(
        ["org/tiny", c, ref, str(50931), "whole"] for c, ref in ((commit, "main"), (old, "v1"))
    )
    listed = json.loads(llmcli("download", "--list", "--json").stdout)["models"]
    assert {model["commit"] for model in listed} == {commit, old}
    assert llmcli("download", "--verify", "org/tiny", "org/tiny@v1").exit_code == 0

    freed = llmcli("download", "--remove", "org/tiny@v1")
    assert "org/tiny@v1 is removed" in freed.stderr
    assert hub.resolve("org/tiny").name == commit
    with pytest.raises(NotFoundError):
        hub.resolve("org/tiny@v1")
    assert_whole(hub.resolve("org/tiny"), FILES)
    assert llmcli("download", "--remove", "org/tiny").exit_code == 0
    assert not cache.repo_folder("org/tiny").exists()
    assert llmcli("download", "--remove", "org/tiny").exit_code == 3
    assert llmcli("download", "--verify", "org/tiny").exit_code == 3
    assert server.seen == []


@pytest.mark.parametrize(
    "named", [["org/tiny@main"], ["org/tiny", "--revision", "main"]], ids=" ".join
)
def test_remove_takes_one_revision_where_one_is_named_main_too(llmcli, server, commit, named):
    files = tiny_model(seed=5)
    server.put("org/tiny", files, "v1")
    for revision in ("main", "v1"):
        fetch("org/tiny", revision=revision)
    run = llmcli("download", "--remove", *named)
    assert run.exit_code == 0, run.output
    assert run.stderr.startswith("org/tiny@main is removed: 46.")
    assert_whole(hub.resolve("org/tiny@v1"), files)
    run = llmcli("download", "--remove", *named)
    assert (run.exit_code, run.stderr.splitlines()[0]) == (
        3,
        "llmcli: org/tiny@main is not here.",
    )
    assert_whole(hub.resolve("org/tiny@v1"), files)


def test_remove_leaves_the_files_to_other_names_of_their_commit(llmcli, server, commit):
    for revision in ("v1.0", "feature/x"):
        server.put("org/tiny", FILES, revision)
    for revision in ("main", "v1.0", "feature/x"):
        fetch("org/tiny", revision=revision)
    run = llmcli("download", "--remove", "org/tiny@v1.0")
    said = "org/tiny@v1.0 is removed: 0 B set free. Its files stay, as those of feature/x, main.\n"
    assert (run.exit_code, run.stderr) == (0, said)
    assert llmcli("download", "--remove", "org/tiny@v1.0").exit_code == 3
    for name in ("org/tiny", "org/tiny@feature/x"):
        assert_whole(hub.resolve(name), FILES)
    run = llmcli("download", "--remove", "org/tiny@feature/x", "org/tiny@main", "--json")
    freed = [gone["nbytes"] for gone in json.loads(run.stdout)["removed"]]
    assert freed == [0, sum(len(FILES[name]) for name in [*NEEDED, WEIGHTS])]
    assert not cache.repo_folder("org/tiny").exists()


def test_remove_of_a_commit_takes_its_names_along(llmcli, server, commit):
    server.put("org/tiny", FILES, "v1.0")
    for revision in ("main", "v1.0"):
        fetch("org/tiny", revision=revision)
    run = llmcli("download", "--remove", f"org/tiny@{commit}", "org/tiny@v1.0")
    assert run.exit_code == 0, run.output
    assert "org/tiny@v1.0 is removed: 0 B set free.\n" in run.stderr
    assert not cache.repo_folder("org/tiny").exists()


@pytest.mark.parametrize("named", [["org/tiny", "org/tiny@main"], ["org/tiny@v1", "org/tiny"]])
def test_a_model_that_is_removed_whole_takes_its_revisions_along(llmcli, server, commit, named):
    server.put("org/tiny", tiny_model(seed=5), "v1")
    for revision in ("main", "v1"):
        fetch("org/tiny", revision=revision)
    run = llmcli("download", "--remove", *named, "--json")
    assert run.exit_code == 0, run.output
    assert [gone["model"] for gone in json.loads(run.stdout)["removed"]] == ["org/tiny"]
    assert not cache.repo_folder("org/tiny").exists()


def test_verify_finds_a_flipped_bit_and_download_mends_it(llmcli, server, commit):
    folder = fetch("org/tiny").folder
    blob = (folder / WEIGHTS).resolve()
    before, data = blob.stat(), bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk does it: unseen
    run = llmcli("download", "--verify", "org/tiny")
    assert run.exit_code == 5
    assert "org/tiny: model.safetensors is damaged" in run.stderr
    assert "llmcli download org/tiny" in run.stderr
    report = json.loads(llmcli("download", "--verify", "org/tiny", "--json").stdout)
    assert report["models"][0]["damaged"] == [WEIGHTS]
    run = llmcli("download", "org/tiny")
    assert "the copy in the cache is damaged; fetched anew" in run.stderr
    assert_whole(folder, FILES)
    assert llmcli("download", "--verify", "org/tiny").exit_code == 0


def _assert_missing(llmcli, name: str, *files: str) -> None:
    """--verify names them, again and again, and --list does not call the model whole."""
    more = f" and {len(files) - 1} more are" if len(files) > 1 else " is"
    for _ in range(2):
        run = llmcli("download", "--verify", name)
        assert (run.exit_code, run.stdout) == (5, ""), run.output
        assert f"llmcli: {name}: {files[0]}{more} missing.\n" in run.stderr
    report = json.loads(llmcli("download", "--verify", name, "--json").stdout)["models"][0]
    assert (report["damaged"], report["missing"]) == ([], list(files))
    assert "whole" not in llmcli("download", "--list").stdout


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("part", [".safetensors", "tokenizer.json", "config.json"])
def test_verify_names_a_missing_file_every_time(llmcli, server, n_shards, part):
    files = tiny_model(n_shards=n_shards)
    server.put("org/tiny", files)
    folder = fetch("org/tiny").folder
    gone = next(path for path in sorted(folder.iterdir()) if path.name.endswith(part))
    gone.unlink()
    _assert_missing(llmcli, "org/tiny", gone.name)
    assert llmcli("download", "org/tiny").exit_code == 0
    assert_whole(folder, files)
    assert llmcli("download", "--verify", "org/tiny").exit_code == 0


def test_verify_misses_a_shard_in_a_cache_of_another_program(llmcli, server):
    server.put("org/tiny", tiny_model(n_shards=3))
    folder = fetch("org/tiny").folder
    cache.Manifest.path(folder).unlink()
    assert llmcli("download", "--verify", "org/tiny").exit_code == 0
    shards = sorted(path for path in folder.iterdir() if path.name.endswith(".safetensors"))
    shards[0].unlink()
    shards[1].resolve().unlink()
    _assert_missing(llmcli, "org/tiny", shards[0].name, shards[1].name)


@pytest.mark.parametrize("ours", [True, False])
def test_a_folder_in_the_place_of_a_file_is_no_file(llmcli, server, commit, ours):
    folder = fetch("org/tiny").folder
    if not ours:
        cache.Manifest.path(folder).unlink()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    _assert_missing(llmcli, "org/tiny", WEIGHTS)
    with pytest.raises(NotFoundError, match=r"model\.safetensors is missing"):
        hub.resolve("org/tiny")
    run = llmcli("download", "org/tiny", "-q")
    assert (run.exit_code, run.stderr) == (
        3, f"llmcli: {folder / WEIGHTS} is in the way: a folder.\nMove it away first.\n"
    )  # fmt: skip
    (folder / WEIGHTS).rmdir()
    assert llmcli("download", "org/tiny").exit_code == 0
    assert_whole(folder, FILES)


def test_a_tokenizer_alone_lacks_nothing(llmcli, server, commit):
    folder = fetch("org/tiny", tokenizer_only=True).folder
    assert llmcli("download", "--verify", "org/tiny").exit_code == 0
    cache.Manifest.path(folder).unlink()
    assert llmcli("download", "--verify", "org/tiny").exit_code == 0


def test_a_damaged_blob_that_two_revisions_share_is_fetched_anew_for_either(llmcli, server, commit):
    """What one revision's manifest says of it no longer counts, either."""
    server.put("org/tiny", {**FILES, "config.json": FILES["config.json"] + b" "}, "v1")
    for revision in ("main", "v1"):
        folder = fetch("org/tiny", revision=revision).folder
    blob = (folder / WEIGHTS).resolve()
    before = blob.stat()
    blob.write_bytes(b"x" * before.st_size)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert llmcli("download", "--verify", "org/tiny@v1").exit_code == 5
    assert "fetched anew" in llmcli("download", "org/tiny@v1").stderr
    assert_whole(hub.resolve("org/tiny"), FILES)


def test_verify_names_every_damaged_model_and_what_it_cannot_verify(llmcli, server, commit):
    server.put("org/second", FILES)
    for name in ("org/tiny", "org/second"):
        (fetch(name).folder / WEIGHTS).resolve().write_bytes(b"x")
    (hub.resolve("org/second") / "notes.txt").write_text("mine")
    run = llmcli("download", "--verify", "org/tiny", "org/second", "-q")
    assert run.exit_code == 5
    assert run.stderr.splitlines() == [
        "llmcli: org/tiny: model.safetensors is damaged.",
        "llmcli: org/second: model.safetensors is damaged; "
        "notes.txt is of no known hash: not verified.",
        "Fetch it anew: llmcli download org/tiny org/second",
    ]


def test_a_file_that_changed_since_it_was_verified_is_not_trusted(server, commit):
    folder = fetch("org/tiny").folder
    (folder / WEIGHTS).resolve().write_bytes(b"x" * len(FILES[WEIGHTS]))
    assert_whole(fetch("org/tiny", revision=commit).folder, FILES)


def test_verify_looks_in_the_cache_and_not_beside_it(llmcli, server, commit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert llmcli("download", "--verify", "org/tiny").exit_code == 3
    folder = fetch("org/tiny").folder
    assert llmcli("download", "--verify", "org/tiny").stdout == f"{folder}\n"


def test_a_failure_on_the_second_name_loses_nothing_of_the_first(llmcli, server, commit):
    run = llmcli("download", "org/tiny", "org/none", "--json")
    assert run.exit_code not in (0, 1)
    assert [model["model"] for model in json.loads(run.stdout)["models"]] == ["org/tiny"]
    assert llmcli("download", "--remove", "org/tiny", "org/none").exit_code == 3
    assert_whole(hub.resolve("org/tiny"), FILES)


def test_remove_takes_what_an_interrupted_download_left(llmcli, server, commit):
    server.fail("/cdn/", "cut", after=1000)
    server.fail("/cdn/", "status", 9, status=404)
    with pytest.raises(NotFoundError):
        fetch("org/tiny")
    assert "partial" in llmcli("download", "--list").stdout
    assert llmcli("download", "--remove", "org/tiny").exit_code == 0
    assert llmcli("download", "--list").stdout.count("\n") == 1


def test_remove_knows_both_homes_of_a_short_name(llmcli, server):
    """Old caches have GPT-2 without an org."""
    commits = []
    for home, digit in (("gpt2", "a"), ("openai-community/gpt2", "b")):
        snapshot = cache.repo_folder(home) / "snapshots" / (40 * digit)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        commits.append(snapshot)
    assert llmcli("download", "--remove", f"gpt2@{40 * 'a'}").exit_code == 0
    assert [commit.exists() for commit in commits] == [False, True]
    commits[0].mkdir(parents=True)
    (cache.repo_folder("gpt2") / "refs").mkdir()
    (cache.repo_folder("gpt2") / "refs" / "main").write_text(40 * "a")
    two_names = llmcli("download", "--remove", "gpt2@main", f"gpt2@{40 * 'a'}")
    assert two_names.exit_code == 0, two_names.stderr
    assert [commit.exists() for commit in commits] == [False, True]
    commits[0].mkdir(parents=True)
    assert llmcli("download", "--remove", "gpt2").exit_code == 0
    assert [commit.exists() for commit in commits] == [False, False]


def test_remove_looks_at_no_other_model_and_keeps_shared_blobs(llmcli, server, commit):
    """A broken link in another model's folder is not this one's matter."""
    server.put("org/tiny", {**FILES, "config.json": FILES["config.json"] + b" "}, "v1")
    for revision in ("main", "v1"):
        fetch("org/tiny", revision=revision)
    stray = cache.repo_folder("org/other") / "snapshots" / ("b" * 40)
    stray.mkdir(parents=True)
    (stray / "config.json").symlink_to("../../blobs/none")
    (cache.repo_folder("org/other") / "blobs").symlink_to("none")
    blobs = cache.repo_folder("org/tiny") / "blobs"
    before = len(list(blobs.iterdir()))
    freed = llmcli("download", "--remove", "org/tiny@v1", "--json")
    assert freed.exit_code == 0, freed.output
    assert json.loads(freed.stdout)["removed"][0]["nbytes"] == len(FILES["config.json"]) + 1
    assert len(list(blobs.iterdir())) == before - 1
    assert_whole(hub.resolve("org/tiny"), FILES)


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny@v1"])
def test_remove_refuses_while_a_file_of_the_model_comes(llmcli, server, commit, name):
    server.put("org/tiny", tiny_model(seed=5), "v1")
    for revision in ("main", "v1"):
        fetch("org/tiny", revision=revision)
    lock = cache.cache_dir() / ".locks" / "models--org--tiny" / f"{sha256(FILES[WEIGHTS])}.lock"
    holder = (
        "import sys\nfrom huggingface_hub.utils import WeakFileLock\n"
        "with WeakFileLock(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        run = llmcli("download", "--remove", name)
        process.communicate()
    assert run.exit_code == 2
    assert "is being downloaded by another process" in run.stderr
    assert lock.exists()
    assert_whole(hub.resolve("org/tiny"), FILES)
    assert llmcli("download", "--remove", name).exit_code == 0


def test_a_dry_run_names_files_and_bytes_and_writes_nothing(llmcli, server, commit):
    run = llmcli("download", "org/tiny", "--dry-run")
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    assert rows[0] == ["file", "bytes", "here"]
    assert rows[1:] == [[name, str(len(FILES[name])), "no"] for name in [*NEEDED, WEIGHTS]]
    assert len(server.seen) == 1
    assert not cache.cache_dir().exists()
    fetch("org/tiny", tokenizer_only=True)
    plan = json.loads(llmcli("download", "org/tiny", "--dry-run", "--json").stdout)["models"][0]
    assert plan["fetched_nbytes"] == len(FILES[WEIGHTS]) + len(FILES["generation_config.json"])
    files = tiny_model(n_shards=3)
    server.put("org/sharded", files)
    plan = json.loads(llmcli("download", "org/sharded", "--dry-run", "--json").stdout)["models"][0]
    names = {file["name"] for file in plan["files"]}
    assert names >= {name for name in files if name.endswith(".safetensors")}
    assert not cache.repo_folder("org/sharded").exists()


def test_json_is_one_object(llmcli, server, commit):
    run = llmcli("download", "org/tiny", "fable", "--json")
    made = json.loads(run.stdout)
    assert made["schema"] == 1
    model = made["models"][0]
    assert (model["model"], model["revision"], model["commit"]) == ("org/tiny", "main", commit)
    hashes = {file["name"]: file["hash"] for file in model["files"]}
    assert hashes["config.json"] == git_hash(FILES["config.json"])
    assert hashes[WEIGHTS] == sha256(FILES[WEIGHTS])
    assert Path(model["folder"]).name == commit
    assert made["models"][1]["folder"] == str(hub.EMBEDDED["fable"])


@pytest.mark.parametrize(
    "arguments",
    [["--list", "gpt2"], ["--list", "--remove"], ["--verify"], ["--remove"], ["--dry-run"],
     ["--revision", "x"], ["gpt2", "--revision", "../x"], ["--list", "--tokenizer-only"],
     ["--list", "--revision", "x"], ["fable", "--revision", "x"], ["fable", "--tokenizer-only"],
     ["fable", "--dry-run"], ["fable", "--verify"],
     ["gpt2", "--remove", "--tokenizer-only"]],
    ids=" ".join,
)  # fmt: skip
def test_what_does_not_go_together_is_a_usage_error(llmcli, server, arguments):
    assert llmcli("download", *arguments).exit_code == 2
    assert server.seen == []


@pytest.mark.parametrize(("status", "code"), [(401, 4), (200, 4)])
def test_a_token_is_in_no_traceback_of_the_whole_program(server, commit, status, code):
    server.fail("/api/", "status", 9, status=status, body=TOKEN.encode())
    for debug in ("0", "1"):
        run = in_process("download", "org/tiny", LLMCLI_DEBUG=debug, HF_DEBUG=debug)
        assert run.returncode == code
        assert ("Traceback" in run.stderr) == (debug == "1")
        assert TOKEN not in run.stderr + run.stdout
        if debug == "0":
            assert len(run.stderr.splitlines()) <= 2, run.stderr
