"""The sessions that this hub holds: what is on its way to each agent, and which one is an agent's newest."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager

from google.protobuf.message import Message

from services.runtime import faults
from services.sis_agent.hub.certificates import AgentCertificate
from services.sis_agent.hub.deliveries import Deliveries
from services.sis_agent.hub.errors import SlowAgent, StaleEpoch
from services.sis_agent.hub.slots import AttemptKey, Slots
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue

PENDING_MESSAGES = 10_000
PENDING_BYTES = 32 * 1024 * 1024
"""What may wait for an agent that reads slowly; beyond it the session is closed, and the next one resumes."""

_RESPONSE_BYTES = 4 * 1024 * 1024
_HELD_STOPS = 1_000

_log = logging.getLogger("sessions")


class Session:
    """One stream of one agent, from its welcome to its end.

    Nothing here blocks: what is sent is queued, and whatever is there goes out as one message of each kind.
    Acknowledgements go first, so that the agent has freed the slot of a sealed attempt before the next one comes.
    """

    def __init__(
        self, agent: str, group: str, certificate: AgentCertificate, epoch: int, hello: queue.AgentHello
    ) -> None:
        self.agent = agent
        self.group = group
        self.certificate = certificate
        self.epoch = epoch
        self.hello = hello
        self.reference = queue.Session(agent=agent, epoch=epoch)
        held = (AttemptKey(a.attempt.job_id, a.attempt.number) for a in hello.attempts)
        self.slots = Slots(hello.slots, held, draining=hello.draining)
        self.deliveries = Deliveries()
        self.heard = True
        """Whether the agent has sent anything since the last batch of heartbeats."""
        self.unacknowledged_bytes = 0
        self.closed = False
        self.error: Exception | None = None
        """What it was closed with, if it did not end well."""
        self._ended = asyncio.Event()
        self._on_close: Callable[[Session], None] = lambda _: None
        self._news = asyncio.Event()
        self._welcome: stream.Welcome | None = None
        self._assignments: list[queue.Assignment] = []
        self._acknowledgements: list[stream.Acknowledgement] = []
        self._stops: dict[AttemptKey, queue.StopCommand] = {}
        self._certificates: list[stream.CertificateAnswer] = []
        self._messages = self._bytes = 0
        # Taken from the above, and not yet written.
        self._leaving: deque[stream.ConnectResponse] = deque()

    def welcome(self, welcome: stream.Welcome) -> None:
        """Send the first message."""
        self._welcome = welcome
        self._news.set()

    def assign(self, assignment: queue.Assignment) -> None:
        """Send an assignment, unless the agent has it."""
        key = AttemptKey(assignment.attempt.job_id, assignment.attempt.number)
        now = asyncio.get_running_loop().time()
        if not self.closed and self.slots.assign(key, now) and self._admit(assignment):
            self._assignments.append(assignment)

    def acknowledge(self, acknowledgement: stream.Acknowledgement) -> None:
        """Send the answer to a report."""
        if self._admit(acknowledgement):
            self._acknowledgements.append(acknowledgement)

    def stop(self, command: queue.StopCommand) -> None:
        """Send a stop; a later one for the same attempt takes the place of one that is still waiting."""
        if self._admit(command):
            self._stops[AttemptKey(command.attempt.job_id, command.attempt.number)] = command

    def certify(self, answer: stream.CertificateAnswer) -> None:
        """Send the answer to a request for a certificate."""
        if self._admit(answer):
            self._certificates.append(answer)

    def _admit(self, message: Message) -> bool:
        if self.closed:
            return False
        self._messages += 1
        self._bytes += message.ByteSize()
        if self._messages > PENDING_MESSAGES or self._bytes > PENDING_BYTES:
            self.close(SlowAgent(self.agent))
            return False
        self._news.set()
        return True

    def close(self, error: Exception | None = None) -> None:
        """End the stream, with an error or well. The first call counts. What waits for the agent is dropped: the next
        session resumes."""
        if self.closed:
            return
        self.closed = True
        self.error = error
        self._drop()
        self._leaving.clear()
        self._ended.set()
        self._news.set()
        self._on_close(self)

    def when_closed(self, callback: Callable[[Session], None]) -> None:
        """Call `callback` once, when the session is closed."""
        self._on_close = callback

    async def until_closed(self) -> None:
        """Wait for the end, by whichever side."""
        await self._ended.wait()

    async def outgoing(self) -> AsyncGenerator[stream.ConnectResponse]:
        """What to write to the stream, until the session is closed.

        Raises:
            Exception: what the session was closed with.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            self._leaving.extend(self._take())
            while self._leaving:
                message = self._leaving.popleft()
                kind = message.WhichOneof("content")
                faults.point(f"hub.{kind}.sending")
                yield message
                faults.point(f"hub.{kind}.sent")
            if self.closed:
                if self.error is not None:
                    raise self.error
                return

    def _take(self) -> list[stream.ConnectResponse]:
        messages = []
        if self._welcome is not None:
            messages.append(stream.ConnectResponse(welcome=self._welcome))
        if self._acknowledgements:
            found = stream.Acknowledgements(acknowledgements=self._acknowledgements)
            messages.append(stream.ConnectResponse(acknowledgements=found))
        messages += [
            stream.ConnectResponse(assignments=stream.Assignments(assignments=some))
            for some in _parts(self._assignments)
        ]
        if self._stops:
            messages.append(stream.ConnectResponse(stops=stream.Stops(stops=self._stops.values())))
        messages += [stream.ConnectResponse(certificate=answer) for answer in self._certificates]
        self._drop()
        return messages

    def _drop(self) -> None:
        self._welcome = None
        self._acknowledgements, self._assignments, self._stops, self._certificates = [], [], {}, []
        self._messages = self._bytes = 0


