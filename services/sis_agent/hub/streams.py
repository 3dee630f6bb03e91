"""The life of an agent's stream on this hub: hello, welcome, what the agent says, the end."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from google.protobuf import duration_pb2

from services.runtime import faults
from services.runtime.errors import InvalidArgument, PermissionDenied, SisError
from services.sis_agent.hub import convert
from services.sis_agent.hub.certificates import AgentCertificate
from services.sis_agent.hub.chains import Chains
from services.sis_agent.hub.errors import NoHello, ShuttingDown, SilentAgent, StreamTooOld
from services.sis_agent.hub.leases import Leases
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.renewals import Certifier, Renewals
from services.sis_agent.hub.reporter import Reporter
from services.sis_agent.hub.revocations import Revocations
from services.sis_agent.hub.sessions import Session, Sessions
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue

HELLO_SECONDS = 10.0
SILENT_INTERVALS = 3
"""An agent that misses so many beats is gone."""
LAST_WORD_SECONDS = 1.0
"""How long the hub goes on writing to an agent that it hears no more and does not let in again, and then how long it
tries to tell it why."""

_CLOSES_AT_ONCE = 8

Write = Callable[[stream.ConnectResponse], Awaitable[None]]
"""Writes a message to an agent; it takes as long as the agent leaves what came before unread."""

_log = logging.getLogger("streams")
# Its own: an age must not change what others draw from the global generator, which tests seed and compare.
_dice = random.Random()  # noqa: S311  (jitter, not a secret)


class Streams:
    """Opens sessions at the queue, reads what agents say, and tells the queue when a session has ended."""

    def __init__(
        self,
        connection: QueueConnection,
        sessions: Sessions,
        reporter: Reporter,
        leases: Leases,
        chains: Chains,
        certifier: Certifier,
        revocations: Revocations,
        *,
        hub: str,
        beat_interval: float,
        unacknowledged_limit_bytes: int,
        stream_seconds: float,
        on_free: Callable[[], None],
    ) -> None:
        """`stream_seconds` is how long a stream may last: each lasts between half of and all of it."""
        self._connection = connection
        self._sessions = sessions
        self._reporter = reporter
        self._leases = leases
        self._chains = chains
        self._certifier = certifier
        self._revocations = revocations
        self._hub = hub
        self._silent_seconds = SILENT_INTERVALS * beat_interval
        self._beat_interval = duration_pb2.Duration()
        self._beat_interval.FromMilliseconds(round(beat_interval * 1000))
        self._limit_bytes = unacknowledged_limit_bytes
        self._stream_seconds = stream_seconds
        self._on_free = on_free
        self._draining = False
        # The newest ended session of each agent that the queue has not been told of.
        self._ended: dict[str, Session] = {}
        self._some_ended = asyncio.Event()
        self._all_told = asyncio.Event()
        self._all_told.set()
        sessions.subscribe(opened=lambda _: None, closed=self._closed)

    async def open(
        self,
        agent: queue.AgentIdentity,
        certificate: AgentCertificate,
        requests: AsyncIterator[stream.ConnectRequest],
    ) -> Session:
        """Take the hello, open a session at the queue, and queue the welcome and what follows it.

        Raises:
            InvalidArgument: the first message is no sound hello.
            AgentRevoked, AgentQuarantined: the agent has to enrol again.
            NoHello, ShuttingDown, StaleEpoch; Unavailable if the queue or the registry does not answer.
        """
        self._revocations.check(agent.name, certificate)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(requests, None)
        except TimeoutError:
            raise NoHello(HELLO_SECONDS) from None
        hello, shown = convert.hello(first)
        self._refuse_when_draining()
        offer = await self._chains.resume(agent.name, certificate, shown)
        with self._sessions.opening(agent.name):
            request = queue.OpenSessionRequest(agent=agent, hub=self._hub, hello=hello)
            faults.point("hub.session.opening")
            opened = await self._connection.open_session(request)
            faults.point("hub.session.opened")
            session = Session(agent.name, agent.group, certificate, opened.epoch, hello)
            self._refuse_when_draining()
            self._revocations.check(agent.name, certificate)
            session.welcome(
                stream.Welcome(
                    epoch=opened.epoch,
                    verdicts=opened.verdicts,
                    beat_interval=self._beat_interval,
                    unacknowledged_limit_bytes=self._limit_bytes,
                    resume_secret=offer,
                )
            )
            for stop in opened.stops:
                session.stop(stop)
            self._sessions.add(session)
            for assignment in opened.assignments:
                self._leases.deliver(session, assignment)
        _log.info("agent %s opened session %d", session.agent, session.epoch)
        return session

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise ShuttingDown

    async def converse(self, session: Session, requests: AsyncIterator[stream.ConnectRequest], write: Write) -> None:
        """Hear the agent and write to it until the session is closed, by whomever; nothing is taken from then on.

        A message that is being written then can be as long as it lies unread, for gRPC takes none back. An agent that
        may come again keeps its call, and with it its place among those that one agent may have, until it has read it
        or its connection ends: else it could leave as many behind as it likes. One that may not is given up.

        Raises:
            Exception: what the session was closed with, or what was wrong with a write.
        """
        reader = asyncio.create_task(self._read(session, requests), name=f"hear agent {session.agent}")
        writer = asyncio.create_task(_write(session, write), name=f"write to agent {session.agent}")
        try:
            await session.until_closed()
            reader.cancel()
            comes_again = not isinstance(session.error, PermissionDenied)
            await asyncio.wait([writer], timeout=None if comes_again else LAST_WORD_SECONDS)
        finally:
            session.close()
            reader.cancel()
            writer.cancel()
            await asyncio.wait([reader, writer])
        if session.error is not None:
            raise session.error

    async def _read(self, session: Session, requests: AsyncIterator[stream.ConnectRequest]) -> None:
        """Take in what the agent says until its end, or until the stream is too old; either closes the session."""
        age = _dice.uniform(0.5, 1.0) * self._stream_seconds
        loop = asyncio.get_running_loop()
        too_old = loop.call_later(age, session.close, StreamTooOld(session.agent, age))
        try:
            async with Renewals(self._certifier, session) as renewals:
                while (request := await self._next(session, requests)) is not None:
                    if session.closed:
                        return  # it came before this was cancelled
                    session.heard = True
                    await self._take(session, request, renewals)
        except Exception as error:
            session.close(error)
        else:
            session.close()
        finally:
            too_old.cancel()

    async def _take(self, session: Session, request: stream.ConnectRequest, renewals: Renewals) -> None:
        match request.WhichOneof("content"):
            case "reports":
                await self._reporter.submit(session, request.reports.reports)
            case "beat":
                self._beat(session, request.beat)
            case "certificate_request":
                renewals.ask(request.certificate_request)
            case "hello":
                raise InvalidArgument.field("hello", "comes once: open a new stream for another one")
            case _:
                raise InvalidArgument.field("content", "is missing or unknown here: send reports or a beat")

    async def _next(
        self, session: Session, requests: AsyncIterator[stream.ConnectRequest]
    ) -> stream.ConnectRequest | None:
        # Only the wait for the agent counts as its silence, not the one for room among the reports.
        try:
            async with asyncio.timeout(self._silent_seconds):
                return await anext(requests, None)
        except TimeoutError:
            raise SilentAgent(session.agent, self._silent_seconds) from None

    def _beat(self, session: Session, beat: stream.Beat) -> None:
        free = session.slots.free
        session.slots.beat(
            convert.beat(beat),
            beat.free_slots,
            draining=beat.draining,
            now=asyncio.get_running_loop().time(),
        )
        if session.slots.free > free:
            self._on_free()

    def _closed(self, session: Session) -> None:
        newest = self._sessions.of(session.agent)
        if newest is None:
            self._ended[session.agent] = session
            self._some_ended.set()
            self._all_told.clear()

    async def run(self) -> None:
        """Tell the queue of ended sessions, for ever. It is told once: silence says the same, later."""
        while True:
            await self._some_ended.wait()
            self._some_ended.clear()
            while self._ended:
                some = [self._ended.pop(name) for name in list(self._ended)[:_CLOSES_AT_ONCE]]
                await asyncio.gather(*map(self._tell, some))
            self._all_told.set()

    async def _tell(self, session: Session) -> None:
        try:
            faults.point("hub.session.closing")
            await self._connection.close_session(session.reference)
            faults.point("hub.session.closed")
        except SisError as error:
            _log.warning("the queue was not told that agent %s is gone: %s", session.agent, error.message)

    async def drain(self) -> None:
        """Refuse new streams, end those that are here, so that their agents go elsewhere, and wait until what they
        had said is committed and the queue knows that they are gone."""
        self._draining = True
        self._sessions.close_all(ShuttingDown())
        await asyncio.gather(self._reporter.drained(), self._all_told.wait())


async def _write(session: Session, write: Write) -> None:
    """Write what there is for the agent, until the session is closed; what is wrong with a write closes it."""
    try:
        async with aclosing(session.outgoing()) as messages:
            async for message in messages:
                await write(message)
    except Exception as error:
        session.close(error)
