"""What agents and people say, checked."""

from __future__ import annotations

from typing import Any

import pytest

from services.runtime.errors import Internal, InvalidArgument
from services.runtime.paging import InvalidToken
from services.sis_agent.hub import convert
from sis.agent.v1 import agent_admin_service_pb2 as admin
from sis.agent.v1 import agent_service_pb2 as stream
from sis.agent.v1 import enrolment_service_pb2 as enrolment
from sis.credentials.v1 import certificate_pb2, certificate_service_pb2
from sis.queue.v1 import dispatch_service_pb2 as queue


def hello(**fields: Any) -> stream.ConnectRequest:
    sound: dict[str, Any] = {"journal_id": "j", "slots": 4}
    return stream.ConnectRequest(hello=queue.AgentHello(**sound | fields))


def test_a_sound_hello_is_taken() -> None:
    found, shown = convert.hello(hello(labels={"site": "Zürich"}))
    assert found.slots == 4
    assert shown == b""


@pytest.mark.parametrize("first", [None, stream.ConnectRequest(), stream.ConnectRequest(beat=stream.Beat())])
def test_the_first_message_must_be_a_hello(first: stream.ConnectRequest | None) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.hello(first)
    assert [v.field for v in caught.value.violations] == ["hello"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"slots": 0}, "hello.slots"),
        ({"slots": 1001}, "hello.slots"),
        ({"journal_id": ""}, "hello.journal_id"),
        ({"record_number": -1}, "hello.record_number"),
        ({"hostname": "h" * 256}, "hello.hostname"),
        ({"version": "1\n2"}, "hello.version"),
        ({"attempts": [queue.AttemptInHand()] * 1001}, "hello.attempts"),
        ({"attempts": [queue.AttemptInHand()]}, "hello.attempts"),
        ({"labels": {str(n): "" for n in range(33)}}, "hello.labels"),
        ({"labels": {"": "x"}}, "hello.labels"),
        ({"labels": {"k" * 64: "x"}}, "hello.labels"),
        ({"labels": {"site": "v" * 201}}, "hello.labels.site"),
        ({"labels": {"site": "a\0b"}}, "hello.labels.site"),
    ],
)
def test_a_wrong_field_of_the_hello_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.hello(hello(**fields))
    assert [v.field for v in caught.value.violations] == [field]


@pytest.mark.parametrize("length", [1, 31, 33])
def test_a_resume_secret_has_the_length_of_those_that_are_offered(length: int) -> None:
    first = hello()
    first.resume_secret = bytes(length)
    with pytest.raises(InvalidArgument) as caught:
        convert.hello(first)
    assert [v.field for v in caught.value.violations] == ["resume_secret"]
    first.resume_secret = bytes(32)
    assert convert.hello(first)[1] == bytes(32)


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.hello(hello(slots=-1, record_number=-1))
    assert len(caught.value.violations) == 2


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (1000, 1000), (5000, 1000)])
def test_page_sizes(asked: int, given: int) -> None:
    assert convert.list_agents(admin.ListAgentsRequest(page_size=asked)).page_size == given


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="page_size"):
        convert.list_agents(admin.ListAgentsRequest(page_size=-1))


def test_a_page_token_leads_on() -> None:
    token = convert.page_token("a7", "g")
    found = convert.list_agents(admin.ListAgentsRequest(page_token=token, group="g", page_size=3))
    assert (found.after, found.agent_group) == ("a7", "g")


@pytest.mark.parametrize("token", ["x", "!!", "bnVsbA", "W10", "[]", "ä", "A" * 600, "WyIxIiwgMl0"])
def test_a_damaged_page_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        convert.list_agents(admin.ListAgentsRequest(page_token=token))
    assert caught.value.reason == "INVALID_TOKEN"
    assert caught.value.violations[0].field == "page_token"


def test_a_page_token_of_another_request_is_refused() -> None:
    with pytest.raises(InvalidToken):
        convert.list_agents(admin.ListAgentsRequest(page_token=convert.page_token("a7", "g"), group="h"))


@pytest.mark.parametrize("name", ["", "a" * 64, "a\0b"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        convert.agent_name(admin.GetAgentRequest(name=name))


@pytest.mark.parametrize(("digest", "offset"), [("", 0), ("0" * 63, 0), ("A" * 64, 0), ("0" * 64, -1)])
def test_a_package_that_cannot_be_is_refused(digest: str, offset: int) -> None:
    with pytest.raises(InvalidArgument):
        convert.fetch_package(stream.FetchPackageRequest(digest=digest, offset=offset))


def test_an_enrolment_is_passed_on_with_its_origin() -> None:
    request = enrolment.EnrolRequest(pairing_id="abcdefgh", keys=b"keys", mac=bytes(32))
    found = convert.enrol(request, "10.0.0.1")
    assert (found.pairing_id, found.keys, found.mac, found.origin) == ("abcdefgh", b"keys", bytes(32), "10.0.0.1")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pairing_id": "ABCDEFGH"}, "pairing_id"),
        ({"pairing_id": "abcdefg"}, "pairing_id"),
        ({"keys": b""}, "keys"),
        ({"keys": bytes(8_193)}, "keys"),
        ({"mac": bytes(31)}, "mac"),
    ],
)
def test_an_enrolment_that_cannot_be_is_refused(fields: dict[str, Any], field: str) -> None:
    sound: dict[str, Any] = {"pairing_id": "abcdefgh", "keys": b"keys", "mac": bytes(32)}
    with pytest.raises(InvalidArgument) as caught:
        convert.enrol(enrolment.EnrolRequest(**sound | fields), "")
    assert [v.field for v in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"agent": ""}, "agent"),
        ({"agent": "a/b"}, "agent"),
        ({"agent": "a" * 64}, "agent"),
        ({"keys": bytes(8_193)}, "keys"),
        ({"signature": b""}, "signature"),
        ({"signature": bytes(201)}, "signature"),
    ],
)
def test_a_rejoin_that_cannot_be_is_refused(fields: dict[str, Any], field: str) -> None:
    sound: dict[str, Any] = {"agent": "a1", "keys": b"keys", "signature": b"s"}
    with pytest.raises(InvalidArgument) as caught:
        convert.rejoin(enrolment.RejoinRequest(**sound | fields))
    assert [v.field for v in caught.value.violations] == [field]


def test_serials_are_compared_as_numbers() -> None:
    response = certificate_service_pb2.WatchRevocationsResponse()
    response.revocations.add(serial="00ab01", agent="a1").not_after.FromSeconds(1)
    assert [each.serial for each in convert.revocations(response)] == ["ab01"]


def test_a_revocation_that_cannot_be_read_is_no_reason_to_ignore_it() -> None:
    response = certificate_service_pb2.WatchRevocationsResponse(revocations=[certificate_pb2.Revocation(serial="?")])
    with pytest.raises(Internal):
        convert.revocations(response)
