"""Strict JSON: what is infinite or not a number becomes null, and a line is one to all readers."""

from __future__ import annotations

import json
import math
from typing import Any

# What splitlines() and JavaScript take for a line's end, and JSON leaves as it is.
LINE_ENDS = {end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def strict(value: Any) -> str:
    """`value` as one line of JSON, UTF-8, lone surrogates and non-finite numbers replaced."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return one_line(text.encode("utf-8", "replace").decode())


def one_line(json: str) -> str:
    """`json` with an escape for each character that someone could take for the line's end."""
    for end, escaped in LINE_ENDS.items():
        json = json.replace(end, escaped)
    return json


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
