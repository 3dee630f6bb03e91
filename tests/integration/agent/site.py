"""What the tests of a whole agent share: a fake hub, an agent process, a package, and jobs for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from services.sis_agent.agent.recording.spool import SpoolReader
from sis.packages import archive
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import job_pb2
from tests.fakes.hub import PATIENCE_SECONDS, FakeHub, Key
from tests.support.agent_process import AgentProcess
from tests.support.tcp_proxy import TcpProxy

MANIFEST = """
name: test.shell
version: 1.0.0
publisher: SIS
description: Runs a script.
platforms: [linux]
operations:
  run:
    description: Runs the script.
    command: [/bin/sh, -c, "{param.script}"]
    inputs:
      script: {type: string, required: true, description: The script.}
"""


class Site:
    """An agent beside a hub that the test plays."""

    def __init__(self, hub: FakeHub, agent: AgentProcess, scratch: Path, proxy: TcpProxy | None = None) -> None:
        self.hub = hub
        self.agent = agent
        self.proxy = proxy
        self.scratch = scratch
        package = scratch / "package"
        package.mkdir()
        (package / "package.yaml").write_text(MANIFEST)
        packed = archive.pack(package)
        self.digest = archive.digest(packed)
        hub.packages[self.digest] = packed
        self._jobs = 0

    def job(self, script: str, **fields: object) -> dispatch.Assignment:
        """The assignment of a new job; its script can write to $SCRATCH."""
        self._jobs += 1
        assignment = dispatch.Assignment(
            attempt=dispatch.Attempt(job_id=self._jobs, number=1),
            display_name="a test",
            package=job_pb2.PackageReference(name="test.shell", version="1.0.0", digest=self.digest),
            operation="run",
            parameters={"script": job_pb2.ParameterValue(plain=f"SCRATCH={self.scratch}; {script}")},
            log_cap_bytes=64 << 20,
        )
        assignment.cancel_grace.FromMilliseconds(500)
        assignment.start_timeout.FromSeconds(60)
        assignment.output_timeout.FromSeconds(60)
        assignment.MergeFrom(dispatch.Assignment(**fields))  # type: ignore[arg-type]
        return assignment

    def started(self, script: str = "") -> str:
        """A script that leaves a line for each time that it is started, and goes on with another one."""
        return f"echo started >> $SCRATCH/starts; {script}"

    @property
    def starts(self) -> int:
        path = self.scratch / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


def key(assignment: dispatch.Assignment) -> Key:
    return assignment.attempt.job_id, assignment.attempt.number


def has_ended(directory: Path) -> bool:
    """Whether the last frame of the attempt is in its spool."""
    with SpoolReader(directory / "spool") as spool:
        return spool.last_sequence > 0 and spool.finished is not None


async def until(true: Callable[[], object], what: str = "") -> None:
    """Wait until something outside of the test's reach has become true."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not true():  # noqa: ASYNC110  (nobody here could set an event)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what or 'it'} never came true") from None
