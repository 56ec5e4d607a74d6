"""Strict JSON: what is infinite or not a number becomes null, and a line is one to all readers."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# What splitlines() and JavaScript take for a line's end, or a terminal for a command, and JSON
# leaves as it is.
RAW = re.compile("[\x7f-\x9f\u2028\u2029]")


def strict(value: Any) -> str:
    """`value` as one line of JSON, UTF-8, lone surrogates and non-finite numbers replaced."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return one_line(text.encode("utf-8", "replace").decode())


def one_line(json: str) -> str:
    """`json` with an escape for each character that someone could take for more than itself."""
    return RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", json)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
