"""LeaseService's messages."""

from __future__ import annotations

from typing import Any

import pytest

from services.credentials.convert import leases as convert
from services.credentials.kinds import Kind
from services.credentials.leases import PERMANENT, Reason, Refusal
from services.credentials.vault_errors import VaultError
from services.runtime.errors import InvalidArgument
from sis.credentials.v1 import credential_pb2, lease_pb2
from sis.credentials.v1 import lease_service_pb2 as pb


def request(**changes: Any) -> pb.LeaseRequest:
    fields: dict[str, Any] = {
        "job_id": 1,
        "attempt": 1,
        "agent": "a-1",
        "requester": "alice",
        "uses": [lease_pb2.CredentialUse(ref="admin", credential="web")],
    }
    return pb.LeaseRequest(**{**fields, **changes})


def use(**fields: Any) -> lease_pb2.CredentialUse:
    return lease_pb2.CredentialUse(**{"ref": "admin", "credential": "web", **fields})


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("job_id", 0, "job_id"),
        ("attempt", 0, "attempt"),
        ("agent", "", "agent"),
        ("agent", "x" * 64, "agent"),
        ("requester", "a\0b", "requester"),
        ("uses", [use(ref="")], "uses[0].ref"),
        ("uses", [use(), use()], "uses"),
        ("uses", [use(ref="a\0b")], "uses[0].ref"),
        ("uses", [use(ref=f"r{i}") for i in range(1_001)], "uses"),
    ],
)
def test_every_field_of_a_request_is_checked(field: str, value: Any, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.take_leases(pb.TakeLeasesRequest(requests=[request(), request(**{field: value})]))
    assert [each.field for each in caught.value.violations] == [f"requests[1].{named}"]


def test_a_batch_is_bounded() -> None:
    assert len(convert.take_leases(pb.TakeLeasesRequest(requests=[request()] * 100))) == 100
    with pytest.raises(InvalidArgument):
        convert.take_leases(pb.TakeLeasesRequest(requests=[request()] * 101))
    with pytest.raises(InvalidArgument):
        convert.end_leases(pb.EndLeasesRequest(attempts=[pb.EndedAttempt(job_id=1)] * 1_001))


def test_no_kinds_are_any_kind_and_unknown_ones_are_none() -> None:
    uses = [use(ref="a"), use(ref="b", kinds=[1, 2]), use(ref="c", kinds=[77])]
    (found,) = convert.take_leases(pb.TakeLeasesRequest(requests=[request(uses=uses)]))
    assert [each.kinds for each in found.uses] == [
        None, frozenset({Kind.USERNAME_PASSWORD, Kind.SSH_KEY}), frozenset(),
    ]  # fmt: skip


def test_a_name_that_no_credential_can_have_spoils_nothing() -> None:
    (found,) = convert.take_leases(pb.TakeLeasesRequest(requests=[request(uses=[use(credential="\0" + "x" * 500)])]))
    assert "\0" not in found.uses[0].credential


def test_ends_are_checked() -> None:
    found = convert.end_leases(pb.EndLeasesRequest(attempts=[pb.EndedAttempt(job_id=1, attempt=0, job_over=True)]))
    assert [(each.job_id, each.attempt, each.job_over) for each in found] == [(1, 0, True)]
    with pytest.raises(InvalidArgument) as caught:
        convert.end_leases(pb.EndLeasesRequest(attempts=[pb.EndedAttempt(), pb.EndedAttempt(job_id=1, attempt=-1)]))
    assert [each.field for each in caught.value.violations] == ["attempts[0].job_id", "attempts[1].attempt"]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_told(reason: Reason) -> None:
    refusal = convert.to_result(Refusal(reason, "words", 1.5)).refusal
    assert lease_pb2.LeaseRefusalReason.Name(refusal.reason) == f"LEASE_REFUSAL_REASON_{reason}"
    assert (refusal.message, refusal.permanent) == ("words", reason in PERMANENT)
    assert refusal.retry_after.ToMilliseconds() == 1_500


def test_the_reasons_are_those_of_the_contract_but_for_the_hubs_own() -> None:
    names = {
        name.removeprefix("LEASE_REFUSAL_REASON_") for name in lease_pb2.LeaseRefusalReason.DESCRIPTOR.values_by_name
    }
    assert {reason.value for reason in Reason} == names - {"UNSPECIFIED", "CREDENTIALS_UNREACHABLE"}


def test_every_failure_of_vault_has_a_reason() -> None:
    for kind in VaultError.__subclasses__():
        assert Reason(kind.reason).value == kind.reason


def test_every_kind_is_known() -> None:
    assert len(credential_pb2.CredentialKind.keys()) - 1 == len(Kind)
