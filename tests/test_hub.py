"""Names to folders, and the cache as it lies on disk: no network, no heavy import."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmcli import hub
from llmcli.errors import NotFoundError, UsageError
from llmcli.hub import cache
from llmcli.hub.names import KNOWN, HubName, parse

COMMIT, OTHER = "a" * 40, "b" * 40
NO_TENSORS = b"\2" + bytes(7) + b"{}"  # a safetensors file of none
WHOLE = ("config.json", "tokenizer.json", "model.safetensors")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def put(repo: str, files=WHOLE, commit: str = COMMIT, *refs: str) -> Path:
    """A snapshot in the cache, as another program would leave it."""
    folder = cache.repo_folder(repo)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for name in files:
        blob = folder / "blobs" / f"{abs(hash(name)):040x}"[:40]
        blob.write_bytes(NO_TENSORS if name.endswith(".safetensors") else name.encode())
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    for ref in refs or ("main",):
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HF_HUB_CACHE": "/x/hub", "HF_HOME": "/y"}, "/x/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/x/old", "HF_HOME": "/y"}, "/x/old"),
        ({"HF_HOME": "/y", "XDG_CACHE_HOME": "/z"}, "/y/hub"),
        ({"XDG_CACHE_HOME": "/z"}, "/z/huggingface/hub"),
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HF_HOME": "~/models", "HOME": "/h"}, "/h/models/hub"),
        ({"HF_HOME": "$DISK/models", "DISK": "/d"}, "/d/models/hub"),
    ],
)
def test_the_cache_is_where_the_hub_client_has_it(environment, folder, monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(cache.cache_dir()) == folder
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    if len(environment) == 1:  # the client reads its environment once, so it is asked anew: slow
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
        )
        assert run.stdout.strip() == folder


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_short_names_lead_to_the_hubs_own(name):
    snapshot = put(KNOWN[name].repo)
    assert hub.resolve(name) == snapshot
    assert hub.resolve(KNOWN[name].repo) == snapshot
    assert hub.revision_of(snapshot) == COMMIT


def test_a_model_under_its_old_name_without_an_org_is_found():
    snapshot = put("gpt2")
    assert hub.resolve("gpt2") == snapshot


def test_every_model_that_is_listed_can_be_used_verified_and_removed(llmcli):
    """Other programs' caches hold models without an org; some are short names of ours."""
    repos = ["bert-base-uncased", "distilgpt2", "gpt2", "org/name"]
    snapshots = {repo: put(repo) for repo in repos}
    put("bert-base-uncased", WHOLE, OTHER, "v1")
    listed = json.loads(llmcli("download", "--list", "--json").stdout)["models"]
    assert sorted({model["model"] for model in listed}) == repos
    for repo, snapshot in snapshots.items():
        assert hub.resolve(repo) == snapshot
        run = llmcli("download", "--verify", repo, "--json")
        assert json.loads(run.stdout)["models"][0]["folder"] == str(snapshot)
    assert hub.resolve(f"bert-base-uncased@{OTHER[:12]}").name == OTHER
    assert "bert-base-uncased" in hub.known_names()
    assert hub.known_names().count("gpt2") == 1
    assert llmcli("download", "--remove", "bert-base-uncased@v1").exit_code == 0
    for repo in repos:
        assert llmcli("download", "--remove", repo).exit_code == 0
    assert json.loads(llmcli("download", "--list", "--json").stdout)["models"] == []
    with pytest.raises(NotFoundError, match="There is no model called 'bert-base-uncased'"):
        hub.resolve("bert-base-uncased")
    with pytest.raises(NotFoundError, match="There is no model called"):
        hub.resolve("bert-base-uncased@../x")


def test_a_folder_a_short_name_and_a_hub_id_come_in_this_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached, short = put("org/name"), put("openai-community/gpt2")
    assert hub.resolve("org/name") == cached
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "gpt2").mkdir()
    assert hub.resolve("org/name") == Path("org/name")
    assert hub.resolve("gpt2") == short
    assert hub.resolve("./gpt2") == Path("gpt2")
    assert hub.revision_of(Path("org/name")) is None


def test_only_whole_revisions_are_offered_in_place_of_one_that_is_not_here():
    put("org/name", WHOLE, OTHER, "v1")
    put("org/name", WHOLE[:1], "d" * 40, "v0")
    with pytest.raises(NotFoundError) as caught:
        hub.resolve("org/name")
    assert caught.value.fact == "org/name is not downloaded yet."
    assert caught.value.remedy == (
        f"Here is org/name@{OTHER[:12]}: use that name, "
        "or get this one with: llmcli download org/name"
    )


def test_revisions_are_branches_tags_commits_and_their_beginnings():
    old, new = put("org/name", WHOLE, OTHER, "v1.0", "refs/pr/1"), put("org/name")
    assert hub.resolve("org/name@v1.0") == hub.resolve("org/name@refs/pr/1") == old
    assert hub.resolve(f"org/name@{OTHER}") == hub.resolve(f"org/name@{OTHER[:7]}") == old
    assert hub.resolve("org/name") == hub.resolve("org/name@main") == new
    with pytest.raises(NotFoundError, match=r"org/name@v2 is not downloaded yet.*org/name@aaaaaaa"):
        hub.resolve("org/name@v2")


@pytest.mark.parametrize("name", ["gpt2", "org/name", "org/name@v1", "gpt2@main"])
def test_a_model_that_is_not_here_names_the_command_that_gets_it(name):
    with pytest.raises(NotFoundError) as caught:
        hub.resolve(name)
    assert caught.value.remedy == f"Get it with: llmcli download {name.removesuffix('@main')}"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("missing", WHOLE)
