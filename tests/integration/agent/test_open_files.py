"""How many files an agent may have open, and how many a payload."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.hub import FakeHub
from tests.integration.agent.site import Site, key
from tests.support.agent_process import AgentProcess
from tests.support.certificates import CertificateAuthority


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    authority = CertificateAuthority(tmp_path / "tls")
    hub = FakeHub(authority)
    await hub.start()
    agent = AgentProcess(tmp_path / "state", f"127.0.0.1:{hub.port}", authority)
    try:
        yield Site(hub, agent, tmp_path)
    finally:
        await agent.clear()
        await hub.stop()


async def test_an_agent_may_have_more_open_than_it_was_started_with_and_its_payloads_may_not(site: Site) -> None:
    """It has three open for each attempt, and may have a thousand attempts, where 1,024 are the usual limit; programs
    that close all that they may have open, or use select, suffer from a higher one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        site.agent.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    stream = await site.hub.stream()
    stream.welcome()
    assert resource.prlimit(site.agent.pid, resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)
    job = site.job("ulimit -S -n; ulimit -H -n")
    await stream.accept(job)
    await stream.commit_all(key(job))
    assert site.hub.logs[key(job)].output == b"512\n%d\n" % hard
