"""Model name -> folder on disk. Knows names and folders, not what the files hold."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from llmcli.errors import NotFoundError, shown

EMBEDDED = {"fable": Path(__file__).parent / "models" / "fable"}
DEFAULT_MODEL = "fable"


def resolve(name: str) -> Path:
    """The folder of the model called `name`: one of ours, or a path to a folder.

    Raises NotFoundError with the nearest names.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return path
        exists = path.exists()
    except (OSError, ValueError):  # too long, or holding NUL: no file's name
        exists = False
    if exists:
        raise NotFoundError(
            f"{shown(name)} is a file, not a model's folder.",
            "Name the folder that holds config.json, tokenizer.json and model.safetensors.",
        )
    near = get_close_matches(name, EMBEDDED, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise NotFoundError(
        f"There is no model called {shown(name)!r}.",
        f"{hint}A model is a folder, or one of: {', '.join(EMBEDDED)}.",
    )
