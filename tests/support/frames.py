"""Frames as a supervisor would cut them, for tests of what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from services.queue.convert import dispatch as convert
from services.queue.frames import DIGEST_START, Frame, extend_digest
from sis.queue.v1 import dispatch_service_pb2, frame_pb2, job_pb2


class Spool:
    """Cuts frames one after the other, with the running digest. Each method returns the frame that it cut, as the
    queue reads it; `bodies` holds the bytes of all of them."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self.sequence = 0
        self.digest = DIGEST_START
        self.bodies: list[bytes] = []

    def cut(self, message: frame_pb2.Frame) -> tuple[Frame, ...]:
        """Number and serialise `message`."""
        self.sequence += 1
        message.sequence = self.sequence
        if not message.HasField("time"):
            message.time.FromDatetime(self._now())
        body = message.SerializeToString()
        self.digest = extend_digest(self.digest, body)
        self.bodies.append(body)
        return read_frames([body])

    def notice(
        self, text: str, severity: frame_pb2.Severity = frame_pb2.SEVERITY_INFO, **fact: Any
    ) -> tuple[Frame, ...]:
        return self.cut(frame_pb2.Frame(notice=frame_pb2.Notice(severity=severity, text=text, **fact)))

    def output(self, data: bytes, channel: job_pb2.Channel = job_pb2.CHANNEL_STDOUT) -> tuple[Frame, ...]:
        return self.cut(frame_pb2.Frame(chunk=frame_pb2.Chunk(channel=channel, data=data)))

    def process_started(
        self, pid: int, role: job_pb2.ProcessRole = job_pb2.PROCESS_ROLE_PAYLOAD, **fields: Any
    ) -> tuple[Frame, ...]:
        process = job_pb2.Process(pid=pid, name="sh", identity="root", role=role, **fields)
        return self.notice("Payload processing started", process_started=frame_pb2.ProcessStarted(process=process))

    def process_signalled(self, pid: int, signal: str) -> tuple[Frame, ...]:
        signalled = frame_pb2.ProcessSignalled(pid=pid, signal=signal)
        return self.notice("Signalled", process_signalled=signalled)

    def process_exited(self, pid: int, code: int | None = None, signal: str = "") -> tuple[Frame, ...]:
        exited = frame_pb2.ProcessExited(pid=pid, exit_code=code, signal=signal)
        return self.notice("Ended", process_exited=exited)

    def progress(self, percent: int, text: str) -> tuple[Frame, ...]:
        return self.notice("Progress", progress=frame_pb2.Progress(percent=percent, text=text))

    def payload_ended(self, code: int) -> tuple[Frame, ...]:
        return self.notice("Payload ended", payload_ended=frame_pb2.PayloadEnded(exit_code=code))

    def stop_begun(self, kind: str) -> tuple[Frame, ...]:
        stop = frame_pb2.StopBegun(kind=frame_pb2.StopKind.Value(f"STOP_KIND_{kind}"))
        return self.notice("Stopping", stop_begun=stop)

    def finished(
        self,
        outcome: str,
        *,
        outputs: dict[str, str] | None = None,
        tree_empty: bool = True,
        reason: str = "",
        digest: bytes | None = None,
        **fields: Any,
    ) -> tuple[Frame, ...]:
        finished = frame_pb2.Finished(
            outcome=frame_pb2.Outcome.Value(f"OUTCOME_{outcome}"),
            failure_reason=reason,
            outputs=[job_pb2.OutputParameter(name=n, value=v) for n, v in (outputs or {}).items()],
            evidence=job_pb2.StopEvidence(method="subreaper", tree_empty=tree_empty),
            digest=self.digest if digest is None else digest,
            **fields,
        )
        return self.notice(f"It ended: {outcome}", finished=finished)


def read_frames(bodies: list[bytes]) -> tuple[Frame, ...]:
    """Serialised frames as the queue reads them. Raises MalformedFrame."""
    message = dispatch_service_pb2.AttemptReport(
        session=dispatch_service_pb2.Session(agent="a", epoch=1),
        attempt=dispatch_service_pb2.Attempt(job_id=1, number=1),
        frames=dispatch_service_pb2.FrameBatch(frames=bodies),
    )
    content = convert.report(message).content
    assert isinstance(content, tuple)
    return content
