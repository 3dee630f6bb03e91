"""What sites send: a frame that cannot be read is refused by itself, a text is taken in a form that can be stored."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.queue.convert import dispatch as convert
from services.queue.errors import MalformedFrame
from services.queue.frames import Channel, Finished, PayloadEnded, ProcessExited, ProcessStarted, Progress, Severity
from services.queue.model import FOR_GOOD, LeaseEnd, LeaseRefusal, RefusalReason
from services.queue.reports import Accepted, Declined
from services.runtime.errors import InvalidArgument, SisError
from sis.credentials.v1 import lease_pb2
from sis.queue.v1 import dispatch_service_pb2 as pb
from sis.queue.v1 import frame_pb2, job_pb2
from tests.support.frames import Spool, read_frames

NUL = "a\0b"


def hello(**changes: Any) -> pb.OpenSessionRequest:
    found = pb.OpenSessionRequest(hub="hub-1")
    found.agent.name, found.agent.group = "a-1", "local"
    found.hello.journal_id, found.hello.slots = "journal", 8
    found.hello.MergeFrom(pb.AgentHello(**changes))
    return found


def report(**content: Any) -> pb.AttemptReport:
    return pb.AttemptReport(session=pb.Session(agent="a-1", epoch=1), attempt=pb.Attempt(job_id=4, number=2), **content)


def test_a_hello_is_read_whole() -> None:
    request = hello(record_number=5, draining=True, hostname="h")
    request.hello.attempts.add(attempt=pb.Attempt(job_id=4, number=2), acknowledged_sequence=9)
    found = convert.open_session(request)
    assert (found.agent, found.group, found.hub, found.record_number) == ("a-1", "local", "hub-1", 5)
    assert found.draining and [(k.job_id, k.number) for k in found.in_hand] == [(4, 2)]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("agent.name", lambda r: setattr(r.agent, "name", "")),
        ("agent.name", lambda r: setattr(r.agent, "name", NUL)),
        ("agent.group", lambda r: setattr(r.agent, "group", "x" * 64)),
        ("hub", lambda r: setattr(r, "hub", "")),
        ("hello.journal_id", lambda r: setattr(r.hello, "journal_id", "")),
        ("hello.hostname", lambda r: setattr(r.hello, "hostname", NUL)),
        ("hello.slots", lambda r: setattr(r.hello, "slots", 0)),
        ("hello.slots", lambda r: setattr(r.hello, "slots", 1_001)),
        ("hello.record_number", lambda r: setattr(r.hello, "record_number", -1)),
        ("hello.attempts", lambda r: [r.hello.attempts.add() for _ in range(2_001)]),
    ],
)
def test_a_wrong_field_of_a_hello_is_named(field: str, change: Callable[[Any], object]) -> None:
    request = hello()
    change(request)
    with pytest.raises(InvalidArgument) as caught:
        convert.open_session(request)
    assert [v.field for v in caught.value.violations] == [field]


@pytest.mark.parametrize(
    "session", [pb.Session(), pb.Session(agent="a"), pb.Session(epoch=1), pb.Session(agent=NUL, epoch=1)]
)
def test_a_session_that_can_be_nobodys_is_refused(session: pb.Session) -> None:
    for call in (
        lambda: convert.session(session),
        lambda: convert.capacities(pb.ClaimRequest(capacities=[pb.Capacity(session=session)])),
        lambda: convert.heartbeats(pb.HeartbeatRequest(heartbeats=[pb.SessionHeartbeat(session=session)])),
        lambda: convert.report(pb.AttemptReport(session=session, accepted=pb.Accepted())),
    ):
        with pytest.raises(InvalidArgument, match="session"):
            call()


def test_a_report_without_content_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="content"):
        convert.report(report())


def test_acceptance_and_decline_are_read() -> None:
    assert convert.report(report(accepted=pb.Accepted())).content == Accepted()
    assert convert.report(report(declined=pb.Declined(reason=NUL))).content == Declined("a\ufffdb")


def refused(**fields: Any) -> pb.AttemptReport:
    return report(lease_refused=lease_pb2.LeaseRefusal(**fields))


@pytest.mark.parametrize("reason", sorted(set(RefusalReason) - {RefusalReason.ATTEMPT_ENDED}))
def test_a_refusal_of_leases_is_read(reason: RefusalReason) -> None:
    found = convert.report(refused(reason=f"LEASE_REFUSAL_REASON_{reason}", message=NUL, retry_after={"seconds": 9}))
    assert found.content == LeaseRefusal(reason, "a\ufffdb", reason in FOR_GOOD, timedelta(seconds=9))


@pytest.mark.parametrize("reason", [0, -1, 99, lease_pb2.LEASE_REFUSAL_REASON_ATTEMPT_ENDED])
def test_a_refusal_without_a_reason_that_concerns_the_queue_is_refused(reason: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"lease_refused\.reason") as caught:
        convert.report(refused(reason=reason, message="x"))
    assert [v.field for v in caught.value.violations] == ["lease_refused.reason"]


@pytest.mark.parametrize(("seconds", "taken"), [(-5, 0), (2**63 - 1, 3_600), (-(2**63), 0)])
def test_a_refusal_of_leases_is_taken_however_odd_it_is(seconds: int, taken: int) -> None:
    found = convert.report(refused(reason=1, message="é" * 10_000, permanent=True, retry_after={"seconds": seconds}))
    assert isinstance(found.content, LeaseRefusal) and found.content.permanent
    assert (found.content.retry_after, len(found.content.message)) == (timedelta(seconds=taken), 4_000)
    silent = convert.report(refused(reason=1)).content
    assert isinstance(silent, LeaseRefusal) and silent.message == "vault sealed"


def test_ends_of_leases_go_out_and_come_back() -> None:
    ends = [LeaseEnd(4, 0, True), LeaseEnd(5, 3, False)]
    told = convert.to_lease_ends(ends)
    assert convert.lease_ends(pb.AcknowledgeLeaseEndsRequest(lease_ends=told.lease_ends)) == ends
    many = pb.AcknowledgeLeaseEndsRequest(lease_ends=[told.lease_ends[0]] * 1_001)
    with pytest.raises(InvalidArgument, match="lease_ends"):
        convert.lease_ends(many)


def frame(**content: Any) -> bytes:
    found = frame_pb2.Frame(sequence=1, **content)
    return found.SerializeToString()


def notice(severity: int = 2, **fact: Any) -> bytes:
    return frame(notice=frame_pb2.Notice(severity=severity, text="x", **fact))  # type: ignore[arg-type]


def timed(**at: int) -> bytes:
    found = frame_pb2.Frame(sequence=1, chunk=frame_pb2.Chunk(channel=2))  # type: ignore[arg-type]
    for name, value in at.items():
        setattr(found.time, name, value)
    return found.SerializeToString()


def started(seconds: int, nanos: int = 0) -> bytes:
    process = job_pb2.Process(pid=1)
    process.start_time.seconds, process.start_time.nanos = seconds, nanos
    return notice(process_started=frame_pb2.ProcessStarted(process=process))


def verified(seconds: int) -> bytes:
    finished = frame_pb2.Finished(outcome=1)  # type: ignore[arg-type]
    finished.evidence.verify_time.seconds = seconds
    return notice(finished=finished)


MALFORMED = {
    "no message": [b"\xff\xff"],
    "half a frame": [Spool().notice("x") and frame(chunk=frame_pb2.Chunk(channel=2, data=b"abc"))[:-2]],  # type: ignore[arg-type]
    "invalid UTF-8": [b"\x08\x01\x22\x05\x08\x02\x12\x01\xff"],
    "no content": [frame()],
    "no sequence": [frame_pb2.Frame(chunk=frame_pb2.Chunk(channel=2)).SerializeToString()],  # type: ignore[arg-type]
    "a negative sequence": [frame_pb2.Frame(sequence=-1, chunk=frame_pb2.Chunk(channel=2)).SerializeToString()],  # type: ignore[arg-type]
    "a chunk of the system": [frame(chunk=frame_pb2.Chunk(channel=1))],  # type: ignore[arg-type]
    "a chunk of no channel": [frame(chunk=frame_pb2.Chunk(data=b"x"))],
    "a chunk of a channel not known": [frame(chunk=frame_pb2.Chunk(channel=9))],  # type: ignore[arg-type]
    "a chunk that is too long": [frame(chunk=frame_pb2.Chunk(channel=2, data=bytes(65_537)))],  # type: ignore[arg-type]
    "no severity": [notice(0)],
    "a severity not known": [notice(9)],
    "a stop of no kind": [notice(stop_begun=frame_pb2.StopBegun())],
    "an end without an outcome": [notice(finished=frame_pb2.Finished())],
    "too many outputs": [
        notice(finished=frame_pb2.Finished(outcome=1, outputs=[job_pb2.OutputParameter()] * 201))  # type: ignore[arg-type]
    ],
    "a time beyond all": [timed(seconds=2**62)],
    "a time before all": [timed(seconds=-(2**62))],
    "a time with odd nanoseconds": [timed(seconds=1, nanos=-1)],
    "a process that started beyond all": [started(2**62)],
    "a process that started at no time": [started(0, -5)],
    "a stop that was verified beyond all": [verified(2**62)],
    "a gap within a batch": [
        frame_pb2.Frame(sequence=n, chunk=frame_pb2.Chunk(channel=2)).SerializeToString() for n in (1, 3)  # type: ignore[arg-type]
    ],
    "the same twice in a batch": [frame(chunk=frame_pb2.Chunk(channel=2))] * 2,  # type: ignore[arg-type]
    "nothing": [],
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_frame_that_cannot_be_read_is_refused_with_a_reason(case: str) -> None:
    with pytest.raises(MalformedFrame) as caught:
        read_frames(MALFORMED[case])
    assert caught.value.reason == "MALFORMED_FRAME"


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_no_bytes_raise_anything_else(bodies: list[bytes]) -> None:
    with contextlib.suppress(SisError):
        read_frames(bodies)


def test_bytes_are_kept_as_the_site_cut_them() -> None:
    body = frame(chunk=frame_pb2.Chunk(channel=2, data=b"\0\xff")) + b"\xf8\x07\x01"  # type: ignore[arg-type]  # a field of the future
    (found,) = read_frames([body])
    assert (found.body, found.output_bytes, found.channel) == (body, 2, Channel.STDOUT)


def test_the_channel_of_a_notice_follows_its_severity() -> None:
    spool = Spool()
    (debug,) = spool.notice("x", frame_pb2.SEVERITY_DEBUG)
    (error,) = spool.notice("x", frame_pb2.SEVERITY_ERROR)
    assert (debug.channel, debug.severity) == (Channel.DEBUG, Severity.DEBUG)
    assert (error.channel, error.severity) == (Channel.SYSTEM, Severity.ERROR)


def test_progress_is_held_within_its_bounds() -> None:
    spool = Spool()
    assert [f.fact for f in (*spool.progress(-5, ""), *spool.progress(500, ""))] == [Progress(0, ""), Progress(100, "")]


def test_absent_exit_codes_are_told_from_zero() -> None:
    spool = Spool()
    (none,), (zero,) = spool.process_exited(1, signal="KILL"), spool.process_exited(1, 0)
    assert (none.fact, zero.fact) == (ProcessExited(1, None, "KILL"), ProcessExited(1, 0, ""))
    (ended,) = spool.notice("x", payload_ended=frame_pb2.PayloadEnded())
    assert ended.fact == PayloadEnded(None)


def test_no_text_keeps_a_nul() -> None:
    """PostgreSQL stores none, and one refused text would wedge its job."""
    spool = Spool()
    process = job_pb2.Process(pid=1, name=NUL, identity=NUL, signals=[NUL], end_signal=NUL)
    finished = frame_pb2.Finished(
        outcome=frame_pb2.OUTCOME_FAILED,
        failure_reason=NUL,
        outputs=[job_pb2.OutputParameter(name=NUL, value=NUL)],
        evidence=job_pb2.StopEvidence(method=NUL, processes=[process], survivors=[process]),
    )
    facts = [
        spool.notice(NUL, process_started=frame_pb2.ProcessStarted(process=process)),
        spool.process_signalled(1, NUL),
        spool.process_exited(1, signal=NUL),
        spool.progress(1, NUL),
        spool.notice(NUL, stop_begun=frame_pb2.StopBegun(kind=frame_pb2.STOP_KIND_ABORT, reason=NUL)),
        spool.notice(NUL, stop_begun=frame_pb2.StopBegun(kind=frame_pb2.STOP_KIND_ABORT)),
        spool.notice(NUL, finished=finished),
    ]
    for (found,) in facts:
        assert found.fact is not None
        told = json.dumps({n: getattr(found.fact, n) for n in type(found.fact).__slots__}, default=repr)
        assert "\\u0000" not in told and "\\x00" not in told and "\\ufffd" in told
    started_fact, finished_fact = facts[0][0].fact, facts[-1][0].fact
    assert isinstance(started_fact, ProcessStarted) and started_fact.process["name"] == "a\ufffdb"
    assert isinstance(finished_fact, Finished) and finished_fact.outputs == {"a\ufffdb": "a\ufffdb"}


def test_a_text_that_is_too_long_is_cut() -> None:
    (found,) = Spool().progress(1, "é" * 10_000)
    assert isinstance(found.fact, Progress) and len(found.fact.text) == 4_000


def test_batches_of_sessions_are_bounded() -> None:
    many = [pb.Session(agent="a", epoch=1)] * 10_001
    with pytest.raises(InvalidArgument, match="capacities"):
        convert.capacities(pb.ClaimRequest(capacities=[pb.Capacity(session=s) for s in many]))
    with pytest.raises(InvalidArgument, match="heartbeats"):
        convert.heartbeats(pb.HeartbeatRequest(heartbeats=[pb.SessionHeartbeat(session=s) for s in many]))
