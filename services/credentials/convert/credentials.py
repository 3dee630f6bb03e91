"""CredentialService: requests to commands, credentials to messages."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.credentials.credentials import CreateCredential, ReplaceCredential, UsagePage
from services.credentials.kinds import Kind, Secret
from services.credentials.store import Credential
from services.credentials.tables import State
from services.runtime import paging
from services.runtime.fields import Violations, members, numbers, to_timestamp
from sis.credentials.v1 import credential_pb2 as pb
from sis.credentials.v1 import credential_service_pb2 as service_pb

KINDS: Final = members(pb.CredentialKind, "CREDENTIAL_KIND_", Kind)
KIND_NUMBERS: Final = numbers(KINDS)
# The others are never shown.
_STATE_NUMBERS: Final = {
    State.READY: pb.CREDENTIAL_STATE_READY,
    State.PENDING: pb.CREDENTIAL_STATE_PENDING,
    State.VALUE_MISSING: pb.CREDENTIAL_STATE_VALUE_MISSING,
    State.DELETING: pb.CREDENTIAL_STATE_DELETING,
}

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_ACCOUNT: Final = 255
_LONGEST_DESCRIPTION: Final = 500


def create_credential(request: service_pb.CreateCredentialRequest) -> CreateCredential:
    """Raises InvalidArgument."""
    wrong = Violations()
    if not NAME.fullmatch(request.name):
        wrong.add("name", "give 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    kind = wrong.member("kind", request.kind, KINDS)
    wrong.line("username", request.username, _LONGEST_ACCOUNT)
    wrong.line("domain", request.domain, _LONGEST_ACCOUNT)
    wrong.line("description", request.description, _LONGEST_DESCRIPTION)
    wrong.line("request_id", request.request_id, 64)
    wrong.refuse()
    assert kind is not None
    return CreateCredential(
        name=request.name,
        kind=kind,
        username=request.username,
        domain=request.domain,
        description=request.description,
        value=_secret(request.value),
        for_one_job=request.for_one_job,
        request_id=request.request_id,
        fingerprint=_fingerprint(request),
    )


def _fingerprint(request: service_pb.CreateCredentialRequest) -> bytes:
    plain = service_pb.CreateCredentialRequest()
    plain.CopyFrom(request)
    plain.ClearField("value")
    plain.ClearField("request_id")
    return plain.SerializeToString(deterministic=True)


def _secret(value: pb.SecretValue) -> Secret:
    return Secret(value.secret, value.passphrase)


def name(given: str) -> str:
    """Of a credential that is to be there already. Raises InvalidArgument."""
    wrong = Violations()
    wrong.line("name", given, 63, required=True)
    wrong.refuse()
    return given


def replace_credential(request: service_pb.ReplaceCredentialRequest) -> ReplaceCredential:
    """Raises InvalidArgument."""
    wrong = Violations()
    wrong.line("name", request.name, 63, required=True)
    wrong.line("username", request.username, _LONGEST_ACCOUNT)
    wrong.line("domain", request.domain, _LONGEST_ACCOUNT)
    wrong.line("description", request.description, _LONGEST_DESCRIPTION)
    if request.version < 0:
        wrong.add("version", "must not be negative")
    wrong.refuse()
    return ReplaceCredential(
        name=request.name,
        value=_secret(request.value),
        username=request.username if request.HasField("username") else None,
        domain=request.domain if request.HasField("domain") else None,
        description=request.description if request.HasField("description") else None,
        version=request.version,
    )


def bind_credential(request: service_pb.BindCredentialRequest) -> tuple[str, int]:
    """Name and job id. Raises InvalidArgument."""
    wrong = Violations()
    wrong.line("name", request.name, 63, required=True)
    if request.job_id <= 0:
        wrong.add("job_id", "must be positive")
    wrong.refuse()
    return request.name, request.job_id


def list_credentials(request: service_pb.ListCredentialsRequest) -> tuple[int, str]:
    """The size of the page, and the name behind which it begins. Raises InvalidArgument, InvalidToken."""
    size = _page_size(request.page_size)
    if not request.page_token:
        return size, ""
    return size, str(paging.decode(request.page_token, _list_bound(request), "page_token", (str,))[0])


def to_page(
    request: service_pb.ListCredentialsRequest, found: list[Credential], *, more: bool
) -> service_pb.ListCredentialsResponse:
    return service_pb.ListCredentialsResponse(
        credentials=map(to_credential, found),
        next_page_token=paging.encode([found[-1].name], _list_bound(request)) if more else "",
    )


def _list_bound(request: service_pb.ListCredentialsRequest) -> bytes:
    return b"credentials %d" % request.include_for_one_job


def list_usage(request: service_pb.ListCredentialUsageRequest) -> tuple[str, int, tuple[datetime, UUID] | None]:
    """The name, the size of the page, and where it begins. Raises InvalidArgument, InvalidToken."""
    wanted, size = name(request.name), _page_size(request.page_size)
    if not request.page_token:
        return wanted, size, None
    at, lease_id = paging.decode(request.page_token, _usage_bound(wanted), "page_token", (int, str))
    try:
        return wanted, size, (_EPOCH + timedelta(microseconds=int(str(at))), UUID(str(lease_id)))
    except (ValueError, OverflowError):
        raise paging.InvalidToken("page_token") from None


def to_usage_page(wanted: str, page: UsagePage) -> service_pb.ListCredentialUsageResponse:
    token = ""
    if page.more:
        last = page.uses[-1]
        microseconds = (last.taken_at - _EPOCH) // timedelta(microseconds=1)
        token = paging.encode([microseconds, str(last.lease_id)], _usage_bound(wanted))
    return service_pb.ListCredentialUsageResponse(
        usage=[
            pb.CredentialUsage(
                job_id=each.job_id,
                attempt=each.attempt,
                agent=each.agent,
                ref=each.ref,
                requester=each.requester,
                version=each.version,
                take_time=to_timestamp(each.taken_at),
                end_time=to_timestamp(each.ended_at),
            )
            for each in page.uses
        ],
        next_page_token=token,
    )


def _usage_bound(wanted: str) -> bytes:
    return b"usage " + wanted.encode()


def _page_size(size: int) -> int:
    wrong = Violations()
    found = wrong.page_size(size)
    wrong.refuse()
    return found


def to_credential(found: Credential) -> pb.Credential:
    return pb.Credential(
        name=found.name,
        kind=KIND_NUMBERS[found.kind],
        username=found.username,
        domain=found.domain,
        description=found.description,
        version=found.version,
        state=_STATE_NUMBERS[found.state],
        expire_time=to_timestamp(found.expires_at),
        job_id=found.job_id or 0,
        create_time=to_timestamp(found.created_at),
        update_time=to_timestamp(found.updated_at),
        creator=found.creator,
        updater=found.updater,
        last_use_time=to_timestamp(found.last_used_at),
    )
