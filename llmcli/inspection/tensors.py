"""The full values behind views, written as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor

from llmcli.errors import NotFoundError


def save(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, Any]) -> None:
    """`VIEW.NAME` -> tensor, with `about` (model, dtype, prompt, ids) as the file's metadata.

    Raises NotFoundError where `path` cannot be written.
    """
    metadata = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    data = to_bytes({name: t.contiguous().clone() for name, t in tensors.items()}, metadata)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise NotFoundError(f"{path} cannot be written: {error.strerror}.") from error