def _parts(assignments: list[queue.Assignment]) -> Iterator[list[queue.Assignment]]:
    """The assignments in groups that fit in a message."""
    part: list[queue.Assignment] = []
    size = 0
    for assignment in assignments:
        bytes_ = assignment.ByteSize()
        if part and size + bytes_ > _RESPONSE_BYTES:
            yield part
            part, size = [], 0
        part.append(assignment)
        size += bytes_
    if part:
        yield part


class Sessions:
    """The newest session of each agent that is connected to this hub."""

    def __init__(self) -> None:
        self._by_agent: dict[str, Session] = {}
        self._opening: dict[str, list[queue.AgentStop]] = {}
        self._when_opened: list[Callable[[Session], None]] = []
        self._when_closed: list[Callable[[Session], None]] = []

    def subscribe(self, *, opened: Callable[[Session], None], closed: Callable[[Session], None]) -> None:
        """Call `opened` for each session that is added and `closed` when it has ended, for whatever reason."""
        self._when_opened.append(opened)
        self._when_closed.append(closed)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_agent.values()))

    def __len__(self) -> int:
        return len(self._by_agent)

    def get(self, reference: queue.Session) -> Session | None:
        """The session, if this hub holds it."""
        session = self._by_agent.get(reference.agent)
        return session if session is not None and session.epoch == reference.epoch else None

    def of(self, agent: str) -> Session | None:
        """The newest session of an agent, if this hub holds it."""
        return self._by_agent.get(agent)

    @contextmanager
    def opening(self, agent: str) -> Iterator[None]:
        """While the queue opens a session: stops that the queue sends meanwhile are kept for it."""
        outermost = agent not in self._opening
        self._opening.setdefault(agent, [])
        try:
            yield
        finally:
            if outermost:
                del self._opening[agent]

    def add(self, session: Session) -> None:
        """Make a session its agent's newest; the one before it is closed.

        Raises:
            StaleEpoch: a newer one is here already.
        """
        before = self._by_agent.get(session.agent)
        if before is not None and before.epoch > session.epoch:
            raise StaleEpoch(session.agent)
        self._by_agent[session.agent] = session
        if before is not None:
            before.close(StaleEpoch(session.agent))
        session.when_closed(self._closed)
        for stop in self._opening.get(session.agent, ()):
            if stop.session.epoch == session.epoch:
                session.stop(stop.stop)
        for callback in self._when_opened:
            callback(session)

    def _closed(self, session: Session) -> None:
        if self._by_agent.get(session.agent) is session:
            del self._by_agent[session.agent]
        for callback in self._when_closed:
            callback(session)

    def stop(self, commands: Iterable[queue.AgentStop]) -> None:
        """Send each stop to its session. Those for sessions that are not here are dropped: the queue repeats them."""
        for command in commands:
            session = self.get(command.session)
            if session is not None:
                session.stop(command.stop)
            elif len(held := self._opening.get(command.session.agent, [])) < _HELD_STOPS:
                held.append(command)

    def close_stale(self, references: Iterable[queue.Session]) -> None:
        """Close the sessions that the queue says are not the newest of their agents."""
        for reference in references:
            session = self.get(reference)
            if session is not None:
                _log.info("agent %s has a newer stream elsewhere", session.agent)
                session.close(StaleEpoch(session.agent))

    def close_all(self, error: Exception) -> None:
        """Close every session."""
        for session in self:
            session.close(error)
