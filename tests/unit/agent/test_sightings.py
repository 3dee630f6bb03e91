"""What is kept of the processes that were seen."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.recording.spool import SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision.evidence import Evidence
from services.sis_agent.agent.supervision.sightings import Leader, read_keys, read_leaders


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "processes"


@pytest.fixture
def evidence(tmp_path: Path, file: Path) -> Iterator[Evidence]:
    with SpoolWriter.open(tmp_path / "spool") as writer:
        evidence = Evidence(Recorder(writer, Masker()), file)
        yield evidence
        evidence.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session, until its standard input is closed."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True) as child:
        yield child


def info(pid: int) -> ProcessInfo:
    found = processes.read(pid)
    assert found is not None
    return found


def test_the_end_of_a_leader_is_noticed_by_a_look_around(
    evidence: Evidence, file: Path, child: subprocess.Popen[bytes]
) -> None:
    leader = info(child.pid)
    evidence.looked([leader])
    evidence.looked([])
    assert read_leaders(file) == {child.pid: Leader(leader.start_ticks, None)}, "it lives, whatever a look has missed"
    child.communicate()
    before = processes.now_ticks()
    evidence.looked([])
    evidence.looked([])
    (found,) = read_leaders(file).values()
    assert found.ended_ticks is not None
    assert before <= found.ended_ticks <= processes.now_ticks()
    assert set(read_keys(file)) == {leader.key}


def test_the_end_of_a_leader_that_is_reaped_is_kept(
    evidence: Evidence, file: Path, child: subprocess.Popen[bytes]
) -> None:
    leader = info(child.pid)
    evidence.payload(leader)
    evidence.reaped(leader, 0)
    assert read_leaders(file)[child.pid].ended_ticks is not None


def test_who_takes_a_session_later_leads_it_from_then_on(evidence: Evidence, file: Path) -> None:
    own = replace(info(os.getpid()), session=1)
    evidence.seen([own])
    assert read_leaders(file) == {}
    evidence.seen([replace(own, session=own.pid)] * 2)
    assert read_leaders(file) == {own.pid: Leader(own.start_ticks, None)}
    assert read_keys(file) == [own.key] * 2


def test_who_has_the_id_of_a_leader_without_leading_takes_its_place(evidence: Evidence, file: Path) -> None:
    own = info(os.getpid())
    evidence.seen([replace(own, start_ticks=1, session=own.pid), replace(own, session=1)])
    assert read_leaders(file) == {}
