"""The agent's stream to a hub: one at a time, opened again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import grpc

from services.runtime import faults
from services.runtime.backoff import Backoff
from services.runtime.channels import from_status, grpc_error, secure_channel
from services.runtime.errors import DeadlineExceeded, Internal, SisError, Unavailable
from services.sis_agent.agent.errors import AgentError
from services.sis_agent.agent.executor import Executor
from services.sis_agent.agent.hubs import Turns
from services.sis_agent.agent.trust.enrolment import SERVER_NAME
from services.sis_agent.agent.trust.held_identity import HeldIdentity
from sis.agent.v1 import agent_service_pb2 as pb
from sis.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sis.queue.v1 import dispatch_service_pb2 as dispatch

log = logging.getLogger(__name__)

Stream = grpc.aio.StreamStreamCall[pb.ConnectRequest, pb.ConnectResponse]

WELCOME_SECONDS: Final = 30.0
"""From the first try to connect to the welcome."""
ANSWER_SECONDS: Final = 60.0
"""A hub that takes longer to answer a report, or to take a message, is given up."""
LAST_WORD_SECONDS: Final = 1.0
"""After speaking has failed, for what the hub has said last."""
FETCH_SECONDS: Final = 60.0
"""For one call; a larger package is fetched by several."""
STEADY_SECONDS: Final = 5.0
"""A stream that lasted so long was a success: the next try comes soon."""
SENT_ON: Final = "RECONNECT"
"""Why a hub ends the stream of an agent that is to go to another one, likewise soon."""
BEAT_SECONDS: Final = 5.0
"""Between beats, where the welcome does not say."""
LIMIT_BYTES: Final = 4 << 20
"""Of frames under way, where the welcome does not say."""
REFUSED_SECONDS: Final = (5.0, 300.0)
"""From the first to the last delay between tries while the identity is refused."""

_PAIR: Final = "have `sis agents pair` print a code and run `sis-agent enrol` with it here, beside the running agent"
REMEDIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "AGENT_REVOKED": f"if it shall go on, {_PAIR}",
        "AGENT_QUARANTINED": f"find and end the other program that uses a copy of its state, then {_PAIR}",
        "PAIRING_REFUSED": f"its certificate is out of date and the suite does not know it for a new one: {_PAIR}",
    }
)
"""What to do where the identity is refused for good, by reason."""


class Connection:
    """The way to the hubs, which are tried in turn."""

    def __init__(
        self,
        identity: HeldIdentity,
        endpoints: Sequence[str],
        about: dispatch.AgentHello,
        connected: Callable[[bool], Awaitable[None]],
    ) -> None:
        """`endpoints` go before those of the identity; `about` is the part of the hello that never changes;
        `connected` hears when a hub has welcomed this agent, and when that stream has ended."""
        self._identity = identity
        self._endpoints = endpoints
        self._about = about
        self._connected = connected
        self._welcomed = False
        self._sent_on = False
        """Whether the last stream ended because its hub asked this agent to go elsewhere."""
        self._told = ""
        self._channel: grpc.aio.Channel | None = None

    async def run(self, executor: Executor) -> None:
        """Hold a stream for ever; returns only by being cancelled.

        Raises:
            AgentError: the identity cannot be used any more.
        """
        backoff, slow = Backoff(), Backoff(*REFUSED_SECONDS)
        # An operator's order says where to begin; of those that an agent was told of when it enrolled, any does.
        turns = Turns(*self._endpoints[:1])
        clock = asyncio.get_running_loop().time
        while True:
            endpoints = self._endpoints or self._identity.current.hub_endpoints
            began = clock()
            refused = await self._serve(turns.next(endpoints), executor)
            if refused is not None:
                log.error("this agent is refused: %s; %s", refused, REMEDIES[refused.reason])
                if await self._identity.stand_aside(slow.next_delay()):
                    slow.reset()
                backoff.reset()
                continue
            if self._welcomed:
                slow.reset()
                turns.welcomed()
            if self._sent_on or clock() - began > STEADY_SECONDS:
                backoff.reset()
            await asyncio.sleep(backoff.next_delay())

    async def _serve(self, endpoint: str, executor: Executor) -> SisError | None:
        """Hold one stream, or see to it that the next one can be opened; the error if the identity is refused."""
        self._welcomed = self._sent_on = False
        try:
            await self._session(endpoint, executor)
        except (SisError, AgentError, OSError) as error:
            self._sent_on = self._welcomed and isinstance(error, SisError) and error.reason == SENT_ON
            self._tell(endpoint, error)
            if isinstance(error, SisError) and error.reason in REMEDIES:
                return error
        if not self._welcomed:
            try:
                await self._identity.rejoin(executor.sealing_keys)
            except (SisError, AgentError, OSError) as error:
                log.warning("no new certificate in the place of the one that is out of date: %s", error)
                if isinstance(error, SisError) and error.reason in REMEDIES:
                    return error
        return None

    def _tell(self, endpoint: str, error: Exception) -> None:
        """Log the end of a stream, and why none can be opened: once, and when it becomes something else."""
        if self._welcomed:
            level = logging.INFO if self._sent_on else logging.WARNING
            log.log(level, "the stream to hub %s has ended: %s", endpoint, error)
        elif self._told != str(error):
            self._told = str(error)
            log.warning("this agent waits for a hub; %s: %s", endpoint, error)

    async def fetch(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a package's archive from an offset on.

        Raises:
            NotFound: the server has no such package.
            SisError: the rest did not come now; try again from where it ended.
        """
        if self._channel is None:
            raise Unavailable("there is no connection to a hub at the moment")
        request = pb.FetchPackageRequest(digest=digest, offset=offset)
        call = AgentServiceStub(self._channel).FetchPackage(request, timeout=FETCH_SECONDS)
        end = 0
        try:
            async for response in call:
                end = response.size_bytes
                offset += len(response.chunk)
                yield response.chunk
        except grpc.aio.AioRpcError as error:
            raise grpc_error(error) from error
        except asyncio.CancelledError:
            # A channel that is closed cancels its calls, and they say so to a task that nobody has cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unavailable("the connection to the hub was closed") from None
        finally:
            call.cancel()
        if offset < end:
            raise Unavailable(f"the hub ended package {digest} at byte {offset} of {end}")

    async def _session(self, endpoint: str, executor: Executor) -> None:
        async with secure_channel(endpoint, self._identity.current.tls, server_name=SERVER_NAME) as channel:
            call = AgentServiceStub(channel).Connect()
            try:
                interval = await self._open(call, executor)
                self._welcomed = True
                self._told = ""
                log.info("connected to hub %s", endpoint)
                self._channel = channel
                await self._connected(True)
                await self._converse(call, executor, interval)
            except grpc.aio.AioRpcError as error:
                raise grpc_error(error) from error
            finally:
                self._channel = None
                call.cancel()
                await self._connected(False)

    async def _open(self, call: Stream, executor: Executor) -> float:
        """Say hello and take the welcome; the interval of the beats in seconds."""
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                # Whatever an older stream still had to say was dropped with it: the journal does not change
                # between this hello and the welcome.
                hello = dispatch.AgentHello()
                hello.CopyFrom(self._about)
                executor.describe(hello)
                secret = self._identity.current.resume_secret
                faults.point("agent.hello.sending")
                await call.write(pb.ConnectRequest(hello=hello, resume_secret=secret))
                faults.point("agent.hello.sent")
                response = await call.read()
        except TimeoutError:
            raise DeadlineExceeded(f"the hub gave no welcome within {WELCOME_SECONDS:.0f} s") from None
        if not isinstance(response, pb.ConnectResponse):
            raise Unavailable("the hub has ended the stream instead of a welcome")
        if response.WhichOneof("content") != "welcome":
            raise Internal("the hub began with something else than a welcome")
        faults.point("agent.welcome.heard")
        welcome = response.welcome
        if welcome.resume_secret:
            self._persist(welcome.resume_secret)
        executor.welcome(welcome.verdicts, welcome.unacknowledged_limit_bytes or LIMIT_BYTES)
        return max(welcome.beat_interval.ToMilliseconds() / 1000, 0.0) or BEAT_SECONDS

    def _persist(self, secret: bytes) -> None:
        faults.point("agent.secret.writing")
        try:
            self._identity.current.persist_resume_secret(secret)
            faults.point("agent.secret.written")
        except OSError as error:
            # The hub takes the secret that was shown last as well, and while a disk is full this agent must be
            # reachable, to report and to stop what runs.
            log.warning("the resume secret cannot be written: %s", error)

    async def _converse(self, call: Stream, executor: Executor, interval: float) -> None:
        """Listen and speak until one of them cannot go on."""
        listening = asyncio.create_task(self._listen(call, executor), name="listen to the hub")
        speaking = asyncio.create_task(self._speak(call, executor, interval), name="speak to the hub")
        try:
            await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
            # A stream that has ended cannot be written before it is known why.
            await asyncio.wait({listening}, timeout=LAST_WORD_SECONDS)
        finally:
            listening.cancel()
            speaking.cancel()
            ends = await asyncio.gather(listening, speaking, return_exceptions=True)
        for end in ends:  # what was heard comes first: it says why speaking failed
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end

    async def _listen(self, call: Stream, executor: Executor) -> None:
        while True:
            response = await call.read()
            if not isinstance(response, pb.ConnectResponse):
                raise Unavailable("the hub has ended the stream")
            kind = response.WhichOneof("content")
            faults.point(f"agent.{kind}.heard")
            match kind:
                case "assignments":
                    executor.assign(response.assignments.assignments)
                case "acknowledgements":
                    for answer in response.acknowledgements.acknowledgements:
                        error = from_status(answer.error) if answer.HasField("error") else None
                        executor.acknowledge(answer, error)
                case "stops":
                    for command in response.stops.stops:
                        executor.stop(command)
                case "certificate":
                    self._identity.answer(response.certificate, executor.sealing_keys)
                case other:
                    log.warning("the hub said something that this agent does not understand: %s", other)

    async def _speak(self, call: Stream, executor: Executor, interval: float) -> None:
        clock = asyncio.get_running_loop().time
        beat_at = clock()
        while True:
            await executor.wait(beat_at - clock())
            reports = await executor.take()
            if reports:
                kind = reports[0].WhichOneof("content")
                faults.point(f"agent.{kind}.sending")
                await _say(call, pb.ConnectRequest(reports=pb.AttemptReports(reports=reports)))
                faults.point(f"agent.{kind}.sent")
            if executor.beat_wanted or clock() >= beat_at:
                beat_at = clock() + interval
                await _say(call, pb.ConnectRequest(beat=executor.beat()))
            if (request := self._identity.request()) is not None:
                await _say(call, pb.ConnectRequest(certificate_request=request))
            if executor.silence() > ANSWER_SECONDS:
                raise DeadlineExceeded(f"the hub has not answered a report for {ANSWER_SECONDS:.0f} s")


async def _say(call: Stream, request: pb.ConnectRequest) -> None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await call.write(request)
    except TimeoutError:
        raise DeadlineExceeded(f"the hub has not taken a message for {ANSWER_SECONDS:.0f} s") from None
    except asyncio.InvalidStateError:
        raise Unavailable("the stream has ended") from None
