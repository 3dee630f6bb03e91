"""What the agent has of its supervisors: a zygote that makes them, and a handle on each one that lives."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from services.runtime import faults
from services.sis_agent.agent.linux.process_limit import PROCESS_LIMIT
from services.sis_agent.agent.supervision.supervisor_identity import CONTROL, SupervisorIdentity, SupervisorUnknown
from services.sis_agent.agent.supervision.zygote import MAX_MESSAGE_BYTES

_log = logging.getLogger(__name__)

_ZYGOTE: Final = "services.sis_agent.agent.supervision.zygote"
_START_SECONDS: Final = 30.0
_SPAWN_SECONDS: Final = 10.0
_TURN_SECONDS: Final = 60.0  # the zygote takes one request after the other, and a burst may have hundreds
_TRIES: Final = 3
_COMMAND_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 2.0


class SpawnFailed(Exception):
    """No supervisor was heard of.

    Where `may_have_started`, nobody knows whether one was made: look for it (`SupervisorHandle.adopt`) and finish the
    attempt as lost if there is none. Never ask again for the same attempt; a second supervisor would refuse to start.
    """

    def __init__(self, message: str, *, may_have_started: bool) -> None:
        super().__init__(message)
        self.may_have_started = may_have_started


class _ZygoteEnded(SpawnFailed):
    """The zygote ended, and was not handed the request: ask another one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, may_have_started=False)


class SupervisorUnreachable(Exception):
    """The supervisor did not take the command: it has ended, or is held up. Repeatable."""


class TreeKind(StrEnum):
    """How payloads are kept together."""

    BEST = "best"
    """A cgroup where one can be had, else the subreaper."""
    SUBREAPER = "subreaper"


class StopKind(StrEnum):
    """What a stop does."""

    CANCEL = "CANCEL"
    ABORT = "ABORT"


class Zygote:
    """The warm process from which supervisors are forked: started when it is first needed, again when it has died. One
    that takes no request for 10 s hangs, and is killed.

    The agent's identity, to whose keys leases are sealed, is in `identity_directory`. A payload may have
    `process_limit` processes at once, 0 for any number, and has `open_files` for its soft limit of open files, else the
    one of this process.
    """

    def __init__(
        self,
        tree: TreeKind = TreeKind.BEST,
        *,
        process_limit: int = PROCESS_LIMIT,
        identity_directory: Path | None = None,
        open_files: int | None = None,
    ) -> None:
        self._arguments = [str(tree), str(process_limit), str(identity_directory or "")]
        if open_files is not None:
            self._arguments.append(str(open_files))
        self._starting = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._running: _RunningZygote | None = None

    async def start(self) -> None:
        """Have a zygote ready. Repeatable.

        Raises:
            SpawnFailed: it did not come up within 30 s.
        """
        await self._ready()

    async def spawn(self, directory: Path, package_directory: Path) -> SupervisorIdentity:
        """Have the attempt in this directory supervised. Returns when its supervisor can be found and stopped.

        Nobody may have the spool open for writing. When the call is cancelled, a supervisor may have been made.

        Raises:
            SpawnFailed: no word of the supervisor within 10 s, or that there is none.
        """
        request = {"directory": str(directory), "package_directory": str(package_directory)}
        for _ in range(_TRIES):
            try:
                zygote = await self._ready()
                return await zygote.spawn(next(self._numbers), request)
            except _ZygoteEnded:
                continue
        raise SpawnFailed("the zygote ends whenever it is started", may_have_started=False)

    async def stop(self) -> None:
        """End the zygote; its supervisors live on. Repeatable."""
        async with self._starting:
            if self._running is not None:
                await self._running.stop()
                self._running = None

    async def _ready(self) -> _RunningZygote:
        async with self._starting:
            if self._running is None or self._running.gone:
                if self._running is not None:
                    await self._running.stop()
                    self._running = None
                self._running = await _RunningZygote.start(self._arguments)
            return self._running


