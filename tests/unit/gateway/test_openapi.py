"""The OpenAPI document tells the truth: of what there is, of what is printed, of what is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import jsonschema
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway import openapi
from gateway.examples import BODIES
from gateway.routes import Binding, bindings
from gateway.schemas import DETAILS, reachable
from gateway.transcoding import Transcoder
from sis.errors.v1 import reason_pb2
from tests.support.json_instances import instances
from tests.support.random_messages import RandomMessages

Json = dict[str, Any]

DOCUMENT: Json = json.loads(openapi.document())
OPERATIONS: dict[str, Json] = {
    operation["operationId"]: operation
    for item in DOCUMENT["paths"].values()
    for verb, operation in item.items()
    if verb != "parameters"
}
BINDINGS = bindings()
WITH_BODY = [binding for binding in BINDINGS if binding.body]
PER_METHOD = 15


def test_it_is_accepted_as_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_every_binding_has_its_operation_and_there_are_no_others() -> None:
    documented = {
        (verb.upper(), re.sub(r"\{\w+\}", "{}", path)): operation["operationId"]
        for path, item in DOCUMENT["paths"].items()
        for verb, operation in item.items()
        if verb != "parameters" and operation["tags"] != ["Health"]
    }
    offered = {(each.verb, re.sub(r"\{\w+\}", "{}", each.template)): each.method.name for each in BINDINGS}
    assert documented == offered


def test_every_message_and_enum_that_can_come_has_a_schema() -> None:
    names = set(DOCUMENT["components"]["schemas"])
    for binding in BINDINGS:
        for found in reachable(binding.method.output_type):
            assert _printed(found).rpartition("/")[2] in names
            for field in found.fields:
                assert field.enum_type is None or field.enum_type.name in names


def test_every_reference_leads_somewhere() -> None:
    for reference in _references(DOCUMENT):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_what_is_required_and_what_is_commented_in_the_contract_is_so_here() -> None:
    create = DOCUMENT["components"]["schemas"]["CreateJobRequest"]
    assert create["required"] == ["displayName", "type", "package", "operation", "siteTarget"]
    assert create["properties"]["heartbeatTimeout"]["description"] == "120 s unless given. 60 s to 1 day."
    assert DOCUMENT["components"]["schemas"]["PackageReference"]["properties"]["digest"]["readOnly"] is True
    assert (
        "- `JOB_STATUS_AWOL`: Its agent has been silent"
        in DOCUMENT["components"]["schemas"]["JobStatus"]["description"]
    )
    assert OPERATIONS["GetJob"]["description"] == "One job, whole. NOT_FOUND JOB_NOT_FOUND. Safe to retry."
    [tag] = [tag for tag in DOCUMENT["tags"] if tag["name"] == "JobService"]
    assert tag["description"].startswith("Jobs, for people and programs.")


def test_a_filter_in_a_query_is_written_by_the_paths_of_its_fields() -> None:
    found = {each["name"]: each for each in OPERATIONS["ListJobs"]["parameters"]}
    assert [name for name in found if name.startswith("filter.")] == [
        "filter.types",
        "filter.runStates",
        "filter.statuses",
        "filter.text",
        "filter.completeTimeBefore",
    ]
    assert found["filter.runStates"]["schema"] == {"type": "array", "items": {"$ref": "#/components/schemas/RunState"}}
    assert found["filter.completeTimeBefore"]["schema"]["format"] == "date-time"
    assert found["pageSize"]["schema"]["format"] == "int32"


@pytest.mark.parametrize("binding", BINDINGS, ids=lambda binding: binding.method.name)
def test_whatever_is_printed_fits_its_schema(binding: Binding) -> None:
    output = binding.method.output_type
    validator = _validator(_printed(output), closed=True)
    answers = RandomMessages(output.full_name)
    for _ in range(PER_METHOD):
        _validate(validator, _print(answers.of(output)))


@pytest.mark.parametrize("binding", WITH_BODY, ids=lambda binding: binding.method.name)
def test_whatever_can_be_asked_fits_its_schema_but_for_what_is_missing(binding: Binding) -> None:
    method = binding.method
    validator = _validator(f"#/components/schemas/{method.input_type.name}")
    requests = RandomMessages(method.full_name, extremes=False)
    for _ in range(PER_METHOD):
        request: Any = requests.of(method.input_type)
        for name in binding.path_fields:
            request.ClearField(name)
        errors = list(validator.iter_errors(json_format.MessageToDict(request)))
        assert [error.message for error in errors if error.validator != "required"] == []


@pytest.mark.parametrize("binding", BINDINGS, ids=lambda binding: binding.method.name)
@settings(max_examples=PER_METHOD, derandomize=True, database=None, deadline=None)
@given(data=st.data())
def test_whatever_fits_the_document_can_be_parsed(binding: Binding, data: st.DataObject) -> None:
    components = DOCUMENT["components"]["schemas"]
    operation = OPERATIONS[binding.method.name]
    body = b""
    if binding.body:
        [media] = operation["requestBody"]["content"].values()
        request = data.draw(instances(media["schema"], components))
        _validate(VALIDATORS[binding.method.name], request)
        body = json.dumps(request).encode()
    parameters = [each for each in operation.get("parameters", ()) if "$ref" not in each]  # those are headers
    # What excludes each other, parameters say only in their descriptions.
    excluded = {
        name
        for oneof in binding.method.input_type.oneofs
        if len(names := [field.json_name for field in oneof.fields]) > 1 and not binding.body
        for name in set(names) - {data.draw(st.sampled_from(names))}
    }
    parameters = [each for each in parameters if each["name"] not in excluded]
    given = [(each, data.draw(instances(each["schema"], components))) for each in parameters]
    segments = [quote(value, safe="") for each, value in given if each["in"] == "path"]
    query = [(each["name"], value) for each, value in given if each["in"] == "query"]
    Transcoder(binding).request(
        segments, urlencode([(name, _text(value)) for name, value in _flat(query)]).encode(), body
    )


def test_parameters_that_exclude_each_other_say_so() -> None:
    said = {each["name"]: each.get("description", "") for each in OPERATIONS["ReadLog"]["parameters"]}
    assert said["time"].endswith("by the site's clock. Not together with `firstSequence` or `beforeSequence`.")
    assert "Not together" not in said["maxBytes"]


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_example_of_a_body_fits_its_schema(name: str) -> None:
    [content] = OPERATIONS[name]["requestBody"]["content"].values()
    assert content["example"] == BODIES[name]
    _validate(_validator(content["schema"]["$ref"]), BODIES[name])


def test_every_json_body_has_an_example() -> None:
    assert {binding.method.name for binding in WITH_BODY} == set(BODIES)


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ("CreateJobRequest", {"displayName": "x"}),
        ("CreateJobRequest", {**BODIES["CreateJob"], "displayname": "x"}),
        ("CreateJobRequest", {**BODIES["CreateJob"], "siteTarget": {"group": "a", "agent": "b"}}),
        ("CreateJobRequest", {**BODIES["CreateJob"], "runTimeout": "30"}),
        ("CreateJobRequest", {**BODIES["CreateJob"], "notBefore": "tomorrow"}),
        ("CreateJobRequest", {**BODIES["CreateJob"], "type": 2}),
        ("ApplyVerbRequest", {"verb": "JOB_VERB_CANCEL", "jobIds": ["x"]}),
        ("ApplyVerbRequest", {"verb": "JOB_VERB_CANCEL", "expectedCount": 2**63}),
        ("SecretValue", {"secret": "not base64!"}),
        ("AbortJobRequest", {"jobId": "42"}),
    ],
)
def test_what_is_no_request_does_not_fit(schema: str, wrong: Json) -> None:
    assert not _validator(f"#/components/schemas/{schema}").is_valid(wrong)


def test_an_error_fits_its_schema() -> None:
    error = {"code": 404, "message": "There is no job 7.", "status": "NOT_FOUND", "details": []}
    details = RandomMessages("details")
    validator = _validator("#/components/schemas/Error", closed=True)
    for _ in range(PER_METHOD):
        for descriptor in DETAILS:
            typed = {"@type": f"type.googleapis.com/{descriptor.full_name}", **_print(details.of(descriptor))}
            _validate(validator, {"error": {**error, "details": [typed]}})


def test_every_reason_is_documented() -> None:
    names = {name.removeprefix("REASON_") for name, number in reason_pb2.Reason.items() if number}
    assert set(DOCUMENT["components"]["schemas"]["ErrorInfo"]["properties"]["reason"]["enum"]) == names


def _printed(descriptor: Descriptor) -> str:
    schemas = DOCUMENT["components"]["schemas"]
    name = descriptor.full_name.removeprefix(f"{descriptor.file.package}.")
    return f"#/components/schemas/{name if f'{name}Output' not in schemas else f'{name}Output'}"


def _validator(reference: str, *, closed: bool = False) -> jsonschema.Draft202012Validator:
    """For one schema of the document; with `closed`, nothing but what is described may be there."""
    schemas = json.loads(json.dumps(DOCUMENT["components"]["schemas"]))
    if closed:
        _close(schemas)
    return jsonschema.Draft202012Validator(
        {"$ref": reference, "components": {"schemas": schemas}},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


def _close(node: Any) -> None:
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _close(each)
    if isinstance(node, dict) and node.get("type") == "object":
        node.setdefault("additionalProperties", False)


VALIDATORS = {each.method.name: _validator(f"#/components/schemas/{each.method.input_type.name}") for each in WITH_BODY}


def _validate(validator: jsonschema.Draft202012Validator, document: object) -> None:
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    assert error is None, f"{error.json_path}: {error.message}"


def _print(found: Message) -> Json:
    """As the gateway does."""
    document: Json = json_format.MessageToDict(found, always_print_fields_with_no_presence=True)
    return document


def _flat(query: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in query:
        for each in value if isinstance(value, list) else [value]:
            yield name, each


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for each in node.values():
            yield from _references(each)
    elif isinstance(node, list):
        for each in node:
            yield from _references(each)
