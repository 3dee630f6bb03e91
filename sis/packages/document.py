"""Reads the YAML of a manifest: a small subset, in which text stays text.

Only `true`, `false`, `null` and plain whole numbers are anything else than text, so that `version: 1.10` and
`choices: [yes, no]` mean what they look like. Anchors, aliases, tags and duplicate keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MAX_CHARACTERS = 64 * 1024
MAX_DEPTH = 12


class InvalidDocument(Exception):
    """The text cannot be read; the message says where and why."""


def read(text: str) -> object:
    """The document as mappings, lists and scalars. Raises InvalidDocument."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidDocument(f"it has more than {MAX_CHARACTERS:,} characters")
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InvalidDocument(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InvalidDocument(str(error).splitlines()[0]) from None
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own shape)

    def __init__(self, text: str) -> None:
        # The reader itself checks for characters that YAML does not permit.
        try:
            super().__init__(text)
        except yaml.YAMLError as error:
            raise InvalidDocument(str(error).splitlines()[0]) from None
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refusal(event, "anchors and aliases are not supported: write the value out")
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refusal(event, "tags are not supported: remove it")
        if self._depth >= MAX_DEPTH:
            raise _refusal(event, "it is nested too deeply")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal(key, "a key must be text")
            if key.value in seen:
                raise _refusal(key, f"the key {key.value!r} is there twice")
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"^(?:true|false)$", ["t", "f"]),
    ("int", r"^(?:0|-?[1-9][0-9]{0,18})$", list("-0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _refusal(place: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)
