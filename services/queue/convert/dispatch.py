"""DispatchService: what hubs and agents say, to commands; assignments and verdicts, to messages."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from services.queue.convert import parameters
from services.queue.convert.packages import CREDENTIAL_KIND_NUMBERS
from services.queue.dispatch import LOG_CAP_BYTES, Assignment, Capacity
from services.queue.errors import MalformedFrame
from services.queue.frames import (
    Channel,
    Fact,
    Finished,
    Frame,
    Outcome,
    PayloadEnded,
    ProcessExited,
    ProcessSignalled,
    ProcessStarted,
    Progress,
    Severity,
    StopBegun,
    StopKind,
)
from services.queue.model import FOR_GOOD, LeaseEnd, LeaseRefusal, RefusalReason
from services.queue.reports import Accepted, Declined, Report, Result
from services.queue.sessions import Answer, AttemptKey, Heartbeat, OpenSession, Session, Stop, Verdict, Welcome
from services.runtime.errors import InvalidArgument, to_status
from services.runtime.fields import Violations, members, numbers, to_duration, to_timestamp
from sis.credentials.v1 import lease_pb2, lease_service_pb2
from sis.packages import platforms
from sis.queue.v1 import dispatch_service_pb2, frame_pb2, job_pb2

CHANNELS = members(job_pb2.Channel, "CHANNEL_", Channel)
STOP_KINDS = members(frame_pb2.StopKind, "STOP_KIND_", StopKind)
OUTCOMES = members(frame_pb2.Outcome, "OUTCOME_", Outcome)
VERDICTS = members(dispatch_service_pb2.Verdict, "VERDICT_", Verdict)
REFUSALS = members(lease_pb2.LeaseRefusalReason, "LEASE_REFUSAL_REASON_", RefusalReason)
_STOP_NUMBERS = numbers(STOP_KINDS)
_VERDICT_NUMBERS = numbers(VERDICTS)

CHUNK_BYTES = 64 * 1024
_TEXT_CHARACTERS = 4_000
_OUTPUTS = 200
REPORTS = 5_000
"""More reports than this in one call are refused."""
LEASE_ENDS = 1_000
"""As many are acknowledged in one call at the most."""
_LONGEST_RETRY_SECONDS = 3_600


def session(message: dispatch_service_pb2.Session) -> Session:
    """Raises InvalidArgument."""
    if not message.agent or "\0" in message.agent or message.epoch <= 0:
        raise InvalidArgument.field("session", "needs agent and epoch")
    return Session(message.agent, message.epoch)


def hub(request: dispatch_service_pb2.WatchRequest) -> str:
    """The name of the hub that watches. Raises InvalidArgument."""
    wrong = Violations()
    wrong.line("hub", request.hub, 63, required=True)
    wrong.refuse()
    return request.hub


def _key(message: dispatch_service_pb2.Attempt) -> AttemptKey:
    return AttemptKey(message.job_id, message.number)


def open_session(request: dispatch_service_pb2.OpenSessionRequest) -> OpenSession:
    """Raises InvalidArgument."""
    wrong = Violations()
    hello = request.hello
    wrong.line("agent.name", request.agent.name, 63, required=True)
    wrong.line("agent.group", request.agent.group, 63, required=True)
    wrong.line("hub", request.hub, 63, required=True)
    wrong.line("hello.journal_id", hello.journal_id, 100, required=True)
    wrong.line("hello.hostname", hello.hostname, 255)
    wrong.line("hello.platform", hello.platform, 100)
    if not 1 <= hello.slots <= 1_000:
        wrong.add("hello.slots", "must be between 1 and 1,000")
    if hello.record_number < 0:
        wrong.add("hello.record_number", "must not be negative")
    if len(hello.attempts) > 2_000:
        wrong.add("hello.attempts", "has more than 2,000 attempts")
    wrong.refuse()
    return OpenSession(
        agent=request.agent.name,
        group=request.agent.group,
        hub=request.hub,
        journal_id=hello.journal_id,
        record_number=hello.record_number,
        hostname=hello.hostname,
        slots=hello.slots,
        draining=hello.draining,
        platform=platforms.name(hello.platform),
        in_hand=frozenset(_key(a.attempt) for a in hello.attempts),
    )


def to_welcome(welcome: Welcome) -> dispatch_service_pb2.OpenSessionResponse:
    return dispatch_service_pb2.OpenSessionResponse(
        epoch=welcome.epoch,
        verdicts=[
            dispatch_service_pb2.AttemptVerdict(
                attempt=_attempt(key), verdict=_VERDICT_NUMBERS[verdict], acknowledged_sequence=sequence
            )
            for key, verdict, sequence in welcome.verdicts
        ],
        assignments=[to_assignment(a) for a in welcome.redelivered],
        stops=[_stop(stop) for stop in welcome.stops],
    )


def _attempt(key: AttemptKey) -> dispatch_service_pb2.Attempt:
    return dispatch_service_pb2.Attempt(job_id=key.job_id, number=key.number)


def _session(found: Session) -> dispatch_service_pb2.Session:
    return dispatch_service_pb2.Session(agent=found.agent, epoch=found.epoch)


def _stop(stop: Stop) -> dispatch_service_pb2.StopCommand:
    return dispatch_service_pb2.StopCommand(
        attempt=_attempt(stop.attempt), kind=_STOP_NUMBERS[stop.kind], reason=stop.reason
    )


def to_watch(stops: Iterable[Stop]) -> dispatch_service_pb2.WatchResponse:
    return dispatch_service_pb2.WatchResponse(stops=_stops(stops))


def _stops(stops: Iterable[Stop]) -> list[dispatch_service_pb2.AgentStop]:
    return [dispatch_service_pb2.AgentStop(session=_session(s.session), stop=_stop(s)) for s in stops]


def to_lease_ends(ends: Iterable[LeaseEnd]) -> dispatch_service_pb2.WatchResponse:
    return dispatch_service_pb2.WatchResponse(
        lease_ends=[
            lease_service_pb2.EndedAttempt(job_id=e.job_id, attempt=e.attempt, job_over=e.job_over) for e in ends
        ]
    )


def lease_ends(request: dispatch_service_pb2.AcknowledgeLeaseEndsRequest) -> list[LeaseEnd]:
    """Raises InvalidArgument."""
    if len(request.lease_ends) > LEASE_ENDS:
        raise InvalidArgument.field("lease_ends", f"has more than {LEASE_ENDS:,}; acknowledge them in parts")
    return [LeaseEnd(e.job_id, e.attempt, e.job_over) for e in request.lease_ends]


def to_assignment(assignment: Assignment) -> dispatch_service_pb2.Assignment:
    return dispatch_service_pb2.Assignment(
        attempt=dispatch_service_pb2.Attempt(job_id=assignment.job_id, number=assignment.attempt),
        display_name=assignment.display_name,
        package=job_pb2.PackageReference(
            name=assignment.package_name, version=assignment.package_version, digest=assignment.package_digest
        ),
        operation=assignment.operation,
        run_timeout=to_duration(assignment.run_timeout),
        cancel_grace=to_duration(assignment.cancel_grace),
        start_timeout=to_duration(assignment.start_timeout),
        output_timeout=to_duration(assignment.output_timeout),
        log_cap_bytes=LOG_CAP_BYTES,
        claim_time=to_timestamp(assignment.claimed_at),
        credentials=[
            lease_pb2.CredentialUse(
                ref=use.ref, credential=use.credential, kinds=[CREDENTIAL_KIND_NUMBERS[k] for k in use.kinds]
            )
            for use in assignment.credentials
        ],
        requester=assignment.requester,
        traceparent=assignment.trace_context,
        parameters=parameters.whole(assignment.parameters, assignment.credentials),
    )


def to_agent_assignments(
    assignments: Iterable[tuple[str, Assignment]],
) -> list[dispatch_service_pb2.AgentAssignment]:
    return [
        dispatch_service_pb2.AgentAssignment(agent=agent, assignment=to_assignment(assignment))
        for agent, assignment in assignments
    ]


def capacities(request: dispatch_service_pb2.ClaimRequest) -> list[Capacity]:
    """Raises InvalidArgument."""
    if len(request.capacities) > 10_000:
        raise InvalidArgument.field("capacities", "has more than 10,000 agents; claim in parts")
    found = []
    for capacity in request.capacities:
        of = session(capacity.session)
        found.append(Capacity(of.agent, of.epoch, capacity.free_slots))
    return found


def to_claims(
    assignments: Iterable[tuple[str, Assignment]], stale: Iterable[Capacity]
) -> dispatch_service_pb2.ClaimResponse:
    return dispatch_service_pb2.ClaimResponse(
        assignments=to_agent_assignments(assignments),
        stale_sessions=[_session(Session(c.agent, c.epoch)) for c in stale],
    )


def heartbeats(request: dispatch_service_pb2.HeartbeatRequest) -> list[Heartbeat]:
    """Raises InvalidArgument."""
    if len(request.heartbeats) > 10_000:
        raise InvalidArgument.field("heartbeats", "has more than 10,000 sessions; send them in parts")
    return [
        Heartbeat(session(h.session), frozenset(_key(a) for a in h.attempts), h.draining) for h in request.heartbeats
    ]


def to_heartbeat_response(answer: Answer) -> dispatch_service_pb2.HeartbeatResponse:
    return dispatch_service_pb2.HeartbeatResponse(
        stale_sessions=[_session(s) for s in answer.stale],
        assignments=to_agent_assignments(answer.undelivered),
        stops=_stops(answer.stops),
    )


def report(message: dispatch_service_pb2.AttemptReport) -> Report:
    """Raises InvalidArgument or MalformedFrame: for this report alone."""
    of, key = session(message.session), _key(message.attempt)
    match message.WhichOneof("content"):
        case "accepted":
            return Report(of, key, Accepted())
        case "declined":
            return Report(of, key, Declined(_clean(message.declined.reason)))
        case "frames":
            return Report(of, key, _frames(key, message.frames.frames))
        case "lease_refused":
            return Report(of, key, _refusal(message.lease_refused))
        case _:
            raise InvalidArgument.field("content", "is required: accepted, declined, frames or lease_refused")


def _refusal(message: lease_pb2.LeaseRefusal) -> LeaseRefusal:
    wrong = Violations()
    reason = wrong.member("lease_refused.reason", message.reason, REFUSALS)
    if reason is RefusalReason.ATTEMPT_ENDED:
        wrong.add("lease_refused.reason", "is not for the queue, which knows: say nothing, and do not deliver it")
    wrong.refuse()
    assert reason is not None
    return LeaseRefusal(
        reason,
        _clean(message.message) or reason.value.replace("_", " ").lower(),
        message.permanent or reason in FOR_GOOD,
        timedelta(seconds=max(0, min(message.retry_after.seconds, _LONGEST_RETRY_SECONDS))),
    )


def _frames(key: AttemptKey, bodies: Iterable[bytes]) -> tuple[Frame, ...]:
    found: list[Frame] = []
    for body in bodies:
        try:
            message = frame_pb2.Frame.FromString(body)
        except DecodeError:
            raise MalformedFrame(key.job_id, key.number, "a frame is not a message") from None
        frame = _frame(key, message, body)
        if found and frame.sequence != found[-1].sequence + 1:
            raise MalformedFrame(key.job_id, key.number, "the sequences of a batch are not consecutive")
        found.append(frame)
    if not found:
        raise MalformedFrame(key.job_id, key.number, "a batch has no frames")
    return tuple(found)


def _frame(key: AttemptKey, message: frame_pb2.Frame, body: bytes) -> Frame:
    if message.sequence <= 0:
        raise MalformedFrame(key.job_id, key.number, "a sequence begins with 1")
    try:
        if not 0 <= message.time.nanos < 1_000_000_000:
            raise ValueError
        at = datetime.fromtimestamp(message.time.seconds, UTC) + timedelta(microseconds=message.time.nanos // 1000)
    except (ValueError, OverflowError, OSError):
        raise MalformedFrame(key.job_id, key.number, "a frame has no time") from None
    match message.WhichOneof("content"):
        case "chunk":
            channel = CHANNELS.get(message.chunk.channel)
            if channel not in (Channel.STDOUT, Channel.STDERR):
                raise MalformedFrame(key.job_id, key.number, "a chunk is of no output channel")
            if len(message.chunk.data) > CHUNK_BYTES:
                raise MalformedFrame(key.job_id, key.number, f"a chunk has more than {CHUNK_BYTES} bytes")
            size = len(message.chunk.data)
            return Frame(message.sequence, at, channel, Severity.NONE, body, size, None)
        case "notice":
            if message.notice.severity not in (1, 2, 3, 4):
                raise MalformedFrame(key.job_id, key.number, "a notice has no known severity")
            severity = Severity(message.notice.severity)
            channel = Channel.DEBUG if severity is Severity.DEBUG else Channel.SYSTEM
            fact = _fact(key, message.notice)
            return Frame(message.sequence, at, channel, severity, body, 0, fact)
        case _:
            raise MalformedFrame(key.job_id, key.number, "a frame has no content")


def _fact(key: AttemptKey, notice: frame_pb2.Notice) -> Fact | None:
    match notice.WhichOneof("fact"):
        case "process_started":
            process = notice.process_started.process
            payload = process.role == job_pb2.PROCESS_ROLE_PAYLOAD
            return ProcessStarted(process.pid, payload, _plain(key, process))
        case "process_signalled":
            return ProcessSignalled(notice.process_signalled.pid, _clean(notice.process_signalled.signal))
        case "process_exited":
            exited = notice.process_exited
            code = exited.exit_code if exited.HasField("exit_code") else None
            return ProcessExited(exited.pid, code, _clean(exited.signal))
        case "progress":
            return Progress(max(0, min(notice.progress.percent, 100)), _clean(notice.progress.text))
        case "payload_ended":
            ended = notice.payload_ended
            return PayloadEnded(ended.exit_code if ended.HasField("exit_code") else None)
        case "stop_begun":
            kind = STOP_KINDS.get(notice.stop_begun.kind)
            if kind is None:
                raise MalformedFrame(key.job_id, key.number, "a stop is of no known kind")
            return StopBegun(kind, _clean(notice.stop_begun.reason or notice.text))
        case "finished":
            return _finished(key, notice)
        case _:
            return None


def _finished(key: AttemptKey, notice: frame_pb2.Notice) -> Finished:
    message = notice.finished
    outcome = OUTCOMES.get(message.outcome)
    if outcome is None:
        raise MalformedFrame(key.job_id, key.number, "the end is of no known outcome")
    if len(message.outputs) > _OUTPUTS:
        raise MalformedFrame(key.job_id, key.number, f"more than {_OUTPUTS} output parameters")
    return Finished(
        outcome=outcome,
        failure_reason=_clean(message.failure_reason),
        message=_clean(notice.text),
        result_code=message.result_code if message.HasField("result_code") else None,
        outputs={_clean(o.name): o.value.replace("\0", "\ufffd") for o in message.outputs},
        tree_empty=message.evidence.tree_empty,
        evidence=_plain(key, message.evidence),
        digest=message.digest,
        discarded_bytes=max(0, message.discarded_bytes),
        output_cut=message.output_cut,
    )


def _clean(text: str) -> str:
    """A text from a site as the database takes it; what is too long is cut, for it is only shown."""
    return text[:_TEXT_CHARACTERS].replace("\0", "\ufffd")


def _plain(key: AttemptKey, message: job_pb2.Process | job_pb2.StopEvidence) -> dict[str, object]:
    try:
        return _without_nul(json_format.MessageToDict(message))  # type: ignore[return-value]
    except json_format.SerializeToJsonError:
        raise MalformedFrame(key.job_id, key.number, "a time in a fact is none between the years 1 and 9999") from None


def _without_nul(value: object) -> object:
    match value:
        case str():
            return value.replace("\0", "\ufffd")
        case dict():
            return {k: _without_nul(v) for k, v in value.items()}
        case list():
            return [_without_nul(v) for v in value]
        case _:
            return value


def to_result(result: Result) -> dispatch_service_pb2.ReportResult:
    return dispatch_service_pb2.ReportResult(
        acknowledged_sequence=result.acknowledged_sequence,
        sealed=result.sealed,
        error=None if result.error is None else to_status(result.error),
    )
