"""Known errors: each is a fact, a remedy and an exit code; `cli.main` prints them as sentences."""

from __future__ import annotations

import errno


class LLMCLIError(Exception):
    """A failure that the user can understand: `fact` says what is, `remedy` what to do next."""

    exit_code = 1

    def __init__(self, fact: str, remedy: str = "") -> None:
        super().__init__(f"{fact} {remedy}".rstrip())
        self.fact = fact
        self.remedy = remedy


class UsageError(LLMCLIError):
    """Options out of range, a prompt that is too long, text that is not UTF-8."""

    exit_code = 2


class NotFoundError(LLMCLIError):
    """A model or file that is not there, cannot be read, or is not downloaded yet."""

    exit_code = 3


class NetworkError(LLMCLIError):
    """The network, or authentication."""

    exit_code = 4


class IntegrityError(LLMCLIError):
    """A damaged file, a wrong hash, weights that give NaN, a check of our own that fails."""

    exit_code = 5


class UnsupportedModelError(LLMCLIError):
    """An architecture, tokenizer, dtype or file format that llmcli does not handle."""

    exit_code = 6


class ResourceError(LLMCLIError):
    """Not enough memory or disk; the fact holds both what is needed and what is available."""

    exit_code = 7


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk without room, or a quota, says


def shown(text: str, limit: int = 80) -> str:
    r"""`text` on one line of `limit` characters, what a terminal would obey escaped: "\x1b"."""
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def shown_path(path: object) -> str:
    """A path, whole, as the reader needs it, but harmless."""
    return shown(str(path), 4096)
