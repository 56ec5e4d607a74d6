"""The full values behind views, as the bytes of one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor


def packed(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """`VIEW.NAME` -> tensor, with `about` (model, dtype, prompt, ids) as the file's metadata."""
    metadata = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    return to_bytes({name: t.contiguous().clone() for name, t in tensors.items()}, metadata)
