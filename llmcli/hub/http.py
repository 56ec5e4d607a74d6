"""Requests to the hub: patient with what passes, one sentence for what does not.

The session is huggingface_hub's: its proxies, certificates and tokens. It follows redirects and
keeps the token from other hosts. No error from here holds a header or a URL's query.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from llmcli.errors import NetworkError, NotFoundError, UsageError, shown
from llmcli.hub.library import headers, httpx, session

T = TypeVar("T")
TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its switches
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_LIMIT = "RateLimit"  # '"api";r=0;t=55': nothing remains of the quota for 55 s
_RESET = re.compile(r";\s*t\s*=\s*(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what may yet come."""

    stall_s: float = 20.0  # without a byte
    retries: int = 5  # of one file
    backoff_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    longest_wait_s: float = 300.0  # that a server may ask for


class Hiccup(Exception):
    """What may be gone the next time; `wait_s` is how long the server wants to be left alone."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass
class Attempts:
    """One file's tries: at most `patience.retries` after the first, however often `until` runs."""

    what: str
    patience: Patience
    say: Callable[[str], None]
    used: int = 0

    def until(self, attempt: Callable[[], T]) -> T:
        """What `attempt()` returns, once it raises no Hiccup. Raises NetworkError at the end."""
        while True:
            try:
                return attempt()
            except Hiccup as hiccup:
                self._wait(hiccup)

    def _wait(self, hiccup: Hiccup) -> None:
        again = "Run the same command again: it goes on where it stopped."
        if self.used >= self.patience.retries:
            raise NetworkError(f"{self.what}: {hiccup}, also after {self.used} retries.", again)
        backoff_s = self.patience.backoff_s[min(self.used, len(self.patience.backoff_s) - 1)]
        wait_s = backoff_s if hiccup.wait_s is None else hiccup.wait_s
        if wait_s > self.patience.longest_wait_s:
            fact = f"{self.what}: {hiccup}, and wants to be asked again in {wait_s:.0f} s."
            raise NetworkError(fact, again)
        self.used += 1
        count = f"retry {self.used} of {self.patience.retries}"
        self.say(f"{self.what}: {hiccup}; {count} in {wait_s:.3g} s")
        time.sleep(wait_s)


class Hub:
    """The hub, or the mirror that HF_ENDPOINT names, asked with the user's token if any."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.host = _host(self.endpoint)
        self.reached = False  # it has answered once
        if is_offline():
            raise NetworkError(
                "HF_HUB_OFFLINE is set, and this needs the network.",
                "Unset it for the download.",
            )
        self.session = session()
        self.headers = headers()
        self.headers["Accept-Encoding"] = "identity"  # sizes and ranges are those of the file
        self.has_token = "authorization" in self.headers
        if not all(value.isascii() and value.isprintable() for value in self.headers.values()):
            raise NetworkError("The token holds a character that no token has.", "Check HF_TOKEN.")

    @contextmanager
    def get(self, path: str, offset: int = 0, **params: str) -> Iterator[Any]:
        """The open response to a GET of `path`, from byte `offset` on.

        Raises Hiccup for what may pass, NetworkError for what will not, here and while it is read.
        A status is the caller's to judge: see `refusal`.
        """
        headers = {**self.headers, "Range": f"bytes={offset}-"} if offset else self.headers
        request: dict[str, Any] = {"headers": headers, "timeout": self.patience.stall_s}
        try:
            url = f"{self.endpoint}{path}"
            request |= {"params": params or None, "follow_redirects": True}
            with self.session.stream("GET", url, **request) as response:
                self.reached = True
                yield response
        except (httpx.RequestError, httpx.InvalidURL, httpx.StreamError) as error:
            raise self._judged(error) from None  # its message may hold a URL that is signed

    def _judged(self, error: Exception) -> Exception:
        """What became of a request that has no answer, or not a whole one."""
        if isinstance(error, httpx.TimeoutException):
            return Hiccup(f"no byte for {self.patience.stall_s:g} s")
        causes = list(_causes(error))
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            return NetworkError(f"The certificate of {self.host} cannot be verified.")
        if isinstance(error, httpx.ProxyError):
            return NetworkError("The proxy refuses the connection.", "Check HTTPS_PROXY.")
        if isinstance(error, httpx.TooManyRedirects):
            return NetworkError(f"{self.host} redirects in a circle.")
        if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
            return NetworkError(f"{self.host} redirects to an address that is none.")
        if any(isinstance(cause, socket.gaierror) for cause in causes):
            if not self.reached:
                return NetworkError(
                    f"The host name {self.host} cannot be resolved.",
                    "Is there a network? Models that are here work without one.",
                )
            return Hiccup("a host name cannot be resolved")
        if isinstance(error, httpx.ConnectError):
            return Hiccup(f"no connection to {self.host}" if not self.reached else "no connection")
        return Hiccup("the connection was cut")

    def refusal(self, response: Any, repo: str, revision: str, what: str) -> Exception:
        """Why a response is not what was asked for, judged by its status."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if status in (408, 429) or status >= 500:
            return Hiccup(f"the server answers HTTP {status}", _retry_after(response))
        if status in (401, 403) and response.url.host != urlsplit(self.endpoint).hostname:
            # A storage host that a redirect led to; its links expire, and the next one is new.
            return Hiccup(f"the storage host answers HTTP {status}")
        if code == "RevisionNotFound":
            return NotFoundError(f"{repo} has no revision {shown(revision)!r} (HTTP {status}).")
        if code == "GatedRepo" or status == 403:
            endpoint = urlsplit(self.endpoint)
            page = f"{endpoint.scheme}://{self.host}{shown(endpoint.path)}/{repo}"
            return NetworkError(
                f"{repo} is gated, or not yours to read (HTTP {status}).",
                f"Ask for access at {page}, then set HF_TOKEN."
                if not self.has_token
                else f"Ask for access at {page} with the token's account.",
            )
        if status == 401:
            return NetworkError(
                f"{repo} is private, gated or not there: the hub wants to know who asks (HTTP 401)."
                if not self.has_token
                else f"The hub does not accept the token for {repo} (HTTP 401).",
                "Check the name, and set HF_TOKEN or log in with: hf auth login",
            )
        if status == 404:
            return NotFoundError(f"{self.host} has no {what} (HTTP 404).")
        return NetworkError(f"{self.host} answers HTTP {status} for {what}.")


def is_offline() -> bool:
    """Whether the user forbids the network, in the client library's words."""
    return any(os.environ.get(key, "").upper() in TRUE for key in OFFLINE)


def _host(endpoint: str) -> str:
    """The host alone, for messages: the rest of an endpoint may hold a password."""
    try:
        parts = urlsplit(endpoint)
        if parts.scheme in ("http", "https") and parts.hostname and not parts.query:
            return shown(parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}")
    except ValueError:
        pass
    raise UsageError("HF_ENDPOINT is not an address such as https://huggingface.co.")


def _retry_after(response: Any) -> float | None:
    """What Retry-After asks for, in seconds, or a date; else what the hub's own header says."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    if response.status_code == 429 and (reset := _RESET.search(response.headers.get(_LIMIT, ""))):
        return float(reset[1])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
