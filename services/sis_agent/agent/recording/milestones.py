"""When what mattered of an attempt happened, as its log has it."""

from __future__ import annotations

from dataclasses import dataclass

from sis.queue.v1 import frame_pb2 as frame
from sis.queue.v1 import job_pb2


@dataclass(slots=True)
class Milestones:
    """In seconds of the epoch by the site's clock; 0 for what did not."""

    supervised: float = 0.0
    started: float = 0.0
    payload_ended: float = 0.0
    finished: float = 0.0

    def note(self, found: frame.Frame) -> None:
        """Take the next frame of the log into account."""
        at = found.time.ToNanoseconds() / 1e9
        match found.notice.WhichOneof("fact"):
            case "process_started":
                role = found.notice.process_started.process.role
                if role == job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR:
                    self.supervised = self.supervised or at
                elif role == job_pb2.PROCESS_ROLE_PAYLOAD:
                    self.started = self.started or at
            case "payload_ended":
                self.payload_ended = at
            case "finished":
                self.finished = at
