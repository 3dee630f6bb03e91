"""Attempts with real supervisors, with each kind of tree that can be had."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.cgroup_tree import Cgroup
from services.sis_agent.agent.supervision import stage
from services.sis_agent.agent.supervision.handle import TreeKind, Zygote
from services.sis_agent.agent.supervision.supervisor_identity import IDENTITY, SupervisorIdentity
from tests.support.attempts import Attempts
from tests.support.sealed import SealedIdentity


@pytest.fixture(params=[TreeKind.SUBREAPER, pytest.param(TreeKind.BEST, marks=pytest.mark.root)])
async def attempts(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Attempts]:
    """With the subreaper alone, and with a cgroup, which takes root."""
    zygote = Zygote(request.param, identity_directory=tmp_path / "identity")
    yield Attempts(tmp_path, zygote)
    await zygote.stop()
    _end_leftovers(tmp_path)


@pytest.fixture
def identity(tmp_path: Path) -> SealedIdentity:
    """That of the agent whose attempts these are."""
    return SealedIdentity(tmp_path / "identity")


@pytest.fixture
async def attempts_anyhow(tmp_path: Path) -> AsyncIterator[Attempts]:
    """With the best tree that can be had: for what does not depend on the tree."""
    zygote = Zygote(identity_directory=tmp_path / "identity")
    yield Attempts(tmp_path, zygote)
    await zygote.stop()
    _end_leftovers(tmp_path)


def _end_leftovers(root: Path) -> None:
    """A test that failed may have left its payload running."""
    found = [SupervisorIdentity.read(file.parent) for file in root.glob(f"*/{IDENTITY}")]
    left = {f"SIS_ATTEMPT={each.attempt}".encode(): each for each in found if each is not None}
    for process in processes.read_all():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if process.pid != os.getpid() and not left.keys().isdisjoint(environment):
            processes.send_signal(process, signal.SIGKILL)
    for each in left.values():
        stage.remove_leftovers(each.attempt, root)
        if each.cgroup:
            Cgroup(Path(each.cgroup)).remove()
