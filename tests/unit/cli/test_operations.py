"""The values of a job against the declaration of its package, as the server gives it."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from sis.cli import operations
from sis.client import ApiError
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2 as package_pb

PACKAGE = text_format.Parse(
    """
    name: "p" version: "1.0.0"
    operations { name: "other" }
    operations {
        name: "use"
        inputs { name: "phrase" type: "string" sensitive: true required: true }
        inputs { name: "count" type: "integer" default_value: "1" }
        inputs { name: "mode" type: "enum" choices: ["fast", "slow"] }
        inputs { name: "hosts" type: "list" pattern: "[a-z]+" }
        inputs { name: "table" type: "file" }
        inputs { name: "colour" type: "rainbow" required: true }
        inputs { name: "pin" type: "number of tomorrow" sensitive: true }
    }
    """,
    package_pb.Package(),
)


def request(parameters: str, operation: str = "use") -> pb.CreateJobRequest:
    return text_format.Parse(parameters, pb.CreateJobRequest(operation=operation))


def violations(given: pb.CreateJobRequest, typed: tuple[str, ...] = ()) -> dict[str, str]:
    with pytest.raises(ApiError) as caught:
        operations.check(PACKAGE, given, typed)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert not caught.value.unreachable
    return {each.field: each.description for each in caught.value.violations}


PHRASE = 'parameters { key: "phrase" value { credential_ref: "db" } } '


@pytest.mark.parametrize(
    "others",
    [
        "",
        'parameters { key: "hosts" value { list { items: ["a", "b"] } } }',
        'parameters { key: "table" value { file { name: "t" content: "\\377" } } }',
        'parameters { key: "mode" value { plain: "fast" } } parameters { key: "count" value { plain: "007" } }',
        # Of a type that is not known here; the queue knows better.
        'parameters { key: "colour" value { plain: "red" } }',
        'parameters { key: "colour" value { credential_ref: "db" } }',
    ],
)
def test_what_fits(others: str) -> None:
    operations.check(PACKAGE, request(PHRASE + others))


def test_what_will_be_typed_is_there() -> None:
    operations.check(PACKAGE, request(""), ["phrase"])


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("phrase", 'plain: "hunter2 hunter2"', "is sensitive: it takes a credential, never a plain value"),
        ("pin", 'plain: "12345678"', "is sensitive: it takes a credential, never a plain value"),
        ("count", 'credential_ref: "db"', "is not sensitive: it takes a value, not a credential"),
        ("count", 'plain: "many"', "must be a whole number"),
        ("count", 'file { name: "t" }', "not a file"),
        ("mode", 'plain: "medium"', "must be one of fast, slow"),
        ("hosts", 'list { items: ["a", "B"] }', "item 2 must match"),
        ("table", 'plain: "t"', "must be a file: give its name and its content (--param-file table=PATH)"),
        ("unheard_of", 'plain: ""', "is not an input of this operation; its inputs: phrase, count"),
    ],
)
def test_what_does_not(field: str, value: str, problem: str) -> None:
    given = f'parameters {{ key: "{field}" value {{ {value} }} }}'
    found = violations(request(given), () if field == "phrase" else ("phrase",))
    assert found.keys() == {f"parameters.{field}"}
    assert problem in found[f"parameters.{field}"]


def test_a_secret_is_not_repeated() -> None:
    found = violations(request('parameters { key: "phrase" value { plain: "hunter2 hunter2" } }'))
    assert "hunter2" not in str(found)


def test_an_operation_that_is_not_there() -> None:
    assert violations(request("", "used")) == {
        "operation": "package p 1.0.0 has no operation 'used'; it has: other, use"
    }
