"""Which files a download brings, which it refuses, and how it lives with others in one cache."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
from hub_models import byte_tokenizer, tiny_model
from hub_server import HubServer, assert_whole, fetch, in_process, server

from llmcli import hub
from llmcli.errors import IntegrityError, NotFoundError, UnsupportedModelError
from llmcli.hub import cache

__all__ = ["server"]  # the fixture

FILES = tiny_model()
NEEDED = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
WEIGHTS = "model.safetensors"


@pytest.fixture
def commit(server: HubServer) -> str:
    return server.put("org/tiny", FILES)


# --- what is fetched -----------------------------------------------------------------------------


def test_a_sharded_model_brings_what_its_index_names(server):
    files = tiny_model(n_shards=3)
    stray = {"model-00004-of-00009.safetensors": b"stray", "other.safetensors": b"stray"}
    server.put("org/sharded", files | stray)
    folder = fetch("org/sharded").folder
    assert_whole(folder, files)
    shards = [name for name in files if name.endswith(".safetensors")]
    index = "model.safetensors.index.json"
    assert {path.name for path in folder.iterdir()} == {*NEEDED, index, *shards}
    assert hub.resolve("org/sharded") == folder


def test_an_index_that_names_an_absent_shard_is_damage(server):
    files = tiny_model(n_shards=2)
    del files["model-00002-of-00002.safetensors"]
    server.put("org/sharded", files)
    with pytest.raises(IntegrityError, match=r"names model-00002-of-00002.safetensors, which is"):
        fetch("org/sharded")
    assert not [path for path in server.paths() if "00001" in path]


def test_vocab_merges_and_chat_templates_come_along(server):
    more = {"vocab.json": b"{}", "merges.txt": b"", "chat_template.jinja": b"{{ x }}"}
    server.put("org/tiny", FILES | more)
    assert_whole(folder := fetch("org/tiny").folder, FILES | more)
    assert {path.name for path in folder.iterdir()} == {*NEEDED, WEIGHTS, *more}


@pytest.mark.parametrize(
    "left", ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "x.gguf"]
)
def test_a_repository_without_safetensors_is_refused_and_nothing_is_fetched(server, left):
    kinds = (".safetensors", ".bin", ".h5", ".msgpack")
    files = {n: d for n, d in FILES.items() if not n.endswith(kinds)} | {left: b"\x80pickle"}
    server.put("org/pickle", files)
    with pytest.raises(UnsupportedModelError, match=f"no safetensors weights, only {left}"):
        fetch("org/pickle")
    assert len(server.seen) == 1


def test_an_unsupported_architecture_is_told_from_the_config_alone(llmcli, server):
    server.put("org/bert", FILES | {"config.json": b'{"model_type": "bert"}'})
    run = llmcli("download", "org/bert")
    assert run.exit_code == 6
    assert "'bert' is not supported" in run.stderr
    assert "Supported: " in run.stderr
    assert "gpt2" in run.stderr
    assert [path.rpartition("/")[2] for path in server.paths()] == ["main", "config.json"]
    with pytest.raises(NotFoundError):
        hub.resolve("org/bert")


def test_an_unsupported_tokenizer_is_told_before_the_weights(server):
    unigram = json.loads(byte_tokenizer()) | {"model": {"type": "Unigram", "vocab": []}}
    server.put("org/spm", FILES | {"tokenizer.json": json.dumps(unigram).encode()})
    with pytest.raises(UnsupportedModelError, match="Unigram") as caught:
        fetch("org/spm")
    assert "org/spm: tokenizer.json" in str(caught.value)
    assert not [path for path in server.paths() if WEIGHTS in path]
    server.put("org/none", {n: d for n, d in FILES.items() if "tokenizer" not in n})
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        fetch("org/none")


def test_a_tokenizer_of_another_model_is_told_before_the_weights(llmcli, server):
    other = json.loads(FILES["config.json"]) | {"vocab_size": 256}
    server.put("org/mixed", FILES | {"config.json": json.dumps(other).encode()})
    with pytest.raises(IntegrityError, match="In org/mixed the tokenizer has ids up to 256, the"):
        fetch("org/mixed")
    assert not [path for path in server.paths() if WEIGHTS in path]
    fetch("org/mixed", tokenizer_only=True)
    assert llmcli("tokenize", "-m", "org/mixed", "a").stdout == "97\n"


def test_weights_that_are_not_those_of_the_config_are_not_shown(server):
    other = json.loads(FILES["config.json"]) | {"n_layer": 3}
    server.put("org/mixed", FILES | {"config.json": json.dumps(other).encode()})
    with pytest.raises(IntegrityError, match=r"weights in org/mixed do not fit .* missing h\.2\."):
        fetch("org/mixed")
    with pytest.raises(NotFoundError):
        hub.resolve("org/mixed")


def test_weights_whose_header_lies_are_not_shown(server):
    damaged = (99).to_bytes(
        8, "little"
    ) + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    server.put("org/damaged", FILES | {WEIGHTS: damaged})
    with pytest.raises(IntegrityError, match=r"org/damaged: model\.safetensors is damaged"):
        fetch("org/damaged")
    with pytest.raises(NotFoundError):
        hub.resolve("org/damaged")


def test_the_tokenizer_alone_tokenizes_and_does_not_generate(llmcli, server, commit):
    run = llmcli("download", "org/tiny", "--tokenizer-only")
    assert run.exit_code == 0, run.output
    assert not [path for path in server.paths() if WEIGHTS in path]
    assert llmcli("tokenize", "-m", "org/tiny", "a").stdout == "97\n"
    run = llmcli("generate", "-m", "org/tiny", "a")
    assert run.exit_code == 3
    assert "model.safetensors is missing" in run.stderr
    assert "llmcli download org/tiny" in run.stderr
    assert "tokenizer only" in llmcli("download", "--list").stdout
    server.seen.clear()
    assert llmcli("download", "org/tiny", "--revision", commit, "--tokenizer-only").exit_code == 0
    assert server.seen == []
    assert_whole(fetch("org/tiny", revision=commit).folder, FILES)
    assert [path.rpartition("/")[2] for path in server.paths()][1:] == [
        "generation_config.json", WEIGHTS, WEIGHTS
    ]  # fmt: skip


def test_branches_tags_and_commits(llmcli, server):
    old = server.put("org/tiny", tiny_model(seed=5), "v1", "refs/pr/1")
    new = server.put("org/tiny", FILES)
    for revision, expected in (("v1", old), ("refs/pr/1", old), ("main", new), (old, old)):
        run = llmcli("download", "org/tiny", "--revision", revision)
        assert run.stdout.strip().endswith(expected)
        assert hub.resolve(f"org/tiny@{revision}").name == expected
    assert llmcli("download", "org/tiny@v1").stdout.strip().endswith(old)
    run = llmcli("download", "org/tiny@v2")
    assert run.exit_code == 3
    assert "org/tiny has no revision 'v2' (HTTP 404)." in run.stderr


def test_short_names_are_fetched_from_their_org(llmcli, server):
    server.put("openai-community/gpt2", FILES)
    run = llmcli("download", "gpt2")
    assert "models--openai-community--gpt2" in run.stdout
    assert llmcli("tokenize", "-m", "gpt2", "a").stdout == "97\n"


def test_what_the_hub_hides_from_strangers_gets_the_nearest_names_too(llmcli, server):
    """Without a token, the hub answers 401 for what is private and for what is not there."""
    server.fail("/api/", "status", status=401, headers={"X-Error-Code": "RepoNotFound"})
    run = llmcli("download", "openai-comunity/gpt2")
    assert run.exit_code == 4
    assert "Did you mean openai-community/gpt2" in run.stderr
    assert "HF_TOKEN" in run.stderr


def test_a_gated_model_is_named_rightly_and_its_page_is_the_endpoints(llmcli, server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url.replace('//', '//user:ThePassword@')}/api/")
    monkeypatch.delenv("HF_TOKEN")
    server.fail("/api/", "status", status=401, headers={"X-Error-Code": "GatedRepo"})
    run = llmcli("download", "openai-comunity/gpt2")
    assert run.exit_code == 4
    assert "Did you mean" not in run.stderr
    assert f"Ask for access at {server.url}/api/openai-comunity/gpt2, then" in run.stderr


def test_unknown_names_get_the_nearest(llmcli, server):
    run = llmcli("download", "openai-comunity/gpt2")
    assert run.exit_code == 3
    assert "openai-community/gpt2" in run.stderr
    assert "HTTP 404" in run.stderr
    run = llmcli("download", "gtp2")
    assert run.exit_code == 3
    assert "Did you mean gpt2" in run.stderr


def test_the_embedded_model_is_here_already(llmcli, server):
    assert llmcli("download", "fable").stdout == f"{hub.EMBEDDED['fable']}\n"
    assert llmcli("download", "--remove", "fable").exit_code == 2
    assert server.seen == []


def test_a_proxy_is_honoured(server, commit, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    monkeypatch.setenv("http_proxy", server.url)
    run = in_process("download", "org/tiny", "--tokenizer-only")
    assert run.returncode == 0, run.stderr
    assert {seen.path.partition("/api")[0] for seen in server.seen[:1]} == {"http://hub.example"}


# --- other programs in the same cache ------------------------------------------------------------


@pytest.fixture
def client(server, monkeypatch):
    """huggingface_hub's own download, against this server."""
    import huggingface_hub

    def download(repo: str, **options):
        options = {"cache_dir": cache.cache_dir(), "endpoint": server.url, **options}
        return Path(huggingface_hub.snapshot_download(repo, **options))

    return download


