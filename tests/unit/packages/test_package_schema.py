"""The published schema agrees with what reads manifests."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis.packages import document, manifest, schema, shipped
from sis.packages.manifest import InvalidManifest
from tests.unit.packages.test_package_manifest import BAD, GOOD, MISTAKES, operation_with

PUBLISHED = Path(__file__).parents[3] / "docs" / "packages" / "package.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(schema.document_schema())

# What one of these is wrong with needs more than a schema: what a text means, or a rule between distant parts.
BEYOND = {
    "is longer than a year",
    "is longer than an hour",
    "is not a usable regular",
    "must be one integer value",
    "has more than one delivery by stdin",
    "has the kind token for admin",
}


def accepted(text: str) -> bool:
    try:
        manifest.parse(text)
    except InvalidManifest:
        return False
    return True


def test_the_published_schema_is_the_one_of_the_models() -> None:
    assert PUBLISHED.read_text() == schema.text()
    jsonschema.Draft202012Validator.check_schema(json.loads(PUBLISHED.read_text()))


def test_every_definition_says_what_its_fields_are() -> None:
    published = schema.document_schema()
    for definition in (published, *published["$defs"].values()):
        assert definition["description"]
        assert all(each["description"] for each in definition.get("properties", {}).values())


@pytest.mark.parametrize("path", sorted(shipped().glob("*/package.yaml")), ids=lambda path: path.parent.name)
def test_what_is_shipped_is_valid(path: Path) -> None:
    VALIDATOR.validate(document.read(path.read_text()))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"command": [5, "{{x}}", "", "{package}{work}", "line\nbreak"], "description": 7, "interpreter": True},
        {"command": ["a{{param.x}}"], "run_timeout": 0},
        *({"run_timeout": each} for each in (31_536_000, "5m", "1d", "0", "000000001s")),
        *({"cancel_grace": each} for each in (0, "30s", "1h")),
        {"inputs": {"x": {"type": "enum", "choices": [1, True, "no"], "default": 1}}},
        {"inputs": {"x": {"type": "list", "default": [1, True, ""], "choices": []}}},
        {"inputs": {"x": {"type": "file", "required": True, "hint": "a log", "pattern": "", "default": None}}},
        {"inputs": {"x": {"type": "string", "sensitive": True, "pattern": "a|b"}}},
        {"inputs": {"x" * 64: {"type": "boolean", "default": True}}},
        {"credentials": {"admin": {"kinds": []}, "db": {"delivery": "stdin"}}},
        {"outputs": {"_A.b-c": {"required": True}}},
    ],
)
def test_what_is_accepted_is_valid(fields: dict[str, Any]) -> None:
    text = operation_with(**fields)
    assert accepted(text)
    VALIDATOR.validate(document.read(text))


@pytest.mark.parametrize(("fields", "path", "message"), MISTAKES)
def test_what_is_refused_is_invalid_where_a_schema_can_say_so(
    fields: dict[str, object], path: str, message: str
) -> None:
    assert VALIDATOR.is_valid(document.read(operation_with(**fields))) == (message in BEYOND)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", value) for value in ("Bad", "a_b", "a..b", "a" * 101, -5, "", "a\n", None, [])),
        *(("version", value) for value in ("1.0", 1, True, "v1.0.0", "01.0.0", "1.0.0-01")),
        *(("platforms", value) for value in ([], ["plan9"], ["linux", "linux"], "linux")),
        *(("operations", value) for value in ({}, {"Run": {"command": ["x"]}}, {"a" * 101: {"command": ["x"]}}, [])),
        ("publisher", "a\tb"),
        ("colour", "red"),
    ],
)
def test_a_mistake_at_the_top_is_invalid(field: str, value: object) -> None:
    tree = {"name": "a", "version": "1.0.0", "operations": {"run": {"command": ["x"]}}}
    VALIDATOR.validate(tree)
    assert not accepted(json.dumps({**tree, field: value}))
    assert not VALIDATOR.is_valid({**tree, field: value})


def test_a_manifest_of_many_mistakes_is_invalid_at_each() -> None:
    invalid = {".".join(map(str, error.path)) for error in VALIDATOR.iter_errors(document.read(BAD))}
    assert {"name", "version", "platforms.1", "operations.run.inputs.x.type", "operations.run.command.4"} <= invalid


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


TREE: Any = document.read(GOOD)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**9),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=6),
    st.sampled_from(["file", "enum", "list", "5m", "{param.days}", "{package}", "a b", "1.0.0", "linux", "token"]),
    st.sampled_from([[], {}, ["a"], [1, 2], {"x": {"type": "file"}}, {"x": {}}, ["token", "token"]]),
)


@given(st.sampled_from(list(places(TREE))[1:]), VALUES)
def test_whatever_is_accepted_is_valid(path: tuple[Any, ...], value: object) -> None:
    tree = copy.deepcopy(TREE)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    text = json.dumps(tree)
    if accepted(text):
        VALIDATOR.validate(document.read(text))
