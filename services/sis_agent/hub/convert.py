"""Messages of agents and of people, checked, to what the hub works with, and back. Pure."""

from __future__ import annotations

import re
from datetime import UTC

from services.runtime import paging
from services.runtime.errors import Internal, InvalidArgument
from services.runtime.fields import Violations, to_timestamp
from services.sis_agent.hub.registry import Agent, ListAgents
from services.sis_agent.hub.slots import AttemptKey
from services.sis_agent.hub.store import Revocation
from sis.agent.v1 import agent_admin_service_pb2 as admin
from sis.agent.v1 import agent_service_pb2 as stream
from sis.agent.v1 import enrolment_service_pb2 as enrolment
from sis.credentials.v1 import certificate_service_pb2 as certificates
from sis.queue.v1 import dispatch_service_pb2 as queue

SLOTS = 1_000
ATTEMPTS = 1_000
RESUME_SECRET_BYTES = 32
KEYS_BYTES = 8_192
SIGNATURE_BYTES = 200
MAC_BYTES = 32

_TEXT_CHARACTERS = {"version": 100, "boot_id": 100, "journal_id": 100, "platform": 100, "hostname": 255}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PAIRING_ID = re.compile(r"[a-z2-7]{8}")
_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def hello(first: stream.ConnectRequest | None) -> tuple[queue.AgentHello, bytes]:
    """The hello in the first message of a stream, and the resume secret that is shown with it.

    Raises:
        InvalidArgument: there is none, or a field of it is wrong.
    """
    if first is None or first.WhichOneof("content") != "hello":
        raise InvalidArgument.field("hello", "is required: send it as the first message of the stream")
    found = first.hello
    wrong = Violations()
    for field, longest in _TEXT_CHARACTERS.items():
        wrong.line(f"hello.{field}", getattr(found, field), longest, required=field == "journal_id")
    if found.record_number < 0:
        wrong.add("hello.record_number", "must not be negative")
    if not 1 <= found.slots <= SLOTS:
        wrong.add("hello.slots", f"must be between 1 and {SLOTS:,}")
    if len(found.attempts) > ATTEMPTS:
        wrong.add("hello.attempts", f"has {len(found.attempts):,} attempts; at most {ATTEMPTS:,} are taken")
    elif any(a.attempt.job_id < 1 or a.attempt.number < 1 for a in found.attempts):
        wrong.add("hello.attempts", "must each have a job id and a number from 1 on")
    wrong.labels("hello.labels", found.labels)
    if len(first.resume_secret) not in (0, RESUME_SECRET_BYTES):
        wrong.add("resume_secret", f"must be the {RESUME_SECRET_BYTES} bytes that a welcome offered, or nothing")
    wrong.refuse()
    return found, first.resume_secret


def beat(found: stream.Beat) -> list[AttemptKey]:
    """What an agent says that it has in hand.

    Raises:
        InvalidArgument: it is more than a hello may name, or what no attempt can be.
    """
    # The heartbeats of all sessions go to the queue as one message: what one agent says must leave room for the others.
    if len(found.attempts) > ATTEMPTS:
        raise InvalidArgument.field(
            "beat.attempts", f"has {len(found.attempts):,} attempts; at most {ATTEMPTS:,} are taken"
        )
    if any(each.job_id < 1 or each.number < 1 for each in found.attempts):
        raise InvalidArgument.field("beat.attempts", "must each have a job id and a number from 1 on")
    return [attempt_key(each) for each in found.attempts]


def attempt_key(attempt: queue.Attempt) -> AttemptKey:
    return AttemptKey(attempt.job_id, attempt.number)


def enrol(request: enrolment.EnrolRequest, origin: str) -> certificates.EnrolAgentRequest:
    """What the credential service is asked. Raises InvalidArgument."""
    wrong = Violations()
    if not _PAIRING_ID.fullmatch(request.pairing_id):
        wrong.add("pairing_id", "is none: it is the second part of a pairing code")
    _size(wrong, "keys", request.keys, KEYS_BYTES)
    if len(request.mac) != MAC_BYTES:
        wrong.add("mac", f"must have {MAC_BYTES} bytes")
    wrong.refuse()
    return certificates.EnrolAgentRequest(
        pairing_id=request.pairing_id, keys=request.keys, mac=request.mac, origin=origin
    )