def test_a_model_that_is_not_whole_is_not_found(missing):
    put("org/name", [name for name in WHOLE if name != missing])
    with pytest.raises(
        NotFoundError, match=rf"not whole here: {missing}.*llmcli download org/name"
    ):
        hub.resolve("org/name")
    assert [model.state for model in cache.local_models()] == [
        "tokenizer only" if missing == "model.safetensors" else "partial"
    ]
    assert "org/name" not in hub.known_names()


def test_weights_that_end_too_soon_are_listed_as_damaged():
    weights = put("org/name") / "model.safetensors"
    assert [model.state for model in cache.local_models()] == ["whole"]
    os.truncate(weights, 9)
    assert [model.state for model in cache.local_models()] == ["damaged"]
    assert "org/name" not in hub.known_names()


def test_a_download_that_brought_no_byte_is_not_listed():
    blobs = cache.repo_folder("org/name") / "blobs"
    blobs.mkdir(parents=True)
    incomplete = blobs / f"{COMMIT}.incomplete"
    incomplete.touch()
    assert list(cache.local_models()) == []
    incomplete.write_text("x")
    assert [model.state for model in cache.local_models()] == ["partial"]


def test_a_tokenizer_alone_is_enough_to_tokenize():
    snapshot = put("org/name", ["tokenizer.json"])
    assert hub.resolve("org/name", tokenizer_only=True) == snapshot
    with pytest.raises(NotFoundError):
        hub.resolve("org/name")


def test_vocab_and_merges_are_a_tokenizer_too():
    put("org/name", ["config.json", "vocab.json", "merges.txt", "model.safetensors"])
    hub.resolve("org/name")


def test_every_shard_that_the_index_names_must_be_there():
    snapshot = put("org/name", ["config.json", "tokenizer.json", "a.safetensors"])
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(NotFoundError, match=r"b\.safetensors is missing"):
        hub.resolve("org/name")
    (snapshot / "b.safetensors").write_text("")
    assert hub.resolve("org/name") == snapshot


def test_a_broken_link_is_a_missing_file():
    snapshot = put("org/name")
    (snapshot / "model.safetensors").resolve().unlink()
    with pytest.raises(NotFoundError, match=r"model\.safetensors is missing"):
        hub.resolve("org/name")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(NotFoundError, match="Did you mean gpt2"):
        hub.resolve("gtp2")
    with pytest.raises(NotFoundError, match="There is no model called"):
        hub.resolve("../../no/where")


@pytest.mark.parametrize(
    "name",
    ["a/../b", "/etc/passwd", "a/b/c", "a\\b/c", "a b/c", "org/na\x1bme", "org/", "/x", "org/x.git",
     "org/a--b", "org/..", "org/-x", "é/x", "a" * 96 + "/b", "org/x\n", "", "x\0y/z"],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_no_hub_id(name):
    assert parse(name) is None


@pytest.mark.parametrize(
    "revision", ["../x", "a/../b", "/x", "x/", "x y", "x;y", "$x", "-x", "x\x1b", "", "a//b", "x\n"]
)
def test_a_revision_that_could_lead_elsewhere_is_a_usage_error(revision):
    with pytest.raises(UsageError):
        parse("org/name", revision)


def test_the_option_has_precedence_over_the_name():
    assert parse("gpt2@a", "b") == HubName("openai-community/gpt2", "b", "gpt2")
    assert str(parse("gpt2@a")) == "gpt2@a"
    assert str(parse("org/x", "main")) == "org/x"


def test_refs_that_hold_no_commit_lead_nowhere():
    put("org/name")
    (cache.repo_folder("org/name") / "refs" / "main").write_text("../../../../etc")
    with pytest.raises(NotFoundError):
        hub.resolve("org/name")


def test_completion_offers_what_is_here_and_the_short_names():
    put("org/name")
    put("org/other", WHOLE, OTHER, "v1")
    put("org/part", ["config.json"])
    expected = ["fable", *KNOWN, "org/name", f"org/other@{OTHER[:12]}"]
    assert hub.known_names() == expected


@pytest.fixture
def locked(monkeypatch):
    """A cache that may not be read, root or not."""

    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr("llmcli.hub.cache.os.listdir", refuse)


@pytest.mark.parametrize(
    "arguments",
    [["download", "--list"], ["download", "--verify", "gpt2"], ["generate", "Once", "-m", "gpt2"]],
    ids=" ".join,
)
def test_a_cache_that_may_not_be_read_is_not_an_empty_one(arguments, locked, llmcli):
    done = llmcli(*arguments)
    assert done.exit_code == 3
    assert "cannot be used: Permission denied" in done.stderr


def test_what_is_only_proposed_does_without_a_cache_that_may_not_be_read(locked):
    assert hub.known_names() == ["fable", *KNOWN]
    with pytest.raises(NotFoundError, match="Did you mean fable"):
        hub.resolve("fabel")


def test_a_folder_that_may_not_be_looked_at_is_not_absent(monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(PermissionError):
        hub.resolve("priv/m")


def test_names_are_resolved_without_a_heavy_import():
    code = (
        "import sys; from llmcli import hub; hub.resolve('fable'); hub.known_names();"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "huggingface_hub", "httpx2", "rich", "numpy", "tiktoken"}
    assert not heavy & set(run.stdout.split())
