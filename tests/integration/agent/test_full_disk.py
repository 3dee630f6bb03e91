"""A site whose disk is full: nothing is lost, nothing is started that could not be recorded, and it says what it waits
for. The state lies on a file system of 4 MiB in a mount namespace of the agent's own."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sis.queue.v1 import frame_pb2
from tests.fakes.hub import FakeHub
from tests.integration.agent.site import Site, key, until
from tests.support import agent_process
from tests.support.agent_process import AgentProcess
from tests.support.certificates import CertificateAuthority

pytestmark = pytest.mark.root

_SMALL = """
cp -a "$SIS_AGENT_STATE" "$SIS_AGENT_STATE.seed"
mount -t tmpfs -o size=4m tmpfs "$SIS_AGENT_STATE"
cp -a "$SIS_AGENT_STATE.seed/." "$SIS_AGENT_STATE"
exec "$@"
"""
COUNT = 60_000
FLOOD = f"until [ -e $SCRATCH/go ]; do sleep 0.02; done; seq 1 {COUNT}; touch $SCRATCH/written; echo over"


class SmallDisk:
    """The file system of the agent's state, seen from outside of its namespace."""

    def __init__(self, pid: int, state: Path) -> None:
        self.state = Path(f"/proc/{pid}/root{state}")
        self._filler = self.state / "filler"

    def fill(self) -> None:
        """Leave no room at all."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    command = ("unshare", "--mount", "sh", "-ec", _SMALL, "-", *agent_process._COMMAND)
    monkeypatch.setattr(agent_process, "_COMMAND", command)
    authority = CertificateAuthority(tmp_path / "tls")
    hub = FakeHub(authority)
    await hub.start()
    agent = AgentProcess(tmp_path / "state", hub.endpoint, authority)
    try:
        yield Site(hub, agent, tmp_path)
    finally:
        await agent.clear()
        await hub.stop()


async def test_it_takes_no_job_loses_no_byte_and_goes_on_when_there_is_room(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    flood, later = site.job(site.started(FLOOD)), site.job(site.started("echo later"))
    await stream.accept(flood)
    log = site.hub.logs[key(flood)]
    await stream.commit_until(lambda: log.fact("process_started") and site.starts == 1)
    assert site.agent._process is not None
    disk = SmallDisk(site.agent._process.pid, site.agent.state)
    disk.fill()
    (site.scratch / "go").touch()
    stream.assign(later)
    again = await site.hub.stream()
    assert again.hello.draining
    assert list(again.in_hand) == [key(flood)]
    again.welcome()
    assert "this agent takes no jobs until" in site.agent.log
    assert site.agent.log.count("this agent takes no jobs until") == 1
    assert "Traceback" not in site.agent.log
    await again.beat(lambda beat: beat.draining and key(flood) in {(a.job_id, a.number) for a in beat.attempts})
    assert not (site.scratch / "written").exists(), "the payload is held back"

    disk.free()
    await again.beat(lambda beat: not beat.draining and beat.free_slots > 0)
    assert "this agent takes jobs" in site.agent.log
    again.assign(later)
    await again.commit_until(
        lambda: bool(log.finished and site.hub.logs[key(later)].finished) and site.hub.logs[key(later)].accepted == 1
    )
    assert log.output == b"".join(b"%d\n" % n for n in range(1, COUNT + 1)) + b"over\n", log.texts
    assert site.hub.logs[key(later)].output == b"later\n"
    for each in (flood, later):
        finished = site.hub.logs[key(each)].finished
        assert finished is not None
        assert finished.outcome == frame_pb2.OUTCOME_SUCCEEDED
        assert finished.evidence.tree_empty
    assert site.starts == 2


async def test_a_job_can_be_stopped_while_there_is_no_room(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job("echo $$ > $SCRATCH/pid; until [ -e $SCRATCH/go ]; do sleep 0.02; done; yes")
    await stream.accept(job)
    await until((site.scratch / "pid").exists)
    assert site.agent._process is not None
    disk = SmallDisk(site.agent._process.pid, site.agent.state)
    disk.fill()
    (site.scratch / "go").touch()
    stream.stop(key(job), frame_pb2.STOP_KIND_ABORT)
    pid = int((site.scratch / "pid").read_text())
    await until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the payload")
    assert site.hub.logs[key(job)].finished is None, "nobody says so before it is durable"
    disk.free()
    await stream.commit_all(key(job))
    finished = site.hub.logs[key(job)].finished
    assert finished is not None
    assert finished.outcome == frame_pb2.OUTCOME_STOPPED
    assert finished.evidence.tree_empty