def rejoin(request: enrolment.RejoinRequest) -> certificates.RenewAgentCertificateRequest:
    """What the credential service is asked. Raises InvalidArgument."""
    return _renewal(request.agent, request.keys, request.signature)


def certificate_request(agent: str, request: stream.CertificateRequest) -> certificates.RenewAgentCertificateRequest:
    """What the credential service is asked for an agent that has proven its name. Raises InvalidArgument."""
    return _renewal(agent, request.keys, request.signature)


def _renewal(agent: str, keys: bytes, signature: bytes) -> certificates.RenewAgentCertificateRequest:
    wrong = Violations()
    if not _AGENT.fullmatch(agent):
        wrong.add("agent", "is no name of an agent: up to 63 letters, digits, '.', '_', '-'")
    _size(wrong, "keys", keys, KEYS_BYTES)
    _size(wrong, "signature", signature, SIGNATURE_BYTES)
    wrong.refuse()
    return certificates.RenewAgentCertificateRequest(agent=agent, keys=keys, signature=signature)


def _size(wrong: Violations, field: str, value: bytes, largest: int) -> None:
    if not 1 <= len(value) <= largest:
        wrong.add(field, f"must have 1 to {largest:,} bytes")


def revocations(response: certificates.WatchRevocationsResponse) -> list[Revocation]:
    """Serials as `AgentCertificate` has them. Raises Internal."""
    try:
        return [
            Revocation(f"{int(each.serial, 16):x}", each.agent, each.not_after.ToDatetime(UTC))
            for each in response.revocations
        ]
    except ValueError:
        raise Internal("the credential service tells of a revocation that cannot be read") from None


def fetch_package(request: stream.FetchPackageRequest) -> tuple[str, int]:
    """Digest and offset. Raises InvalidArgument."""
    if not _DIGEST.fullmatch(request.digest):
        raise InvalidArgument.field("digest", "must be a SHA-256 in lower-case hexadecimal")
    if request.offset < 0:
        raise InvalidArgument.field("offset", "must not be negative")
    return request.digest, request.offset


def list_agents(request: admin.ListAgentsRequest) -> ListAgents:
    """A page of agents. Raises InvalidArgument."""
    wrong = Violations()
    size = wrong.page_size(request.page_size)
    wrong.line("group", request.group, 63)
    wrong.refuse()
    after = ""
    if request.page_token:
        (after,) = map(str, paging.decode(request.page_token, _bound(request.group), "page_token", (str,)))
    return ListAgents(page_size=size, after=after, agent_group=request.group)


def agent_name(request: admin.GetAgentRequest) -> str:
    """Raises InvalidArgument."""
    if not request.name:
        raise InvalidArgument.field("name", "is required: give the name of an agent")
    if len(request.name) > 63 or _CONTROL.search(request.name):
        raise InvalidArgument.field("name", "is no name of an agent: up to 63 letters, digits, '.', '_', '-'")
    return request.name


def page_token(after: str, agent_group: str) -> str:
    """Where the next page begins."""
    return paging.encode([after], _bound(agent_group))


def _bound(agent_group: str) -> bytes:
    return f"agents {agent_group}".encode()


def agent_to_proto(agent: Agent) -> admin.Agent:
    return admin.Agent(
        name=agent.name,
        group=agent.agent_group,
        online=agent.online,
        draining=agent.draining,
        version=agent.version,
        platform=agent.platform,
        hostname=agent.hostname,
        slots=agent.slots,
        attempts=[queue.Attempt(job_id=job_id, number=number) for job_id, number in agent.attempts],
        labels=agent.labels,
        hub=agent.hub,
        first_seen_time=to_timestamp(agent.first_seen_at),
        connect_time=to_timestamp(agent.connected_at),
        last_seen_time=to_timestamp(agent.last_seen_at),
        quarantine_time=to_timestamp(agent.quarantined_at),
    )
