"""What llmcli takes from huggingface_hub: imported here, as its import reads the environment.

Raises UsageError on import where a variable makes no sense to the library.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llmcli import __version__
from llmcli.errors import NetworkError, NotFoundError, UsageError, shown, shown_path

try:
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import HfHubHTTPError, WeakFileLock, build_hf_headers
except ValueError as error:
    raise UsageError(
        f"huggingface_hub cannot read its settings: {shown(str(error))}.",
        "Check the variables whose names begin with HF_.",
    ) from error

__all__ = ["WeakFileLock", "headers", "httpx", "session"]

# httpx, or httpx2 since huggingface_hub 2.0: whichever the library's own error comes from.
httpx: Any = import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


def session() -> Any:
    """The library's session: its proxies and certificates are those of the environment.

    Raises NetworkError where there are none such. What is wrong with a proxy's address is not
    repeated, as it may hold a password.
    """
    try:
        return get_session()
    except ImportError as error:
        raise NetworkError(
            "The proxy is a SOCKS proxy, and the package that speaks with one is not here.",
            "Get it with pip install socksio, or unset ALL_PROXY.",
        ) from error
    except OSError as error:
        raise NetworkError(
            "The certificates that the environment names cannot be read.",
            "Check SSL_CERT_FILE and SSL_CERT_DIR.",
        ) from error
    except (ValueError, httpx.InvalidURL):
        raise NetworkError(
            "The proxy that the environment names has no address that makes sense.",
            "Check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY.",
        ) from None


def headers() -> dict[str, str]:
    """What each request says of us, with the user's token if any.

    Raises NotFoundError where the token's file cannot be read.
    """
    # Else the library asks /api/agent-harnesses what to call us, before each first request.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        return build_hf_headers(library_name="llmcli", library_version=__version__)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no text"
        raise NotFoundError(
            f"The token in {shown_path(constants.HF_TOKEN_PATH)} cannot be read: {why}.",
            "Check HF_TOKEN_PATH and HF_HOME, or set HF_TOKEN.",
        ) from None
