"""Repositories, servers and caches that mean harm: nothing is written outside of the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_models import git_hash, tiny_model
from hub_server import HubServer, Told, assert_whole, fetch, server

from llmcli import hub
from llmcli.errors import IntegrityError, LLMCLIError, NotFoundError, UsageError
from llmcli.hub import cache, upkeep
from llmcli.hub.cache import is_plain
from llmcli.hub.download import download
from llmcli.hub.names import parse
from llmcli.hub.transfer import Progress

__all__ = ["server"]  # the fixture

FILES = tiny_model()
EVIL = [
    "../../evil.safetensors", "/tmp/evil.safetensors", "..\\..\\evil.safetensors",
    "C:\\evil.safetensors", "sub/evil.safetensors", "evil\x1b[2J.safetensors", "a b.safetensors",
    "evil\n.safetensors", ".safetensors", "..", "", "con:.safetensors", "x" * 300 + ".safetensors",
    "\u202egpj.safetensors", "model.safetensors/", "evil.bin",
]  # fmt: skip


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path: Path, server: HubServer):
    """Whatever a test does, it leaves nothing in the world but the cache and `outside`."""
    yield
    world = {name for name in tree(tmp_path) if not name.startswith(("home", "outside"))}
    assert world == set()
    assert not Path("/tmp/evil.safetensors").exists()


@pytest.mark.parametrize("name", EVIL)
def test_a_shard_with_an_evil_name_is_refused(server: HubServer, name: str):
    files = tiny_model(n_shards=2)
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["wte.weight"] = name
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    server.put("org/evil", files | {name or "empty": b"evil"})
    with pytest.raises(IntegrityError, match=r"org/evil: .*does not name safetensors files"):
        fetch("org/evil")
    with pytest.raises(NotFoundError):
        hub.resolve("org/evil")
    assert not is_plain(name)


@pytest.mark.parametrize("index", [b"[]", b"{", b'{"weight_map": 7}', b'{"weight_map": {}}', b""])
def test_an_index_that_is_none_is_refused(server: HubServer, index: bytes):
    files = tiny_model(n_shards=2) | {"model.safetensors.index.json": index}
    server.put("org/evil", files)
    with pytest.raises(IntegrityError):
        fetch("org/evil")


def test_evil_names_beside_the_model_are_never_fetched(server: HubServer):
    server.put("org/tiny", FILES | {name or "empty": b"evil" for name in EVIL})
    assert_whole(fetch("org/tiny").folder, FILES)
    assert not [path for path in server.paths() if "evil" in path]


@pytest.mark.parametrize(
    "lie",
    [
        {"sha": "../../../../outside"}, {"sha": None}, {"sha": "A" * 40}, {"sha": "main"},
        {"siblings": None}, {"siblings": {}}, {"sha": ["a"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_commit_that_is_none_never_becomes_a_path(server: HubServer, lie: dict):
    server.put("org/tiny", FILES)
    server.edit = lambda info: info.update(lie)
    with pytest.raises(IntegrityError):
        fetch("org/tiny")


@pytest.mark.parametrize(
    "lie",
    [
        {"blobId": "../../../outside"}, {"blobId": None}, {"blobId": 7}, {"size": -1},
        {"size": "1"}, {"size": None}, {"size": True}, {"blobId": "\x1b[2J"}, {"blobId": ""},
        {"lfs": {"sha256": "../../../../outside", "size": 9}}, {"lfs": {"size": 9}},
        {"lfs": {"sha256": "a" * 64}}, {"lfs": {"sha256": None, "size": None}}, {"size": 1 << 62},
    ],
    ids=str,
)  # fmt: skip
def test_a_hash_that_is_none_never_becomes_a_path(server: HubServer, lie: dict):
    server.put("org/tiny", FILES)
    server.edit = lambda info: info["siblings"][0].update(lie)  # that of config.json
    with pytest.raises(IntegrityError, match=r"no size or no hash for config\.json"):
        fetch("org/tiny")


@pytest.mark.parametrize("sibling", [None, 7, "config.json", {"rfilename": 7}, {}, []])
def test_a_file_that_is_none_is_passed_over(server: HubServer, sibling):
    server.put("org/tiny", FILES)
    server.edit = lambda info: info["siblings"].append(sibling)
    assert_whole(fetch("org/tiny").folder, FILES)


def test_a_link_in_the_repository_is_a_file_of_text_here(server: HubServer):
    """Git keeps a link as a file that holds its target; written as a file, it leads nowhere."""
    server.put("org/tiny", FILES | {"chat_template.jinja": b"/etc/passwd"})
    path = fetch("org/tiny").folder / "chat_template.jinja"
    assert path.resolve().is_relative_to(cache.cache_dir().resolve())
    assert path.read_bytes() == b"/etc/passwd"


@pytest.mark.parametrize("part", ["blobs", "snapshots", "refs", ".llmcli"])
def test_a_folder_that_leads_out_of_the_cache_is_refused(server, tmp_path, part):
    server.put("org/tiny", FILES)
    (outside := tmp_path / "outside").mkdir()
    folder = cache.repo_folder("org/tiny")
    folder.mkdir(parents=True)
    (folder / part).symlink_to(outside)
    with pytest.raises(IntegrityError, match="leads out of the cache"):
        fetch("org/tiny")
    assert tree(outside) == set()


def test_a_snapshot_that_leads_out_of_the_cache_is_refused(server, tmp_path):
    commit = server.put("org/tiny", FILES)
    (outside := tmp_path / "outside").mkdir()
    folder = cache.repo_folder("org/tiny") / "snapshots"
    folder.mkdir(parents=True)
    (folder / commit).symlink_to(outside)
    with pytest.raises(IntegrityError, match="leads out of the cache"):
        fetch("org/tiny")
    assert tree(outside) == set()


def test_links_planted_where_files_come_are_replaced_not_followed(server, tmp_path):
    commit = server.put("org/tiny", FILES)
    (outside := tmp_path / "outside").mkdir()
    (victim := outside / "victim").write_text("precious")
    folder = cache.repo_folder("org/tiny")
    hash = git_hash(FILES["config.json"])
    for name in (f"blobs/{hash}.incomplete", "refs/main", f"snapshots/{commit}/config.json",
                 f".llmcli/{commit}.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(victim)
    assert_whole(fetch("org/tiny").folder, FILES)
    assert victim.read_text() == "precious"
    assert hub.resolve("org/tiny").name == commit


def test_a_whole_model_folder_may_lie_on_another_disk(server, tmp_path):
    server.put("org/tiny", FILES)
    (outside := tmp_path / "outside").mkdir()
    folder = cache.repo_folder("org/tiny")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(outside)
    assert_whole(fetch("org/tiny").folder, FILES)


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"part": false, "files": {}}', b'{"part": false, "files": 7}',
     b'{"part": 0, "files": {"x": 1}}',
     b'{"part": 0, "files": {"../../../../outside/x": [1, "y", 2]}}', b"[" * 100_000,
     b'{"part": 0, "files": {"config.json": [1e999, "x", 0]}}',
     b'{"part": 0, "files": {"a\\u0000b": [1, "x", 0]}}'],
)  # fmt: skip
def test_a_manifest_that_others_wrote_is_not_trusted(server, manifest):
    commit = server.put("org/tiny", FILES)
    folder = fetch("org/tiny").folder
    (cache.repo_folder("org/tiny") / ".llmcli" / f"{commit}.json").write_bytes(manifest)
    (folder / "model.safetensors").resolve().write_bytes(b"evil")
    (folder / "tokenizer.json").unlink()
    assert_whole(fetch("org/tiny", revision=commit).folder, FILES)


@pytest.mark.parametrize("when", ["config.json", "tokenizer.json", "model.safetensors"])
def test_nobody_removes_a_model_while_it_comes(server, when):
    server.put("org/tiny", FILES)
    name, refused = parse("org/tiny"), []

    class Removing(Progress):
        def done(self, file, nbytes, fetched):
            if file == when:
                with pytest.raises(UsageError, match="is being downloaded"):
                    upkeep.remove(name, *upkeep.places(name, whole=True))
                refused.append(file)

    assert_whole(download(name, lambda folder, new: None, Removing()).folder, FILES)
    assert refused == [when]
    assert upkeep.remove(name, *upkeep.places(name, whole=True)) > 0
    assert not list(cache.cache_dir().rglob("*.lock"))


def test_a_file_in_the_way_is_one_sentence(server):
    server.put("org/tiny", FILES)
    cache.cache_dir().mkdir(parents=True)
    cache.repo_folder("org/tiny").write_text("a file")
    with pytest.raises(LLMCLIError):
        fetch("org/tiny")


def test_control_characters_of_a_server_reach_no_terminal(llmcli, server):
    server.put("org/tiny", FILES | {"config.json": b'{"model_type": "\\u001b[2J\\u202e"}'})
    server.fail("/api/", "status", status=503, headers={"X-Error-Message": "\x1b[2J"})
    run = llmcli("download", "org/tiny", "-q")
    assert run.exit_code == 6
    assert not {"\x1b", "\u202e"} & set(run.stderr)


def test_an_answer_without_end_is_cut_off(server, monkeypatch):
    server.put("org/tiny", FILES)
    server.fail("/api/", "status", 9, status=200, body=b"[" * (65 << 20))
    told = Told()
    with pytest.raises(LLMCLIError) as caught:
        fetch("org/tiny", told)
    assert caught.value.exit_code == 4


def test_a_cache_of_others_with_strange_things_in_it_is_listed(llmcli, server):
    fetch_from = server.put("org/tiny", FILES)
    fetch("org/tiny")
    hub_folder = cache.cache_dir()
    for name in ("datasets--a--b", "models--", "models--a--b--c", "version.txt", ".locks/x",
                 "models--x--y/snapshots/not-a-commit", "models--ev\x1bil--z/blobs/x",
                 f"models--x--z/snapshots/{'c' * 40}/sub/deep"):  # fmt: skip
        (hub_folder / name).mkdir(parents=True)
    run = llmcli("download", "--list")
    assert run.exit_code == 0, run.output
    assert fetch_from in run.stdout
    assert "\x1b" not in run.stdout
    hub.known_names()
