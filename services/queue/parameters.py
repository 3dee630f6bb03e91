"""The values of a job's inputs as its row holds them. Pure.

A text is a JSON string, a list an array of them, a file `{"file": {"name", "size_bytes", "sha256", "content"}}`, with
its content in base64.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from sis.packages.values import File, Value


def to_rows(values: Mapping[str, Value]) -> dict[str, Any]:
    """What the column `parameters` takes."""
    return {name: _to_row(value) for name, value in values.items()}


def _to_row(value: Value) -> Any:
    if not isinstance(value, File):
        return value
    return {
        "file": {
            "name": value.name,
            "size_bytes": len(value.content),
            "sha256": hashlib.sha256(value.content).hexdigest(),
            "content": base64.b64encode(value.content).decode(),
        }
    }


def from_rows(rows: Mapping[str, Any]) -> dict[str, Value]:
    """What `to_rows` was given."""
    return {name: _from_row(row) for name, row in rows.items()}


def _from_row(row: Any) -> Value:
    if not isinstance(row, dict):
        return row  # type: ignore[no-any-return]
    return File(row["file"]["name"], base64.b64decode(row["file"]["content"]))
