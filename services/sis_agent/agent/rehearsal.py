"""Runs one operation of a package on this machine as an agent runs a job's, without a hub and a queue.

`python -m services.sis_agent.agent.rehearsal DIR`, where the package lies. On standard input comes the length of a
serialised Assignment in four bytes, big-endian, and the Assignment; the end of the input asks the payload to end. On
standard output go the frames of the log, each with its length before it. SIGTERM and SIGINT end the payload at once.
Exits 0 behind the last frame, and with 1 and a reason on standard error where nothing was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import sys
import tempfile
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from services.sis_agent.agent.attempts import AttemptDirectories, AttemptKey
from services.sis_agent.agent.linux.removal import remove_tree
from services.sis_agent.agent.recording.spool import SpoolBusy, SpoolReader
from services.sis_agent.agent.supervision.handle import (
    SpawnFailed,
    StopKind,
    SupervisorHandle,
    SupervisorUnreachable,
    Zygote,
)
from services.sis_agent.agent.supervision.lost import finish_lost
from services.sis_agent.agent.supervision.supervisor_identity import LOG, SPOOL
from sis.packages import archive
from sis.packages.archive import InvalidArchive
from sis.queue.v1 import dispatch_service_pb2 as dispatch

LENGTH: Final = struct.Struct(">I")
_MAX_ASSIGNMENT_BYTES: Final = 16 << 20
_READ_BYTES: Final = 1 << 20
_LOOK_SECONDS: Final = 0.05
_GROWTH_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 1.0
_REFUSALS: Final = 5


class Rehearsal:
    """One attempt, in the directory of its own that is given."""

    def __init__(self, root: Path, package: Path, assignment: dispatch.Assignment) -> None:
        self._root = root
        self._package = package
        self._assignment = assignment
        self._directory = root / "attempts" / str(AttemptKey.of(assignment.attempt))
        self.faults: Final = self._directory / LOG
        """Those of the supervisor itself, if there are any."""
        self._spool = SpoolReader(self._directory / SPOOL)
        self._sequence = 0
        self._heard = True
        self._stop: StopKind | None = None
        self._stopping = asyncio.Event()

    def stop(self, kind: StopKind) -> None:
        """End the payload. A stronger kind overtakes a weaker one; repeatable."""
        if self._stop is not StopKind.ABORT:
            self._stop = kind
            self._stopping.set()

    async def run(self) -> None:
        """Run to the end; returns when nothing of the payload is left and the last frame is written.

        Raises:
            InvalidArchive: the directory is no package.
            SpawnFailed, OSError: nothing was started.
        """
        await asyncio.to_thread(self._prepare)
        zygote = Zygote()
        try:
            try:
                await zygote.spawn(self._directory, self._root / "package")
            except SpawnFailed as error:
                if not error.may_have_started:
                    raise
            await self._follow()
        finally:
            await zygote.stop()
            self._spool.close()

    def _prepare(self) -> None:
        """As a package arrives at an agent: packed and unpacked again."""
        packed = self._root / "archive"
        packed.write_bytes(archive.pack(self._package))
        archive.extract(packed, self._root / "package")
        AttemptDirectories(self._root / "attempts").create(self._assignment)

    async def _follow(self) -> None:
        while True:
            handle = SupervisorHandle.adopt(self._directory)
            if handle is not None:
                with handle:
                    await self._watch(handle)
            try:
                await asyncio.to_thread(finish_lost, self._directory)
            except SpoolBusy:
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                await self._tell()
                return

    async def _watch(self, handle: SupervisorHandle) -> None:
        stops = asyncio.create_task(self._pass_on_stops(handle))
        try:
            while handle.alive:
                try:
                    await handle.wait_growth(_GROWTH_SECONDS)
                except ConnectionError:
                    await handle.wait_gone()
                await self._tell()
        finally:
            stops.cancel()
            await asyncio.gather(stops, return_exceptions=True)

    async def _pass_on_stops(self, handle: SupervisorHandle) -> None:
        refusals = 0
        while True:
            await self._stopping.wait()
            self._stopping.clear()
            try:
                await handle.stop(self._stop or StopKind.CANCEL, "the rehearsal was interrupted")
            except SupervisorUnreachable:
                refusals += 1
                if self._stop is StopKind.ABORT and refusals >= _REFUSALS:
                    handle.kill()  # it hangs
                    return
                await asyncio.sleep(_RETRY_SECONDS)
                self._stopping.set()

    async def _tell(self) -> None:
        """Write what is new in the spool. Whoever has gone away is told nothing more."""
        while frames := self._spool.read(self._sequence, _READ_BYTES):
            self._sequence += len(frames)
            if self._heard:
                # In a thread: a reader that holds still must not keep a stop waiting.
                self._heard = await asyncio.to_thread(_write, b"".join(LENGTH.pack(len(raw)) + raw for raw in frames))


def _write(data: bytes) -> bool:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(1, view) :]
    except BrokenPipeError:
        return False
    return True


def _read_assignment() -> dispatch.Assignment:
    """Raises ValueError, DecodeError: what comes is none."""
    header = sys.stdin.buffer.read(LENGTH.size)
    size = LENGTH.unpack(header)[0] if len(header) == LENGTH.size else 0
    if not 0 < size <= _MAX_ASSIGNMENT_BYTES:
        raise ValueError("there is no assignment on standard input")
    content = sys.stdin.buffer.read(size)
    if len(content) < size:
        raise ValueError("the assignment on standard input ends in the middle")
    return dispatch.Assignment.FromString(content)


async def rehearse(package: Path, assignment: dispatch.Assignment) -> None:
    """Run an assignment in this event loop, stopped by this process's input and signals. Raises as `Rehearsal.run`."""
    root = Path(tempfile.mkdtemp(prefix="sis-rehearsal-"))
    rehearsal = Rehearsal(root, package, assignment)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, rehearsal.stop, StopKind.ABORT)

    def input_ended() -> None:
        loop.remove_reader(0)
        rehearsal.stop(StopKind.CANCEL)

    loop.add_reader(0, input_ended)
    try:
        await rehearsal.run()
        with contextlib.suppress(FileNotFoundError):
            sys.stderr.write(rehearsal.faults.read_text(errors="replace"))
    finally:
        loop.remove_reader(0)
        remove_tree(root)


def main() -> None:
    """See the module."""
    try:
        asyncio.run(rehearse(Path(sys.argv[1]), _read_assignment()))
    except (InvalidArchive, SpawnFailed, ValueError, DecodeError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'the rehearsal'}: {error.strerror or error}")


if __name__ == "__main__":
    main()