class _RunningZygote:
    """One zygote process and the requests that it has not answered."""

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int, connection: socket.socket) -> None:
        self._process = process
        self._pidfd = pidfd
        self._connection = connection
        self._answers: dict[int, asyncio.Future[dict[str, Any] | None]] = {}
        self._ready = asyncio.Event()
        # Requests are handed over one after the other; the one whose turn it is may have to wait for room.
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        # How often it was ready: it is once more after each request that it has taken.
        self._taken = 0
        self.gone = False
        asyncio.get_running_loop().add_reader(connection.fileno(), self._receive)
        asyncio.get_running_loop().add_reader(pidfd, self._reap)

    @classmethod
    async def start(cls, arguments: Sequence[str]) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                process = _launch(theirs, arguments)
                pidfd = os.pidfd_open(process.pid)
            except OSError as error:
                ours.close()  # with which it ends, if it was made
                raise SpawnFailed(f"no process could be made for the zygote: {error}", may_have_started=False) from None
        zygote = cls(process, pidfd, ours)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await zygote._ready.wait()
            if zygote.gone:
                raise _ZygoteEnded("the zygote ended when it was started")
        except BaseException as error:
            await zygote.stop()
            if isinstance(error, TimeoutError):
                raise SpawnFailed("the zygote did not start in time", may_have_started=False) from None
            raise
        return zygote

    async def spawn(self, number: int, request: dict[str, Any]) -> SupervisorIdentity:
        """Raises _ZygoteEnded when the zygote has died before this; it is `gone` then. One that hangs is killed, and is
        `gone` afterwards."""
        answer: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._hand(json.dumps({"id": number, **request}).encode())
            taken = self._taken
            await asyncio.wait([answer], timeout=_SPAWN_SECONDS)
            # What has come meanwhile counts, where it is this process that was held up.
            self._receive()
            if not answer.done():
                if self._taken == taken:
                    self._kill()
                raise SpawnFailed("the supervisor did not answer in time", may_have_started=True)
            reply = answer.result()
        except TimeoutError:
            raise SpawnFailed("the zygote takes no request in time", may_have_started=False) from None
        finally:
            self._answers.pop(number, None)
        if reply is None:
            raise SpawnFailed("the zygote ended before the supervisor answered", may_have_started=True)
        if "identity" in reply:
            return SupervisorIdentity(**reply["identity"])
        if "error" in reply:
            raise SpawnFailed(str(reply["error"]), may_have_started=False)
        raise SpawnFailed(str(reply.get("refused", "the supervisor ended early")), may_have_started=True)

    async def _hand(self, request: bytes) -> None:
        """Hand the zygote a request, in the order of the calls: once its socket has room, which a burst of requests
        takes up for a moment. Whole or, where this raises or is cancelled, not at all."""
        async with self._turn:
            while not self.gone:
                try:
                    self._connection.send(request)
                except BlockingIOError:
                    await self._wait_for_room()
                except (BrokenPipeError, ConnectionResetError):
                    self._lose()
                except OSError as error:
                    raise SpawnFailed(f"the zygote takes no request: {error}", may_have_started=False) from None
                else:
                    return
            raise _ZygoteEnded("the zygote has ended")

    async def _wait_for_room(self) -> None:
        """Return when the socket may have room, or is closed."""
        loop = asyncio.get_running_loop()
        self._room.clear()
        loop.add_writer(self._connection.fileno(), self._room.set)
        try:
            await self._room.wait()
        finally:
            if not self.gone:
                loop.remove_writer(self._connection.fileno())

    def _kill(self) -> None:
        """End one that takes no request: all that it was handed would wait in vain, and all that comes after. Nothing
        of that is started any more once it is dead, and what it has started goes on."""
        _log.error("the zygote (process %d) takes no request and is killed", self._process.pid)
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._lose()

    async def stop(self) -> None:
        """End it, by force where it does not in 2 s. What the kernel holds up even then ends, and is reaped, later."""
        self._lose()
        if not await self._ended():
            self._process.kill()
            if not await self._ended():
                _log.error("the zygote (process %d) does not end; another one takes its place", self._process.pid)
                return
        self._reap()

    async def _ended(self) -> bool:
        try:
            await asyncio.to_thread(self._process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _reap(self) -> None:
        """Leave no zombie, whenever the next job comes. Repeatable."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self._process.poll()

    def _receive(self) -> None:
        while True:
            try:
                message = self._connection.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._lose()
                return
            reply = json.loads(message)
            if "ready" in reply:
                self._ready.set()
                self._taken += 1
                continue
            answer = self._answers.pop(reply["id"], None)
            if answer is not None and not answer.done():
                answer.set_result(reply)

    def _lose(self) -> None:
        if self.gone:
            return
        self.gone = True
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        asyncio.get_running_loop().remove_writer(self._connection.fileno())
        self._connection.close()
        self._ready.set()
        self._room.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(None)


def _launch(connection: socket.socket, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the process. Not by the event loop, whose fork runs the handlers of gRPC in the child, and these abort it
    when they come at the wrong moment; a vfork runs none, and takes no time. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _ZYGOTE, str(connection.fileno()), *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=[connection.fileno()],
        start_new_session=True,
    )


class SupervisorHandle:
    """A supervisor that was found alive. To be closed."""

    def __init__(self, directory: Path, identity: SupervisorIdentity, descriptor: int) -> None:
        self.identity = identity
        self._directory = directory
        self._pidfd = descriptor
        self._watch: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @classmethod
    def adopt(cls, directory: Path) -> Self | None:
        """The supervisor of the attempt in this directory, proven alive by pid, start time and boot id; else None.

        None is no proof that none is about to come: `lost.finish_lost` makes sure of that.
        """
        try:
            identity = SupervisorIdentity.read(directory)
        except SupervisorUnknown:
            identity = None
        if identity is None:
            # All that was written of it may be lost while it lives.
            identity = SupervisorIdentity.listening(directory)
        if identity is None or not identity.of_this_boot:
            return None
        try:
            descriptor = os.pidfd_open(identity.pid)
        except OSError:
            return None
        # After the pidfd was opened, so that it stands for this process and no other.
        if identity.process() is None:
            os.close(descriptor)
            return None
        return cls(directory, identity, descriptor)

    @property
    def alive(self) -> bool:
        """Whether the supervisor's process runs."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    async def wait_growth(self, timeout: float) -> None:
        """Wait until the spool has grown since the last call, the supervisor is gone, or the seconds have passed.

        Growth is never missed: read the spool after each return.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                if self._watch is None:
                    await self._open_watch()
                if not await self._grown():
                    # It listens no longer: nothing but its end can follow.
                    self._close_watch()
                    await self.wait_gone()

    async def wait_gone(self) -> None:
        """Wait until the supervisor's process has ended."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        # A descriptor of its own, so that several may wait.
        descriptor = os.dup(self._pidfd)
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def stop(self, kind: StopKind, reason: str) -> None:
        """Have the supervisor take up a stop. Safe to repeat; a stronger kind overtakes a weaker one.

        Raises:
            SupervisorUnreachable: it has not taken it up within 5 s.
        """
        command = json.dumps({"kind": kind, "reason": reason[:1000]}).encode() + b"\n"
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                reader, writer = await self._connect()
                try:
                    faults.point("agent.stop.sending")
                    writer.write(command)
                    answer = await reader.readline()
                    faults.point("agent.stop.answered")
                finally:
                    writer.close()
        except TimeoutError:
            raise SupervisorUnreachable("the supervisor does not answer") from None
        except OSError as error:
            raise SupervisorUnreachable(f"the supervisor cannot be reached: {error.strerror}") from None
        if answer != b"ok\n":
            raise SupervisorUnreachable("the supervisor ended before it answered")

    def kill(self) -> None:
        """Kill the supervisor itself, as a last resort against one that hangs; then finish the attempt as lost."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let the supervisor go; it runs on. Repeatable."""
        self._close_watch()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _grown(self) -> bool:
        try:
            return self._watch is not None and bool(await self._watch[0].read(4096))
        except ConnectionError:
            return False

    async def _open_watch(self) -> None:
        try:
            reader, writer = await self._connect()
        except OSError:
            return
        writer.write(b'{"kind": "WATCH"}\n')
        self._watch = reader, writer

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch[1].close()
            self._watch = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # A socket's path has at most 107 bytes; through the open directory it always fits.
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}/{CONTROL}")
        finally:
            os.close(descriptor)
