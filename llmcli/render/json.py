"""Strict JSON: what is infinite or not a number becomes null, whatever reads it."""

from __future__ import annotations

import json
import math
from typing import Any


def strict(value: Any) -> str:
    """`value` as one line of JSON, UTF-8, lone surrogates and non-finite numbers replaced."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
