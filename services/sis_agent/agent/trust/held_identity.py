"""The identity of an agent that serves: held against other processes, and certified anew in time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from services.runtime.backoff import Backoff
from services.runtime.channels import from_status
from services.runtime.errors import SisError
from services.sis_agent.agent.errors import AgentError, EnrolmentFailed
from services.sis_agent.agent.trust import certification, enrolment
from services.sis_agent.agent.trust.certification import Hold
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.agent.v1 import agent_service_pb2 as pb
from sis.credentials.v1.certificate_pb2 import IssuedCertificate

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 60.0
"""A request that had no answer for so long is made again."""
LOOK_SECONDS: Final = 1.0
"""Between looks for another identity."""


class HeldIdentity:
    """The identity in a directory, held from `open` to `close`. Used from the event loop's thread alone.

    What it writes, it writes at once in that thread: that is little, and seldom.
    """

    def __init__(self, directory: Path, now: Callable[[], float] = time.time) -> None:
        """`now` is the clock of this site, in seconds since 1970."""
        self._directory = directory
        self._now = now
        self._hold = Hold(directory)
        self._backoff = Backoff(1.0, 300.0)
        self._identity: AgentIdentity | None = None
        self._ask_at = 0.0

    @property
    def current(self) -> AgentIdentity:
        """What this agent is now; look anew each time."""
        assert self._identity is not None, "it is not open"
        return self._identity

    def open(self) -> None:
        """Take hold of the identity.

        Raises:
            EnrolmentFailed: an enrolment is under way.
            NotEnrolled, IdentityDamaged: there is none to use.
        """
        if not self._hold.acquire():
            raise EnrolmentFailed(f"an enrolment in {self._directory} is under way: start again when it has ended")
        self._identity = certification.opened(self._directory)

    def close(self) -> None:
        """Let go of it. Repeatable."""
        self._hold.release()

    # Over the stream

    def request(self) -> pb.CertificateRequest | None:
        """What is to be said to the hub now, if anything. Not again before it is answered, or a minute has passed."""
        clock = asyncio.get_running_loop().time()
        if clock < self._ask_at or not self.current.due(self._now()):
            return None
        self._ask_at = clock + ANSWER_SECONDS
        try:
            keys, signature = certification.renewal(self.current)
        except (AgentError, OSError) as error:
            self._put_off(error)
            return None
        return pb.CertificateRequest(keys=keys, signature=signature)

    def answer(self, answer: pb.CertificateAnswer, keep: Collection[str]) -> None:
        """Take the hub's answer. The sealing keys in `keep` are not removed."""
        if answer.HasField("error"):
            self._put_off(from_status(answer.error))
            return
        try:
            self._take(answer.certificate, (), keep)
        except (AgentError, OSError) as error:
            self._put_off(error)

    # Without a stream

    async def rejoin(self, keep: Collection[str]) -> None:
        """Get another certificate if this one may have been refused for its age; else do nothing.

        Raises:
            SisError, AgentError, OSError: there is none now.
        """
        if self.current.worn(self._now()):
            response = await enrolment.rejoin(self.current)
            self._take(response.certificate, response.agent_endpoints, keep)

    async def stand_aside(self, seconds: float) -> bool:
        """Let an enrolment replace the identity: True when one has, False after so many seconds.

        Raises:
            NotEnrolled, IdentityDamaged: what is there now cannot be used.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        while True:
            self._hold.release()
            await asyncio.sleep(min(max(until - clock(), 0.1), LOOK_SECONDS))
            if not self._hold.acquire():
                continue  # an enrolment is under way, and has its deadlines
            found = certification.opened(self._directory)
            if found != self._identity:
                log.info("this is now agent %s of group %s", found.name, found.group)
                self._identity = found
                return True
            if clock() >= until:
                return False

    def _take(self, issued: IssuedCertificate, endpoints: Collection[str], keep: Collection[str]) -> None:
        self._identity = certification.renewed(
            self.current, issued, self._now(), agent_endpoints=tuple(endpoints), keep=keep
        )
        self._ask_at = 0.0
        self._backoff.reset()
        log.info("this agent is certified anew", extra={"generation": self.current.generation})

    def _put_off(self, error: SisError | AgentError | OSError) -> None:
        asked = error.retry_after if isinstance(error, SisError) else None
        delay = max(self._backoff.next_delay(), asked or 0.0)
        self._ask_at = asyncio.get_running_loop().time() + delay
        log.warning("no new certificate, next try in %.0f s: %s", delay, error)
