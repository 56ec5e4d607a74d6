"""The JSON Schema of `inspect --json`, derived from the views: `python tools/inspect_schema.py`.

Writes llmcli/schemas/inspect.schema.json; a test regenerates it and compares.
"""

from __future__ import annotations

import json
import types
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from llmcli.inspection.catalogue import TRACES, VIEWS
from llmcli.inspection.difference import Difference
from llmcli.inspection.recorded import Held
from llmcli.inspection.values import View
from llmcli.render.forms import SCHEMA

FILE = Path(__file__).resolve().parents[1] / "llmcli" / "schemas" / "inspect.schema.json"
PLAIN = {int: "integer", float: "number", str: "string", bytes: "string", bool: "boolean"}


def schema() -> dict[str, Any]:
    """The schema of the whole object."""
    defs: dict[str, Any] = {}
    views = [_view(kind, defs) for name in (*VIEWS, *TRACES, "replay") for kind in _kinds(name)]
    defs["Held"] = _object(
        {f.name: _type(get_type_hints(Held)[f.name], defs) for f in fields(Held)}
    )
    model = _object(
        {key: {"type": ["string", "null"]} for key in ("revision", "dtype", "device")}
        | {"name": {"type": "string"}},
        required=["name", "revision"],
    )
    body = {
        "schema": {"const": SCHEMA},
        "model": model,
        "prompt": {"type": "string"},
        "ids": {"type": "array", "items": {"type": "integer"}},
        "trace": {"$ref": "#/$defs/Held"},
        "changes": {"type": "array", "items": {"type": "string"}},
        "views": {"type": "array", "items": {"anyOf": views}},
        "baseline": {"type": "array", "items": {"anyOf": views}},
        "difference": {"type": "array", "items": _view(Difference, defs)},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmcli inspect --json, llmcli generate --replay --json",
        **_object(body, required=["schema", "model", "views"]),
        "$defs": defs,
    }


def text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _kinds(name: str) -> list[type]:
    """The view classes of one module; a view may have two, as `attention` has."""
    module = import_module(f"llmcli.inspection.{name}")
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, View) and kind.__module__ == module.__name__
    ]


def _view(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    _define(kind, defs)
    key = f"{kind.name}.{kind.__name__}"
    defs[key] = defs.pop(_key(kind))
    properties = {"view": {"const": kind.name}, **defs[key]["properties"]}
    defs[key] = _object(properties)
    return {"$ref": f"#/$defs/{key}"}


def _key(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _define(kind: Any, defs: dict[str, Any]) -> None:
    hints = get_type_hints(kind)
    defs[_key(kind)] = {}
    defs[_key(kind)] = _object(
        {field.name: _type(hints[field.name], defs) for field in fields(kind)}
    )


def _type(hint: Any, defs: dict[str, Any]) -> dict[str, Any]:
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if is_dataclass(hint):
        if _key(hint) not in defs:
            _define(hint, defs)
        return {"$ref": f"#/$defs/{_key(hint)}"}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _type(get_args(hint)[0], defs)}
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [_type(arg, defs) for arg in get_args(hint) if arg is not type(None)]
        none = [{"type": "null"}] if type(None) in get_args(hint) else []
        return {"anyOf": [*kinds, *none]}
    raise TypeError(f"a view cannot hold {hint}")


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


if __name__ == "__main__":
    FILE.write_text(text())
