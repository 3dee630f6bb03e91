"""What agents and people say, checked."""

from __future__ import annotations

from typing import Any

import pytest

from services.runtime.errors import InvalidArgument
from services.runtime.paging import InvalidToken
from services.sis_agent.hub import convert
from sis.agent.v1 import agent_admin_service_pb2 as admin
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue


def hello(**fields: Any) -> stream.ConnectRequest:
    sound: dict[str, Any] = {"journal_id": "j", "slots": 4}
    return stream.ConnectRequest(hello=queue.AgentHello(**sound | fields))


def test_a_sound_hello_is_taken() -> None:
    found = convert.hello(hello(labels={"site": "Zürich"}))
    assert found.slots == 4


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
