"""What models are called: ours, short names, and the hub's `org/name[@revision]`. No file is read.

Every name that passes here is safe as a part of a path, a URL and a shell command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from llmcli.errors import UsageError, shown

EMBEDDED = {"fable": Path(__file__).parents[1] / "models" / "fable"}
DEFAULT_REVISION = "main"

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?!.*(?:--|\.\.))(?!.*\.git$){_PART}(?:/{_PART})?", re.ASCII)
_LABEL = r"[A-Za-z0-9_][A-Za-z0-9._+=-]*"
_REVISION = re.compile(rf"(?!.*\.\.){_LABEL}(?:/{_LABEL})*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with a short name, and what it takes in float32, as its checkpoint has it."""

    repo: str
    n_params: int
    n_layer: int
    n_embd: int
    license: str
    n_ctx: int = 1024

    @property
    def download_nbytes(self) -> int:
        """About: the parameters, the causal masks that these files still hold, the tokenizer."""
        return 4 * self.n_params + 4 * self.n_layer * self.n_ctx**2 + 3_000_000

    @property
    def memory_nbytes(self) -> int:
        """The parameters and a full KV cache, without what Python and torch take themselves."""
        return 4 * self.n_params + 2 * 4 * self.n_layer * self.n_ctx * self.n_embd


KNOWN = {
    "distilgpt2": KnownModel("distilbert/distilgpt2", 81_912_576, 6, 768, "Apache-2.0"),
    "gpt2": KnownModel("openai-community/gpt2", 124_439_808, 12, 768, "MIT"),
    "gpt2-medium": KnownModel("openai-community/gpt2-medium", 354_823_168, 24, 1024, "MIT"),
    "gpt2-large": KnownModel("openai-community/gpt2-large", 774_030_080, 36, 1280, "MIT"),
    "gpt2-xl": KnownModel("openai-community/gpt2-xl", 1_557_611_200, 48, 1600, "MIT"),
}


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the hub at a branch, tag or commit; `str()` is what the user types for it."""

    repo: str
    revision: str = DEFAULT_REVISION
    short: str = ""  # of KNOWN, where that is how it was called

    def __str__(self) -> str:
        name = self.short or self.repo
        return name if self.revision == DEFAULT_REVISION else f"{name}@{self.revision}"

    @property
    def full(self) -> str:
        """The name with its revision, `main` too."""
        return f"{self.short or self.repo}@{self.revision}"


def parse(name: str, revision: str | None = None, bare: bool = False) -> HubName | None:
    """The hub's model called `name`, or None where no such model can be: `bare`, without an org.

    A `revision` has precedence over `name@revision`. Raises UsageError where it can be none.
    """
    repo, at, given = name.partition("@")
    revision = revision if revision is not None else given if at else DEFAULT_REVISION
    if repo not in KNOWN and not (is_name(repo) if bare else is_repo(repo)):
        return None
    if not _REVISION.fullmatch(revision) or len(revision) > 200 or revision.endswith(".lock"):
        raise UsageError(f"{shown(revision)!r} can be no branch, tag or commit of a model.")
    return HubName(KNOWN[repo].repo, revision, repo) if repo in KNOWN else HubName(repo, revision)


def is_repo(repo: str) -> bool:
    """Whether the hub could have a model of this name, `org/name`."""
    return "/" in repo and is_name(repo)


def is_name(repo: str) -> bool:
    """Whether the cache could hold a model of this name; the oldest ones have no org."""
    return len(repo) <= 96 and bool(_REPO.fullmatch(repo))


def is_commit(text: str) -> bool:
    return bool(_COMMIT.fullmatch(text))


def nearest(name: str, others: list[str]) -> list[str]:
    """At most three known names that `name` could have been meant to be."""
    known = [*EMBEDDED, *KNOWN, *(model.repo for model in KNOWN.values()), *others]
    return get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.6)
