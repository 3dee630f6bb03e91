"""Attempts with real supervisors, with each kind of tree that can be had."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.sis_agent.agent import processes
from services.sis_agent.agent.cgroup_tree import Cgroup
from services.sis_agent.agent.handle import TreeKind, Zygote
from services.sis_agent.agent.supervisor_identity import IDENTITY
from tests.support.attempts import Attempts


@pytest.fixture(params=[TreeKind.SUBREAPER, pytest.param(TreeKind.BEST, marks=pytest.mark.root)])
async def attempts(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Attempts]:
    """With the subreaper alone, and with a cgroup, which takes root."""
    zygote = Zygote(request.param)
    yield Attempts(tmp_path, zygote)
    await zygote.stop()
    _end_leftovers(tmp_path)


@pytest.fixture
async def attempts_anyhow(tmp_path: Path) -> AsyncIterator[Attempts]:
    """With the best tree that can be had: for what does not depend on the tree."""
    zygote = Zygote()
    yield Attempts(tmp_path, zygote)
    await zygote.stop()
    _end_leftovers(tmp_path)


def _end_leftovers(root: Path) -> None:
    """A test that failed may have left its payload running."""
    for process in processes.read_all():
        if process.pid == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
        if f"SIS_WORK_DIR={root}/".encode() in environment:
            processes.send_signal(process, signal.SIGKILL)
    for file in root.glob(f"*/{IDENTITY}"):
        if cgroup := json.loads(file.read_bytes())["cgroup"]:
            Cgroup(Path(cgroup)).remove()
