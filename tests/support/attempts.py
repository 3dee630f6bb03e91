"""Real attempts in temporary directories: packages, assignments, and what their spools say."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from services.sis_agent.agent.attempts import write_assignment
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.recording.spool import SpoolReader
from services.sis_agent.agent.supervision.handle import SupervisorHandle, Zygote
from services.sis_agent.agent.supervision.supervisor_identity import SPOOL
from sis.packages.values import File
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

PATIENCE_SECONDS = 20.0
SHELL = ["/bin/sh", "-c", "{param.script}"]
UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"
"""A piece of a script that waits for `Attempt.go`."""
PYTHON = [sys.executable, "-c", "{param.script}"]

_numbers = itertools.count(1)


class Attempt:
    """An attempt that was, or is to be, supervised."""

    def __init__(self, directory: Path, package: Path) -> None:
        self.directory = directory
        self.package = package

    @property
    def spool(self) -> Path:
        return self.directory / SPOOL

    def handle(self) -> SupervisorHandle:
        handle = SupervisorHandle.adopt(self.directory)
        assert handle is not None, "no supervisor lives"
        return handle

    def raw_frames(self) -> list[bytes]:
        with SpoolReader(self.spool) as reader:
            return reader.read(0, 1 << 40)

    def frames(self) -> list[pb.Frame]:
        return [pb.Frame.FromString(raw) for raw in self.raw_frames()]

    def output(self, channel: job_pb2.Channel.ValueType = job_pb2.CHANNEL_STDOUT) -> bytes:
        return b"".join(frame.chunk.data for frame in self.frames() if frame.chunk.channel == channel)

    def notices(self, fact: str = "") -> list[pb.Notice]:
        notices = [frame.notice for frame in self.frames() if frame.HasField("notice")]
        return [notice for notice in notices if not fact or notice.WhichOneof("fact") == fact]

    def text(self) -> str:
        return "\n".join(notice.text for notice in self.notices())

    def faults(self) -> str:
        return (self.directory / "supervisor.log").read_text()

    def finished(self) -> pb.Finished:
        """The last frame, which must agree with all before it."""
        frames, raw = self.frames(), self.raw_frames()
        assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
        finished = frames[-1].notice.finished
        digest = bytes(32)
        for data in raw[:-1]:
            digest = hashlib.sha256(digest + data).digest()
        assert finished.digest == digest, self.text()
        return finished

    async def until(self, condition: Callable[[Attempt], object]) -> None:
        """Wait until the spool says so."""
        handle = SupervisorHandle.adopt(self.directory)
        if handle is None:
            assert condition(self), f"no supervisor lives:\n{self.text()}\n{self.faults()}"
            return
        with handle:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    alive = handle.alive  # asked first: what it wrote last counts
                    if condition(self):
                        return
                    assert alive, f"the supervisor ended first:\n{self.text()}\n{self.faults()}"
                    await handle.wait_growth(1.0)

    async def until_output(self, text: bytes) -> None:
        await self.until(lambda attempt: text in attempt.output())

    async def until_started(self, count: int) -> list[job_pb2.Process]:
        """Wait until the spool names so many processes, the executor among them."""
        await self.until(lambda attempt: len(attempt.notices("process_started")) >= count)
        return [notice.process_started.process for notice in self.notices("process_started")]

    def go(self) -> None:
        """Let a script go on that does `UNTIL_GO`."""
        (self.directory / "work" / "go").touch()

    async def end(self) -> pb.Finished:
        """Wait for the supervisor's end and return the last frame."""
        handle = SupervisorHandle.adopt(self.directory)
        if handle is not None:
            with handle:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await handle.wait_gone()
        assert self.faults() == ""
        return self.finished()


class Attempts:
    """Makes attempts below a directory and has them supervised."""

    def __init__(self, root: Path, zygote: Zygote) -> None:
        self._root = root
        self.zygote = zygote

    def prepare(
        self,
        script: str = "",
        *,
        command: Sequence[str] = SHELL,
        outputs: Mapping[str, bool] | None = None,
        output_markers: bool = False,
        run_timeout: float = 0.0,
        grace: float = 0.3,
        output_timeout: float = 60.0,
        log_cap_bytes: int = 0,
        inputs: Mapping[str, object] | None = None,
        files: Mapping[str, File] | None = None,
        credentials: Mapping[str, object] | None = None,
        leases: Callable[[dispatch.Assignment], object] | None = None,
    ) -> Attempt:
        """A package with one operation, and an attempt of it that nobody supervises yet.

        `inputs` and `credentials` are declared by the operation as well, and so are the inputs that `files` are given
        for; `leases` puts leases into the assignment.
        """
        number = next(_numbers)
        package = self._root / f"package-{number}"
        package.mkdir()
        operation = {
            "command": list(command),
            "inputs": {
                "script": {"type": "string"},
                **(inputs or {}),
                **{name: {"type": "file"} for name in files or {}},
            },
            "credentials": credentials or {},
            "outputs": {name: {"required": required} for name, required in (outputs or {}).items()},
            "output_markers": output_markers,
        }
        manifest = {"name": "test.package", "version": "1.0.0", "operations": {"run": operation}}
        (package / "package.yaml").write_text(json.dumps(manifest))  # JSON is YAML
        assignment = dispatch.Assignment(
            attempt=dispatch.Attempt(job_id=number, number=1),
            operation="run",
            parameters={"script": job_pb2.ParameterValue(plain=script)},
            cancel_grace=duration(grace),
            output_timeout=duration(output_timeout),
            log_cap_bytes=log_cap_bytes,
        )
        for name, file in (files or {}).items():
            assignment.parameters[name].file.MergeFrom(job_pb2.FileValue(name=file.name, content=file.content))
        if run_timeout:
            assignment.run_timeout.CopyFrom(duration(run_timeout))
        if leases is not None:
            leases(assignment)
        directory = self._root / f"{number}.1"
        directory.mkdir(mode=0o700)
        write_assignment(directory, assignment)
        return Attempt(directory, package)

    async def spawn(self, attempt: Attempt) -> Attempt:
        await self.zygote.spawn(attempt.directory, attempt.package)
        return attempt

    async def start(self, script: str = "", **options: object) -> Attempt:
        """Prepare, and have it supervised."""
        return await self.spawn(self.prepare(script, **options))  # type: ignore[arg-type]

    async def run(self, script: str = "", **options: object) -> Attempt:
        """Start, and wait for its end."""
        attempt = await self.start(script, **options)
        await attempt.end()
        return attempt


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so that nobody tells of."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def duration(seconds: float) -> Duration:
    value = Duration()
    value.FromMilliseconds(int(seconds * 1000))
    return value


def is_alive(pid: int) -> bool:
    process = processes.read(pid)
    return process is not None and process.alive


def alive_with(mark: str) -> list[str]:
    """The command lines of living processes in which a text occurs."""
    found = []
    for process in processes.read_all():
        try:
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line and process.alive and process.pid != os.getpid():
            found.append(line)
    return found
