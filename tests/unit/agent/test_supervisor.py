"""What a supervisor says of a payload that it could not start."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.sis_agent.agent.linux.process_limit import ProcessLimit
from services.sis_agent.agent.linux.process_tree import ProcessTree
from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.recording.spool import SpoolReader, SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision.start_failed import StartFailed
from services.sis_agent.agent.supervision.supervisor import Order, Supervisor
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as pb


class LaggingTree(ProcessTree):
    """A tree whose last process the kernel has reaped, and takes out of the cgroup some looks later."""

    method = "cgroup"

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def enter(self) -> None:
        raise NotImplementedError

    def members(self) -> list[ProcessInfo]:
        return []

    def empty(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def kill(self) -> list[ProcessInfo]:
        return []

    def close(self) -> None:
        """Nothing to do."""


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A supervisor takes its process's for itself."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)


def finished(directory: Path, tree: ProcessTree) -> pb.Finished:
    """The end of an attempt whose package cannot be used."""
    order = Order(
        directory=directory,
        package_directory=directory,
        manifest="the package cannot be used",
        assignment=dispatch.Assignment(),
        identity=SupervisorIdentity(1, 1, "", "1.1.0"),
        leases=StartFailed("not asked for"),
        limit=ProcessLimit.of(0, "", None),
    )
    with SpoolWriter.open(directory / "spool") as writer:
        Supervisor(order, tree, writer, Masker()).run()
    with SpoolReader(directory / "spool") as reader:
        return pb.Frame.FromString(reader.read(0, 1 << 20)[-1]).notice.finished


def test_a_start_that_failed_is_confirmed_although_the_cgroup_lags(tmp_path: Path) -> None:
    end = finished(tmp_path, LaggingTree(looks=2))
    assert end.outcome == pb.OUTCOME_FAILED
    assert end.evidence.tree_empty


def test_a_start_that_failed_is_not_confirmed_where_something_is_left(tmp_path: Path) -> None:
    assert not finished(tmp_path, LaggingTree(looks=1 << 30)).evidence.tree_empty
