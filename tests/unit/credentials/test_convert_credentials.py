"""CredentialService's messages: every field is checked, and nothing secret is shown."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.credentials.convert import credentials as convert
from services.credentials.credentials import UsagePage
from services.credentials.kinds import Kind
from services.credentials.store import Credential
from services.credentials.tables import State
from services.runtime.errors import InvalidArgument
from services.runtime.paging import InvalidToken
from sis.credentials.v1 import credential_pb2 as pb
from sis.credentials.v1 import credential_service_pb2 as service_pb

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def creation(**changes: Any) -> service_pb.CreateCredentialRequest:
    fields: dict[str, Any] = {
        "name": "web",
        "kind": pb.CREDENTIAL_KIND_TOKEN,
        "value": pb.SecretValue(secret=b"hunter2hunter2", passphrase=b"open sesame"),
        "request_id": "r",
    }
    return service_pb.CreateCredentialRequest(**{**fields, **changes})


def refused(call: Any) -> list[str]:
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert "hunter2" not in str(caught.value)
    return [each.field for each in caught.value.violations]


@pytest.mark.parametrize("name", ["a", "web-1.prod_x", "0", "A" * 63])
def test_good_names_are_taken(name: str) -> None:
    assert convert.create_credential(creation(name=name)).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "_a", "a/b", "a b", "ä", "A" * 64, "a\n", "a\0"])
def test_bad_names_are_refused(name: str) -> None:
    assert refused(lambda: convert.create_credential(creation(name=name))) == ["name"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 0),
        ("kind", 99),
        ("username", "x" * 256),
        ("username", "a\nb"),
        ("domain", "x" * 256),
        ("domain", "a\x00b"),
        ("description", "x" * 501),
        ("description", "a\x1bb"),
        ("request_id", "x" * 65),
        ("request_id", "a\tb"),
    ],
)
def test_every_field_of_a_creation_is_checked(field: str, value: object) -> None:
    assert refused(lambda: convert.create_credential(creation(**{field: value}))) == [field]


def test_all_wrong_fields_are_named_at_once() -> None:
    wrong = creation(name="", kind=0, username="\n", domain="\n", description="\n", request_id="\n")
    assert refused(lambda: convert.create_credential(wrong)) == [
        "name", "kind", "username", "domain", "description", "request_id",
    ]  # fmt: skip


def test_the_fingerprint_is_of_everything_but_the_secret_and_the_id() -> None:
    first = convert.create_credential(creation())
    same = convert.create_credential(creation(value=pb.SecretValue(secret=b"another one"), request_id="s"))
    assert same.fingerprint == first.fingerprint
    for change in ({"name": "x"}, {"description": "x"}, {"for_one_job": True}, {"username": "x"}):
        assert convert.create_credential(creation(**change)).fingerprint != first.fingerprint
    assert b"hunter2" not in first.fingerprint


def test_a_command_does_not_show_its_secret() -> None:
    for shown in (
        repr(convert.create_credential(creation())),
        repr(convert.replace_credential(service_pb.ReplaceCredentialRequest(name="web", value=creation().value))),
    ):
        assert "hunter2" not in shown and "sesame" not in shown


def test_a_replacement_tells_given_from_empty() -> None:
    request = service_pb.ReplaceCredentialRequest(name="web", description="", version=3)
    command = convert.replace_credential(request)
    assert (command.username, command.domain, command.description, command.version) == (None, None, "", 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 64),
        ("username", "x" * 256),
        ("domain", "\n"),
        ("description", "\0"),
        ("version", -1),
    ],
)
def test_every_field_of_a_replacement_is_checked(field: str, value: Any) -> None:
    request = service_pb.ReplaceCredentialRequest(**{"name": "web", field: value})
    assert refused(lambda: convert.replace_credential(request)) == [field]


def test_a_binding_is_checked() -> None:
    assert convert.bind_credential(service_pb.BindCredentialRequest(name="web", job_id=7)) == ("web", 7)
    assert refused(lambda: convert.bind_credential(service_pb.BindCredentialRequest())) == ["name", "job_id"]
    assert refused(lambda: convert.bind_credential(service_pb.BindCredentialRequest(name="w", job_id=-1))) == ["job_id"]


def credential(**changes: Any) -> Credential:
    fields: dict[str, Any] = {
        "credential_id": uuid4(),
        "name": "web",
        "kind": Kind.SSH_KEY,
        "username": "root",
        "domain": "",
        "description": "d",
        "state": State.READY,
        "version": 2,
        "vault_version": 3,
        "intent": None,
        "for_one_job": False,
        "expires_at": None,
        "job_id": None,
        "created_at": NOW,
        "creator": "alice",
        "updated_at": NOW,
        "updater": "",
    }
    return Credential(**{**fields, **changes})


@pytest.mark.parametrize(
    "state", [state for state in pb.CredentialState.DESCRIPTOR.values_by_name if not state.endswith("UNSPECIFIED")]
)
def test_every_state_that_people_see_is_shown(state: str) -> None:
    shown = convert.to_credential(credential(state=State(state.removeprefix("CREDENTIAL_STATE_"))))
    assert shown.state == pb.CredentialState.Value(state)


def test_a_credential_is_shown_whole() -> None:
    shown = convert.to_credential(credential(job_id=7, expires_at=NOW, last_used_at=NOW))
    assert (shown.kind, shown.username, shown.version, shown.job_id) == (pb.CREDENTIAL_KIND_SSH_KEY, "root", 2, 7)
    assert shown.expire_time == shown.last_use_time == shown.create_time
    assert not convert.to_credential(credential()).HasField("last_use_time")


def test_pages_go_on_where_the_last_one_ended() -> None:
    request = service_pb.ListCredentialsRequest(page_size=1)
    page = convert.to_page(request, [credential(name="b")], more=True)
    following = service_pb.ListCredentialsRequest(page_size=1, page_token=page.next_page_token)
    assert convert.list_credentials(following) == (1, "b")
    assert convert.to_page(request, [credential()], more=False).next_page_token == ""
    following.include_for_one_job = True
    with pytest.raises(InvalidToken):
        convert.list_credentials(following)
    assert refused(lambda: convert.list_credentials(service_pb.ListCredentialsRequest(page_size=-1))) == ["page_size"]


def test_pages_of_usage_go_on_where_the_last_one_ended() -> None:
    lease_id = UUID(int=5)
    use = SimpleNamespace(
        lease_id=lease_id, job_id=1, attempt=2, agent="a", ref="admin", requester="alice", version=1, taken_at=NOW,
        ended_at=None,
    )  # fmt: skip
    page = convert.to_usage_page("web", UsagePage([use], True))  # type: ignore[list-item]
    request = service_pb.ListCredentialUsageRequest(name="web", page_token=page.next_page_token)
    assert convert.list_usage(request) == ("web", 50, (NOW, lease_id))
    assert not page.usage[0].HasField("end_time")
    request.name = "other"
    with pytest.raises(InvalidToken):
        convert.list_usage(request)
