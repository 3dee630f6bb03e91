"""LeaseService: requests to commands, leases to messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from services.credentials.convert.credentials import KIND_NUMBERS, KINDS
from services.credentials.kinds import Kind
from services.credentials.lease_store import EndedAttempt
from services.credentials.leases import Answer, LeasedSecret, LeaseRequest, Reason, Refusal, Use
from services.runtime.errors import InvalidArgument
from services.runtime.fields import Violations, to_duration
from sis.credentials.v1 import credential_pb2, lease_pb2
from sis.credentials.v1 import lease_service_pb2 as service_pb

REQUESTS: Final = 100
ENDS: Final = 1_000
_USES: Final = 1_000
_REASONS: Final = {
    reason: lease_pb2.LeaseRefusalReason.Value(f"LEASE_REFUSAL_REASON_{reason.value}") for reason in Reason
}


def take_leases(request: service_pb.TakeLeasesRequest) -> list[LeaseRequest]:
    """Raises InvalidArgument."""
    if len(request.requests) > REQUESTS:
        raise InvalidArgument.field("requests", f"has more than {REQUESTS:,}; send them in parts")
    wrong = Violations()
    found = [_lease_request(wrong, f"requests[{i}]", each) for i, each in enumerate(request.requests)]
    wrong.refuse()
    return found


def _lease_request(wrong: Violations, field: str, request: service_pb.LeaseRequest) -> LeaseRequest:
    if request.job_id <= 0:
        wrong.add(f"{field}.job_id", "must be positive")
    if request.attempt <= 0:
        wrong.add(f"{field}.attempt", "must be positive")
    wrong.line(f"{field}.agent", request.agent, 63, required=True)
    wrong.line(f"{field}.requester", request.requester, 500)
    if len(request.uses) > _USES:
        wrong.add(f"{field}.uses", f"has {len(request.uses):,}; at most {_USES:,} are taken")
    uses = request.uses[:_USES]
    for i, use in enumerate(uses):
        wrong.line(f"{field}.uses[{i}].ref", use.ref, 200, required=True)
    if len({use.ref for use in uses}) < len(uses):
        wrong.add(f"{field}.uses", "names a ref twice")
    return LeaseRequest(
        request.job_id,
        request.attempt,
        request.agent,
        request.requester,
        tuple(Use(use.ref, use.credential.replace("\0", "\ufffd"), _kinds(use)) for use in uses),
    )


def _kinds(use: lease_pb2.CredentialUse) -> frozenset[Kind] | None:
    # A kind that is not known here permits nothing, rather than everything.
    return frozenset(KINDS[number] for number in use.kinds if number in KINDS) if use.kinds else None


def end_leases(request: service_pb.EndLeasesRequest) -> list[EndedAttempt]:
    """Raises InvalidArgument."""
    if len(request.attempts) > ENDS:
        raise InvalidArgument.field("attempts", f"has more than {ENDS:,}; send them in parts")
    wrong = Violations()
    for i, each in enumerate(request.attempts):
        if each.job_id <= 0:
            wrong.add(f"attempts[{i}].job_id", "must be positive")
        if each.attempt < 0:
            wrong.add(f"attempts[{i}].attempt", "must not be negative")
    wrong.refuse()
    return [EndedAttempt(each.job_id, each.attempt, each.job_over) for each in request.attempts]


def to_result(answer: Answer) -> service_pb.LeaseResult:
    if isinstance(answer, Refusal):
        return service_pb.LeaseResult(refusal=_to_refusal(answer))
    return service_pb.LeaseResult(
        leases=[
            lease_pb2.SealedLease(
                lease_id=str(lease.lease_id),
                ref=lease.ref,
                sealing_key_id=lease.sealing_key_id,
                ciphertext=lease.ciphertext,
            )
            for lease in answer
        ]
    )


def _to_refusal(refusal: Refusal) -> lease_pb2.LeaseRefusal:
    after = None if refusal.retry_after is None else timedelta(seconds=refusal.retry_after)
    return lease_pb2.LeaseRefusal(
        reason=_REASONS[refusal.reason],
        message=refusal.message,
        permanent=refusal.permanent,
        retry_after=to_duration(after),
    )


def leased_secret(secret: LeasedSecret) -> bytes:
    """What is sealed."""
    credential = secret.credential
    return lease_pb2.LeasedSecret(
        credential=credential.name,
        version=credential.version,
        kind=KIND_NUMBERS[credential.kind],
        username=credential.username,
        domain=credential.domain,
        value=credential_pb2.SecretValue(secret=secret.value.secret, passphrase=secret.value.passphrase),
    ).SerializeToString()
