"""Checks the values that a job gives to the inputs of its operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sis.packages import values
from sis.packages.manifest import MAX_PROBLEMS, Operation, Problem
from sis.packages.values import InvalidValue, Value

MAX_TOTAL_BYTES = 512 * 1024
"""Of all values together: even as arguments and environment both, a process can be given them."""


def check(operation: Operation, given: Mapping[str, str | Sequence[str]]) -> tuple[dict[str, Value], list[Problem]]:
    """The values with which the operation would run, and every mistake in those given.

    Defaults are applied; an optional input that has neither value nor default is absent. Values are
    canonical: checking them again changes nothing. With problems, the values are not to be used.
    """
    resolved: dict[str, Value] = {}
    problems: list[Problem] = []
    for name in given:
        if name not in operation.inputs:
            known = values.shortened(operation.inputs) or "none"
            problems.append(Problem(name[:100], f"is not an input of this operation; its inputs: {known}"))
    for name, declared in operation.inputs.items():
        if name not in given:
            if declared.default is not None:
                resolved[name] = declared.default
            elif declared.required:
                problems.append(Problem(name, "is required: give a value"))
            continue
        if declared.sensitive:
            problems.append(Problem(name, "is sensitive: it takes a credential, never a plain value"))
            continue
        try:
            value = declared.check(given[name])
        except InvalidValue as error:
            problems.append(Problem(name, str(error)))
            continue
        if declared.required and not value:
            problems.append(Problem(name, "is required: give a value that is not empty"))
        resolved[name] = value
    sizes = {name: len(values.text(value).encode()) for name, value in resolved.items()}
    if sum(sizes.values()) > MAX_TOTAL_BYTES:
        message = f"all values together are longer than {MAX_TOTAL_BYTES // 1024} KiB: shorten this one or others"
        problems.append(Problem(max(sizes, key=sizes.__getitem__), message))
    return resolved, problems[:MAX_PROBLEMS]
