"""From paths, queries and bodies to messages; whatever a client may send, what is wrong is refused by its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from gateway import parsing
from gateway.routes import bindings
from gateway.transcoding import Transcoder
from services.runtime.errors import InvalidArgument
from sis.queue.v1 import job_pb2, package_service_pb2
from sis.queue.v1 import job_service_pb2 as pb

TRANSCODERS = {binding.method.name: Transcoder(binding) for binding in bindings()}
INT64 = 2**63


def request(method: str, *segments: str, query: str | bytes = b"", body: Any = None) -> Any:
    raw = query.encode() if isinstance(query, str) else query
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return TRANSCODERS[method].request(segments, raw, content)


def refused(method: str, *segments: str, query: str | bytes = b"", body: Any = None) -> tuple[str, str]:
    """The reason and the field that is named."""
    with pytest.raises(InvalidArgument) as caught:
        request(method, *segments, query=query, body=body)
    assert caught.value.message.isprintable() and len(caught.value.message) < 1_000
    return caught.value.reason, caught.value.violations[0].field if caught.value.violations else ""


# --- paths ---


@pytest.mark.parametrize(
    ("segment", "value"),
    [("1", 1), ("0", 0), ("-5", -5), ("%34%32", 42), (str(INT64 - 1), INT64 - 1), (str(-INT64), -INT64)],
)
def test_a_number_in_the_path(segment: str, value: int) -> None:
    assert request("GetJob", segment) == pb.GetJobRequest(job_id=value)


@pytest.mark.parametrize(
    "segment",
    [
        "x",
        "1.0",
        "1e3",
        "+1",
        "0x10",
        "1_000",
        "%20" + "1",
        "%D9%A1",
        "",
        "9" * 21,
        str(INT64),
        "%FF",
        "%zz",
        "%",
        "1%00",
    ],
)
def test_what_is_no_number_in_the_path_is_refused(segment: str) -> None:
    assert refused("GetJob", segment) == ("INVALID_FIELD", "job_id")


@pytest.mark.parametrize(
    ("segment", "name"),
    [("core.shell", "core.shell"), ("a%2Fb%3Ac", "a/b:c"), ("Z%C3%BCrich", "Zürich"), ("a+b", "a+b")],
)
def test_a_text_in_the_path_is_decoded_once(segment: str, name: str) -> None:
    assert request("GetPackage", segment).name == name
    assert request("GetPackage", "%2525").name == "%25"


# --- queries ---


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", pb.ListJobsRequest()),
        ("&&", pb.ListJobsRequest()),
        ("pageSize=5&page_token=a%26b", pb.ListJobsRequest(page_size=5, page_token="a&b")),
        ("orderBy=job_id+desc", pb.ListJobsRequest(order_by="job_id desc")),
        ("orderBy=", pb.ListJobsRequest(order_by="")),
        ("filter.text=a%20b", pb.ListJobsRequest(filter=pb.JobFilter(text="a b"))),
        (
            "filter.statuses=JOB_STATUS_RUNNING&filter.statuses=JOB_STATUS_FAILED",
            pb.ListJobsRequest(filter=pb.JobFilter(statuses=[job_pb2.JOB_STATUS_RUNNING, job_pb2.JOB_STATUS_FAILED])),
        ),
        ("filter.runStates=2", pb.ListJobsRequest(filter=pb.JobFilter(run_states=[2]))),
        ("filter.run_states=2", pb.ListJobsRequest(filter=pb.JobFilter(run_states=[2]))),
        (
            "filter.completeTimeBefore=2026-11-22T10:00:00.5%2B01:00",
            pb.ListJobsRequest(
                filter=pb.JobFilter(complete_time_before=Timestamp(seconds=1795338000, nanos=500_000_000))
            ),
        ),
    ],
)
def test_a_query(query: str, expected: pb.ListJobsRequest) -> None:
    assert request("ListJobs", query=query) == expected


def test_repeated_numbers_and_booleans_in_a_query() -> None:
    found = request("ExportJobs", query="jobIds=1&jobIds=2&includeLogs=true")
    assert found == pb.ExportJobsRequest(job_ids=[1, 2], include_logs=True)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("nonsense=1", "nonsense"),
        ("alt=json", "alt"),
        ("filter=x", "filter"),
        ("filter.nonsense=1", "filter.nonsense"),
        ("filter.text.x=1", "filter.text.x"),
        ("filter.completeTimeBefore.seconds=1", "filter.completeTimeBefore.seconds"),
        ("filter.statuses.x=1", "filter.statuses.x"),
        (".filter=1", ".filter"),
        ("filter..text=1", "filter..text"),
        ("=1", ""),
        ("pageSize=5&pageSize=6", "pageSize"),
        ("pageSize=5&page_size=6", "page_size"),
        ("pageSize=five", "pageSize"),
        ("pageSize=", "pageSize"),
        (f"pageSize={2**31}", "pageSize"),
        ("filter.statuses=RUNNING", "filter.statuses"),
        ("filter.statuses=9999", "filter.statuses"),
        ("filter.statuses=", "filter.statuses"),
        ("filter.completeTimeBefore=yesterday", "filter.completeTimeBefore"),
        ("filter.completeTimeBefore=2026-13-01T00:00:00Z", "filter.completeTimeBefore"),
        ("filter.completeTimeBefore=9999-12-31T23:59:59-23:59", "filter.completeTimeBefore"),
        ("filter.text=%FF", "filter.text"),
        ("filter.text=%C0%80", "filter.text"),
        ("filter.text=%ED%A0%80", "filter.text"),
        ("filter.text=100%", "filter.text"),
        ("%FF=1", "query"),
        ("&".join(["pageToken=x"] * 1_001), "query"),
        ("[sis.http.v1.byte_stream]=1", "[sis.http.v1.byte_stream]"),
    ],
)
def test_a_wrong_query_is_refused_by_its_field(query: str, field: str) -> None:
    assert refused("ListJobs", query=query) == ("INVALID_FIELD", field or "body")


def test_raw_bytes_in_a_query_are_refused_unless_they_are_utf8() -> None:
    assert request("ListJobs", query="filter.text=ü".encode()).filter.text == "ü"
    assert refused("ListJobs", query=b"filter.text=\xfc") == ("INVALID_FIELD", "filter.text")


def test_fields_of_the_path_and_the_body_are_not_taken_from_the_query() -> None:
    assert refused("GetJob", "1", query="jobId=2") == ("INVALID_FIELD", "jobId")
    assert refused("CancelJob", "1", query="reason=x") == ("INVALID_FIELD", "reason")
    assert refused("PushPackage", query="chunk=AAAA")[1] == "chunk"
    assert refused("PushPackage", query="upload.sizeBytes=1")[1] == "upload.sizeBytes"
    digest = request("PushPackage", query="upload.digest=ab")
    assert digest == package_service_pb2.PushPackageRequest(upload=package_service_pb2.PackageUpload(digest="ab"))
    assert refused("PushPackage", query="upload.digest=ab&upload.digest=cd")[1] == "upload.digest"


# --- bodies ---

WHOLE = {
    "displayName": "Zürich 🚂",
    "type": "JOB_TYPE_PACKAGE",
    "package": {"name": "core.shell"},
    "operation": "run",
    "parameters": {"script": {"plain": "true"}, "hosts": {"list": {"items": ["a", "b"]}}},
    "siteTarget": {"group": "local"},
    "deferred": False,
    "notBefore": "2026-11-22T10:00:00Z",
    "runTimeout": "1.5s",
    "labels": {"a": "b"},
    "requestId": None,
}


def test_a_whole_body() -> None:
    found = request("CreateJob", body=WHOLE)
    assert found.display_name == "Zürich 🚂" and found.type == job_pb2.JOB_TYPE_PACKAGE
    assert list(found.parameters["hosts"].list.items) == ["a", "b"]
    assert found.parameters["script"].plain == "true"
    assert found.not_before == Timestamp(seconds=1795341600) and found.run_timeout.ToMilliseconds() == 1_500
    assert dict(found.labels) == {"a": "b"} and found.request_id == ""


def test_names_as_in_the_contract_are_taken_alike() -> None:
    snake = {"display_name": "x", "site_target": {"agent": "a"}, "run_timeout": "1s", "type": 2}
    assert request("CreateJob", body=snake) == pb.CreateJobRequest(
        display_name="x", site_target=job_pb2.SiteTarget(agent="a"), run_timeout=Duration(seconds=1), type=2
    )


def test_an_optional_field_can_be_zero() -> None:
    assert request("ApplyVerb", body={"expectedCount": "0"}).HasField("expected_count")
    assert not request("ApplyVerb", body={"expectedCount": None}).HasField("expected_count")


@pytest.mark.parametrize("value", [7, "7", 7.0, "-7", str(INT64 - 1)])
def test_64_bit_numbers_come_as_texts_or_numbers(value: object) -> None:
    assert request("ApplyVerb", body={"jobIds": [value]}).job_ids[0] == int(value)  # type: ignore[call-overload]


def test_no_body_is_an_empty_one() -> None:
    assert request("CancelJob", "42") == pb.CancelJobRequest(job_id=42)
    assert request("CancelJob", "42", body={"reason": "x"}) == pb.CancelJobRequest(job_id=42, reason="x")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"displayName": "a", "display_name": "b"}, "displayName"),
        ({"displayName": 5}, "displayName"),
        ({"displayName": ["x"]}, "displayName"),
        ({"displayName": {}}, "displayName"),
        ({"displayName": "\ud800"}, "displayName"),
        ({"package": "core.shell"}, "package"),
        ({"package": []}, "package"),
        ({"package": {"nonsense": 1}}, "package.nonsense"),
        ({"type": "PACKAGE"}, "type"),
        ({"type": True}, "type"),
        ({"type": 999}, "type"),
        ({"type": 1.5}, "type"),
        ({"type": ["JOB_TYPE_PACKAGE"]}, "type"),
        ({"deferred": "true"}, "deferred"),
        ({"deferred": 1}, "deferred"),
        ({"notBefore": 5}, "notBefore"),
        ({"notBefore": "٢٠٢٦-01-01T00:00:00Z"}, "notBefore"),
        ({"notBefore": ""}, "notBefore"),
        ({"runTimeout": "5"}, "runTimeout"),
        ({"runTimeout": "1e9s"}, "runTimeout"),
        ({"runTimeout": "9" * 400 + "s"}, "runTimeout"),
        ({"labels": []}, "labels"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"labels": {"a": None}}, "labels.a"),
        ({"parameters": {"p": {"plain": "x", "credentialRef": "y"}}}, "parameters.p.credentialRef"),
        ({"parameters": {"p": None}}, "parameters.p"),
        ({"parameters": {"p": {"list": {"items": [None]}}}}, "parameters.p.list.items[0]"),
        ({"parameters": {"p": {"list": {"items": "x"}}}}, "parameters.p.list.items"),
        ({"siteTarget": {"group": "a", "agent": "b"}}, "siteTarget.agent"),
        ({"a\n\x1b[31m": 1}, "a\\n\\x1b[31m"),
        ({"[sis.http.v1.byte_stream]": {}}, "[sis.http.v1.byte_stream]"),
        ({"@type": "x"}, "@type"),
        ({"": 1}, "body"),
    ],
)
def test_a_wrong_body_is_refused_by_its_field(body: object, field: str) -> None:
    assert refused("CreateJob", body=body) == ("INVALID_FIELD", field)


@pytest.mark.parametrize(
    "value", [True, "", " 7", "7 ", "1_0", "٧", 7.5, 1e300, INT64, str(INT64), "NaN", "1e2", [7], {}, None, "9" * 5_000]
)
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    assert refused("ApplyVerb", body={"jobIds": [value]}) == ("INVALID_FIELD", "jobIds[0]")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"{}{}",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"reason": NaN}',
        b'{"reason": Infinity}',
        b'{"reason": -Infinity}',
        b'{"reason": "\xff"}',
        b'{"reason": "a\x00"}',
        b"\xef\xbb\xbf{}",
        '{"reason": "x"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[" + b"{}," * 200_000 + b"{}]",
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    assert refused("CancelJob", "1", body=body)[0] == "MALFORMED_REQUEST"


def test_a_name_that_is_there_twice_is_refused() -> None:
    assert refused("CancelJob", "1", body=b'{"reason": "a", "reason": "b"}') == ("INVALID_FIELD", "reason")
    nested = b'{"package": {"name": "a", "name": "b"}}'
    assert refused("CreateJob", body=nested) == ("INVALID_FIELD", "name")


def test_a_field_of_the_path_is_not_taken_from_the_body() -> None:
    assert refused("CancelJob", "1", body={"jobId": "2"}) == ("INVALID_FIELD", "jobId")
    assert refused("CancelJob", "1", body={"job_id": "1"}) == ("INVALID_FIELD", "job_id")


@pytest.mark.parametrize("text", ["AP/+_w==", "AP_-_w", "AP/+/w=="])
def test_bytes_are_base64_of_either_alphabet(text: str) -> None:
    message = package_service_pb2.PushPackageRequest()
    parsing.fill(message, {"chunk": text})
    assert message.chunk == b"\x00\xff\xfe\xff"


@pytest.mark.parametrize("text", ["A", "AA!A", "AA A", "AA\n", "=", "A===", "é", "AAAA=A"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parsing.fill(package_service_pb2.PushPackageRequest(), {"chunk": text})
    assert caught.value.violations[0].field == "chunk"


def test_a_field_mask_names_fields_as_json_does() -> None:
    """No contract has one so far: this is a message as an update would have it."""
    file = FileDescriptorProto(name="update.proto", package="test", syntax="proto3")
    file.dependency.append("google/protobuf/field_mask.proto")
    field = file.message_type.add(name="Update").field.add(name="update_mask", number=1)
    field.type, field.label, field.type_name = field.TYPE_MESSAGE, field.LABEL_OPTIONAL, ".google.protobuf.FieldMask"
    pool = DescriptorPool()
    pool.AddSerializedFile(FieldMask.DESCRIPTOR.file.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    update = pool.FindMessageTypeByName("test.Update")
    parsing.check(update)
    in_a_body, in_a_query = (GetMessageClass(update)() for _ in range(2))
    parsing.fill(in_a_body, {"updateMask": "displayName,filter.runStates"})
    parsing.set_texts(in_a_query, "updateMask", ["displayName,filter.runStates"])
    assert in_a_body == in_a_query
    assert list(in_a_body.update_mask.paths) == ["display_name", "filter.run_states"]
    with pytest.raises(InvalidArgument) as caught:
        parsing.fill(in_a_body, {"updateMask": "display_name"})
    assert caught.value.violations[0].field == "updateMask"


def test_messages_that_json_alone_describes_cannot_be_part_of_a_contract() -> None:
    with pytest.raises(TypeError):
        parsing.check(Struct.DESCRIPTOR)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*WHOLE, "plain", "list", "items", "x"]) | st.text(max_size=3), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(VALUES, st.binary(max_size=60))
def test_no_body_and_no_query_is_a_fault(value: object, query: bytes) -> None:
    for body, raw in ((json.dumps(value).encode(), b""), (query, b""), (b"", query)):
        try:
            found = request("CreateJob", body=body, query=raw)
        except InvalidArgument:
            continue
        assert isinstance(found, GetMessageClass(pb.CreateJobRequest.DESCRIPTOR))


@pytest.mark.parametrize("value", ["hunter2 hunter2!", 12345678, ["hunter2"], {"hunter2": 1}, 1.5e300, True, None])
@pytest.mark.parametrize("place", ["value", "secret", "cut off", "query"])
def test_no_refusal_repeats_what_was_sent(value: object, place: str) -> None:
    """It may have been a secret; names of fields alone are repeated."""
    inner = {"secret": value} if place != "value" else value
    body = json.dumps({"name": "a", "value": inner}).encode()
    query = f"value.secret={value}".encode() if place == "query" else b""
    if place == "cut off":
        body = body[:-2]
    try:
        found = request("CreateCredential", body=body if place != "query" else b"{}", query=query.replace(b" ", b"+"))
    except InvalidArgument as error:
        told = [error.message, *(violation.description for violation in error.violations)]
        assert not any(str(sent) in text for text in told for sent in ("hunter2 hunter2", 12345678, 1.5e300))
    else:
        assert value is None and not found.value.secret
