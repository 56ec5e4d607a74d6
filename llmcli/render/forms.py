"""A view as JSON and as TSV, derived from its dataclass alone.

A float is written with seven digits, all that fp32 has, and the same ones in both forms. Bytes are
a token's text: readable in JSON, quoted in TSV.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any

from llmcli.render.text import quoted

SCHEMA = 1
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what would break a row, or reach a terminal


def document(views: Sequence[Any], about: dict[str, Any]) -> dict[str, Any]:
    """The object that --json prints: what all views share, then the views in the order asked."""
    named = [{"view": view.name, **plain(view)} for view in views]
    return {"schema": SCHEMA, **plain(about), "views": named}


def plain(value: Any) -> Any:
    """`value` as what JSON can hold: dataclasses as objects, bytes as readable text."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def tsv(view: Any) -> str:
    """Facts as `# name<TAB>value` lines, then each table under its header.

    Where there are several tables, a line `# table NAME` stands above each.
    """
    facts: list[str] = []
    tables: dict[str, Sequence[Any]] = {}
    for field in fields(view):
        value = getattr(view, field.name)
        if _is_table(value):
            tables[field.name] = value
        elif field.name == "notes":
            facts += [f"# note\t{note}" for note in value]
        else:
            facts += [f"# {name}\t{text}" for name, text in _cells(field, value)]
    lines = facts
    for name, rows in tables.items():
        if len(tables) > 1:
            lines.append(f"# table {name}")
        lines += _table(rows)
    return "".join(f"{line}\n" for line in lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and is_dataclass(value[0])


def _table(rows: Sequence[Any]) -> list[str]:
    cells = [_row(row) for row in rows]
    header = "\t".join(name for name, _ in cells[0])
    return [header, *("\t".join(text for _, text in row) for row in cells)]


def _row(row: Any) -> list[tuple[str, str]]:
    return [cell for field in fields(row) for cell in _cells(field, getattr(row, field.name))]


def _cells(field: Field[Any], value: Any) -> list[tuple[str, str]]:
    """One value as named cells: a token has two, `NAME_id` and `NAME`, all else has one."""
    name = field.name
    if value is None and str(field.type).startswith("Token"):
        return [(f"{name}_id", ""), (name, "")]
    if is_dataclass(value):
        inner = [(each.name, getattr(value, each.name)) for each in fields(value)]
        return [(name if key == "text" else f"{name}_{key}", _cell(item)) for key, item in inner]
    return [(name, _cell(value))]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return quoted(value)
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return quoted(value.encode("utf-8", "replace"))[1:-1] if CONTROL.search(value) else value
    return json.dumps(plain(value), separators=(",", ":"))
