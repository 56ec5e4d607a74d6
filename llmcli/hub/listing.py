"""What the hub has of a model, and which of it is needed: the rest is never fetched.

Names are chosen from a closed list, and hashes are checked for being hashes, so that nothing which
a repository says can become a path of its own choosing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from llmcli.errors import IntegrityError, LLMCLIError, NetworkError, UnsupportedModelError, shown
from llmcli.hub.cache import INDEX, TOKENIZERS, WEIGHTS, Manifest, is_plain, repos
from llmcli.hub.http import Attempts, Hub
from llmcli.hub.names import HubName, is_commit, nearest

CONFIG = "config.json"
_TEXT = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "encoder.json", "vocab.bpe", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_NOT_TOKENIZER = {"generation_config.json", "chat_template.jinja", "chat_template.json"}
# What is left where weights are of a kind that is never loaded: it can run code, or we cannot.
_OTHER_WEIGHTS = re.compile(r".*\.(bin|pt|pth|pkl|ckpt|h5|msgpack|onnx|gguf|ot|safetensors)")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_TEXT_NBYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub states it: `hash` is SHA-256 (64 letters), or git's blob hash (40)."""

    name: str
    nbytes: int
    hash: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A commit's files that could be needed, by name."""

    name: HubName
    commit: str
    files: dict[str, RemoteFile]

    def text_files(self, tokenizer_only: bool) -> list[RemoteFile]:
        """The small files, config.json first. Raises UnsupportedModelError without a tokenizer."""
        if not any(set(files) <= self.files.keys() for files in TOKENIZERS):
            raise UnsupportedModelError(
                f"{self.name.repo} has no tokenizer.json, and no vocab.json with merges.txt.",
                "Choose a model with a byte-level BPE tokenizer, such as gpt2.",
            )
        if CONFIG not in self.files and not tokenizer_only:
            raise UnsupportedModelError(
                f"{self.name.repo} has no config.json.", "Choose a transformers model."
            )
        left_out = _NOT_TOKENIZER if tokenizer_only else set()
        names = [CONFIG, *(name for name in _TEXT if name not in left_out)]
        return [self.files[name] for name in names if name in self.files]

    def weight_names(self) -> list[str]:
        """The one file of the weights, or the index that names them all.

        Raises UnsupportedModelError where there are no safetensors.
        """
        for name in (WEIGHTS, INDEX):
            if name in self.files:
                return [name]
        others = sorted(name for name in self.files if _OTHER_WEIGHTS.fullmatch(name))
        only = f", only {shown(others[0])}" if others else ""
        raise UnsupportedModelError(
            f"{self.name.repo} has no safetensors weights{only}; pickle is never loaded, as it can "
            "run code.",
            "Choose another model, or a --revision that has model.safetensors.",
        )

    def shards(self, names: list[str]) -> list[RemoteFile]:
        """The files that the index names. Raises IntegrityError where the repository lacks one."""
        for name in names:
            if name not in self.files:
                raise IntegrityError(
                    f"{self.name.repo}: {INDEX} names {shown(name)}, which is not there.",
                    "Choose another revision.",
                )
        return [self.files[name] for name in names]


def ask(hub: Hub, name: HubName, say: Callable[[str], None]) -> Listing:
    """The files of `name` today, from one request."""
    path = f"/api/models/{name.repo}/revision/{quote(name.revision, safe='')}"

    def attempt() -> Any:
        with hub.get(path, blobs="true") as response:
            if response.status_code == 200:
                return _json(response, hub)
            error = hub.refusal(response, name.repo, name.revision, f"model {name.repo}")
            code = response.headers.get("X-Error-Code")
            unknown = code not in ("RevisionNotFound", "GatedRepo")
            if isinstance(error, LLMCLIError) and response.status_code in (401, 404) and unknown:
                error.remedy = f"{_did_you_mean(name)} {error.remedy}".strip()
            raise error

    return _listing(name, Attempts(name.repo, hub.patience, say).until(attempt))


def _did_you_mean(name: HubName) -> str:
    """The known names nearest to one that the hub does not know, as a question."""
    near = nearest(name.short or name.repo, repos())
    near = [other for other in near if other not in (name.repo, name.short)]
    return f"Did you mean {' or '.join(near)}?" if near else ""


def known(name: HubName, manifest: Manifest) -> Listing:
    """The listing of a commit that was verified before: no request is needed."""
    files = {k: RemoteFile(k, nbytes, hash) for k, (nbytes, hash, _) in manifest.files.items()}
    return Listing(name, name.revision, files)


def _json(response: Any, hub: Hub) -> Any:
    data = bytearray()
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) > 64 << 20:
            break
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise NetworkError(
            f"{hub.host} does not answer as a Hugging Face hub does.",
            "Check HF_ENDPOINT, and whether this network wants a login.",
        ) from None


def _listing(name: HubName, raw: Any) -> Listing:
    """The model info that a stranger sent, checked. Raises IntegrityError naming what is wrong."""
    commit = raw.get("sha") if isinstance(raw, dict) else None
    siblings = raw.get("siblings") if isinstance(raw, dict) else None
    if not isinstance(commit, str) or not is_commit(commit) or not isinstance(siblings, list):
        raise IntegrityError(f"{name.repo}: the hub's answer states no commit, or no files.")
    files = {}
    for sibling in siblings:
        file = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if isinstance(file, str) and _is_of_interest(file):
            files[file] = _remote_file(name, file, sibling)
    return Listing(name, commit, files)


def _is_of_interest(file: str) -> bool:
    listed = file == CONFIG or file in _TEXT or file in (WEIGHTS, INDEX)
    return listed or is_plain(file) or ("/" not in file and bool(_OTHER_WEIGHTS.fullmatch(file)))


def _remote_file(name: HubName, file: str, sibling: dict[str, Any]) -> RemoteFile:
    lfs = sibling.get("lfs")
    stated = lfs if isinstance(lfs, dict) else sibling
    nbytes, hash = stated.get("size"), stated.get("sha256" if stated is lfs else "blobId")
    if type(nbytes) is not int or nbytes < 0 or not isinstance(hash, str):
        nbytes, hash = -1, ""
    if not _HASH.fullmatch(hash) or (file in (CONFIG, *_TEXT) and nbytes > _MAX_TEXT_NBYTES):
        raise IntegrityError(
            f"{name.repo}: the hub states no size or no hash for {shown(file)}, so it cannot be "
            "verified.",
            "If HF_ENDPOINT is a mirror, try the hub itself.",
        )
    return RemoteFile(file, nbytes, hash)
