"""Every reason that an error of the services can carry is in the contract."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import services
from services.runtime.errors import SisError
from sis.errors.v1.reason_pb2 import Reason

KNOWN = {name.removeprefix("REASON_") for name in Reason.keys()}  # noqa: SIM118 - the wrapper is no mapping


def _subclasses(of: type[SisError]) -> set[type[SisError]]:
    return {of}.union(*(_subclasses(each) for each in of.__subclasses__()))


def test_every_class_of_error_has_a_reason_of_the_contract() -> None:
    modules = [m.name for m in pkgutil.walk_packages(services.__path__, "services.") if m.name.endswith(".errors")]
    assert {"services.runtime.errors", "services.queue.errors", "services.sis_agent.hub.errors"} <= set(modules)
    for module in modules:
        importlib.import_module(module)
    found = _subclasses(SisError)
    assert len(found) > 25
    assert {kind.reason for kind in found} <= KNOWN


def test_every_reason_that_is_given_where_an_error_is_raised_is_of_the_contract() -> None:
    root = Path(services.__path__[0])
    given = {}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.keyword) and node.arg == "reason" and isinstance(node.value, ast.Constant)):
                continue
            if isinstance(node.value.value, str) and node.value.value.isupper():
                given[f"{path.relative_to(root)}:{node.value.lineno}"] = node.value.value
    assert given, "at least the interceptors give one"
    assert {at: reason for at, reason in given.items() if reason not in KNOWN} == {}