def test_what_other_programs_downloaded_is_found(server, commit, client):
    folder = client("org/tiny")
    assert hub.resolve("org/tiny") == folder
    server.seen.clear()
    assert fetch("org/tiny").folder == folder
    assert server.paths() == ["GET /api/models/org/tiny/revision/main"]


def test_what_we_downloaded_is_found_by_other_programs(server, commit, client):
    folder = fetch("org/tiny").folder
    server.seen.clear()
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache("org/tiny", WEIGHTS, cache.cache_dir())
    assert Path(found) == folder / WEIGHTS
    assert client("org/tiny", local_files_only=True) == folder
    assert server.seen == []
    info = huggingface_hub.scan_cache_dir(cache.cache_dir())
    assert not info.warnings
    assert [repo.repo_id for repo in info.repos] == ["org/tiny"]


def test_a_wrong_byte_that_another_program_took_is_found_and_mended(server, commit, client):
    server.fail("/cdn/", "wrong byte", 9)
    folder = client("org/tiny", allow_patterns=[*NEEDED, WEIGHTS])
    assert (folder / WEIGHTS).read_bytes() != FILES[WEIGHTS], "the client has learnt to hash"
    server.faults.clear()
    assert_whole(fetch("org/tiny").folder, FILES)


def test_two_processes_on_one_model_fetch_it_once(server, commit):
    server.rate = 200_000
    runs = [None, None]

    def run(i: int) -> None:
        runs[i] = in_process("download", "org/tiny")

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.returncode for run in runs] == [0, 0], [run.stderr for run in runs]
    assert_whole(Path(runs[0].stdout.strip()), FILES)
    assert runs[0].stdout == runs[1].stdout
    assert len([path for path in server.paths() if "/cdn/" in path]) == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(llmcli, server, commit, monkeypatch):
    fetch("org/tiny")

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", "/the/cache")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert llmcli("download", "org/tiny").exit_code == 0, "all is here: nothing need be written"
    server.put("org/tiny", tiny_model(seed=7))
    run = llmcli("download", "org/tiny")
    assert run.exit_code == 3
    assert "/the/cache cannot be written (Read-only file system)." in run.stderr
