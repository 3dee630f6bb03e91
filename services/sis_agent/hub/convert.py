"""Messages of agents and of people, checked, to what the hub works with, and back. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from datetime import datetime

from google.protobuf import timestamp_pb2

from services.runtime.errors import FieldViolation, InvalidArgument
from services.sis_agent.hub.errors import InvalidToken
from services.sis_agent.hub.registry import Agent, ListAgents
from services.sis_agent.hub.slots import AttemptKey
from sis.agent.v1 import agent_admin_service_pb2 as admin
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue

SLOTS = 1_000
ATTEMPTS = 1_000
LABELS = 32
LABEL_KEY_CHARACTERS = 63
LABEL_VALUE_CHARACTERS = 200
PAGE_SIZE, LARGEST_PAGE = 50, 1_000

_TEXT_CHARACTERS = {"version": 100, "boot_id": 100, "journal_id": 100, "platform": 100, "hostname": 255}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TOKEN_CHARACTERS = 500


def hello(first: stream.ConnectRequest | None) -> queue.AgentHello:
    """The hello in the first message of a stream.

    Raises:
        InvalidArgument: there is none, or a field of it is wrong.
    """
    if first is None or first.WhichOneof("content") != "hello":
        raise InvalidArgument.field("hello", "is required: send it as the first message of the stream")
    found = first.hello
    violations: list[FieldViolation] = []

    def refuse(field: str, description: str) -> None:
        violations.append(FieldViolation(f"hello.{field}", description))

    for field, longest in _TEXT_CHARACTERS.items():
        _check_line(refuse, field, getattr(found, field), longest)
    if not found.journal_id:
        refuse("journal_id", "is required: it names the agent's journal")
    if found.record_number < 0:
        refuse("record_number", "must not be negative")
    if not 1 <= found.slots <= SLOTS:
        refuse("slots", f"must be between 1 and {SLOTS:,}")
    if len(found.attempts) > ATTEMPTS:
        refuse("attempts", f"has {len(found.attempts):,} attempts; at most {ATTEMPTS:,} are taken")
    elif any(a.attempt.job_id < 1 or a.attempt.number < 1 for a in found.attempts):
        refuse("attempts", "must each have a job id and a number from 1 on")
    if len(found.labels) > LABELS:
        refuse("labels", f"has {len(found.labels)} labels; at most {LABELS} are taken")
    else:
        for key, value in sorted(found.labels.items()):
            if not key:
                refuse("labels", "has a label without a key; name it")
            _check_line(refuse, "labels", key, LABEL_KEY_CHARACTERS)
            _check_line(refuse, f"labels[{key[:LABEL_KEY_CHARACTERS]!r}]", value, LABEL_VALUE_CHARACTERS)
    if violations:
        raise InvalidArgument.fields(violations[:20])
    return found


def attempt_key(attempt: queue.Attempt) -> AttemptKey:
    return AttemptKey(attempt.job_id, attempt.number)


def fetch_package(request: stream.FetchPackageRequest) -> tuple[str, int]:
    """Digest and offset. Raises InvalidArgument."""
    if not _DIGEST.fullmatch(request.digest):
        raise InvalidArgument.field("digest", "must be a SHA-256 in lower-case hexadecimal")
    if request.offset < 0:
        raise InvalidArgument.field("offset", "must not be negative")
    return request.digest, request.offset


def list_agents(request: admin.ListAgentsRequest) -> ListAgents:
    """A page of agents. Raises InvalidArgument."""
    violations: list[FieldViolation] = []
    if request.page_size < 0:
        violations.append(FieldViolation("page_size", "must not be negative"))
    _check_line(lambda field, why: violations.append(FieldViolation(field, why)), "group", request.group, 63)
    if violations:
        raise InvalidArgument.fields(violations)
    return ListAgents(
        page_size=min(request.page_size or PAGE_SIZE, LARGEST_PAGE),
        after=_position(request.page_token, request.group) if request.page_token else "",
        agent_group=request.group,
    )


def agent_name(request: admin.GetAgentRequest) -> str:
    """Raises InvalidArgument."""
    if not request.name:
        raise InvalidArgument.field("name", "is required: give the name of an agent")
    if len(request.name) > 63 or _CONTROL.search(request.name):
        raise InvalidArgument.field("name", "is no name of an agent: up to 63 letters, digits, '.', '_', '-'")
    return request.name


def _check_line(refuse: Callable[[str, str], None], field: str, value: str, longest: int) -> None:
    if len(value) > longest:
        refuse(field, f"has {len(value):,} characters; at most {longest} are taken")
    elif _CONTROL.search(value):
        refuse(field, "has control characters; remove them")


def page_token(after: str, agent_group: str) -> str:
    """Where the next page begins, bound to what was asked for (AIP-158)."""
    raw = json.dumps([_bound(agent_group), after], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _position(token: str, agent_group: str) -> str:
    try:
        if len(token) > _TOKEN_CHARACTERS:
            raise ValueError
        match json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)):
            case [bound, str(after)] if bound == _bound(agent_group) and "\0" not in after:
                return after
            case _:
                raise ValueError
    except (ValueError, RecursionError):
        raise InvalidToken("page_token") from None


def _bound(agent_group: str) -> str:
    return hashlib.sha256(f"ListAgents {agent_group}".encode()).hexdigest()[:16]


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
        first_seen_time=_timestamp(agent.first_seen_at),
        connect_time=_timestamp(agent.connected_at),
        last_seen_time=_timestamp(agent.last_seen_at),
    )


def _timestamp(time: datetime) -> timestamp_pb2.Timestamp:
    found = timestamp_pb2.Timestamp()
    found.FromDatetime(time)
    return found
