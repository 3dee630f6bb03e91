"""What an attempt has on disk is what was written, or it is known to be damaged: never something else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.sis_agent.agent.attempts import (
    ASSIGNMENT,
    AssignmentDamaged,
    AttemptDirectories,
    AttemptKey,
    read_assignment,
    write_assignment,
)
from services.sis_agent.agent.errors import IdentityDamaged, NotEnrolled
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.recording.spool import SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision.evidence import Evidence
from services.sis_agent.agent.supervision.sightings import read_keys
from services.sis_agent.agent.supervision.supervisor_identity import (
    CONTROL,
    EMPTIED,
    IDENTITY,
    MARK,
    SPOOL,
    SupervisorIdentity,
    SupervisorUnknown,
    was_supervised,
)
from services.sis_agent.agent.trust import certification
from services.sis_agent.agent.trust.identity import IDENTITY as OWN
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import job_pb2
from tests.support.agent_process import write_identity
from tests.support.certificates import CertificateAuthority
from tests.support.sealed import SealedIdentity


def damaged(content: bytes) -> Iterator[bytes]:
    """Cut off at every byte; one bit flipped in every byte."""
    chance = random.Random(len(content))
    for position in range(len(content)):
        yield content[:position]
        yield content[:position] + bytes([content[position] ^ 1 << chance.randrange(8)]) + content[position + 1 :]


@pytest.fixture
def assignment() -> dispatch.Assignment:
    parameters = {"script": job_pb2.ParameterValue(plain="rm -r /srv/old")}
    return dispatch.Assignment(attempt=dispatch.Attempt(job_id=7, number=1), operation="run", parameters=parameters)


def test_an_assignment_is_never_another_one(tmp_path: Path, assignment: dispatch.Assignment) -> None:
    write_assignment(tmp_path, assignment)
    assert read_assignment(tmp_path) == assignment
    file = tmp_path / ASSIGNMENT
    for content in damaged(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(AssignmentDamaged, match=str(file)):
            read_assignment(tmp_path)


def test_a_damaged_assignment_is_one_of_nothing(
    tmp_path: Path, assignment: dispatch.Assignment, caplog: pytest.LogCaptureFixture
) -> None:
    directories, key = AttemptDirectories(tmp_path), AttemptKey(7, 1)
    directories.create(assignment)
    file = directories.path(key) / ASSIGNMENT
    file.write_bytes(file.read_bytes().replace(b"/srv/old", b"/srv/olf"))
    assert directories.assignment(key) == dispatch.Assignment(attempt=assignment.attempt)
    assert f"{file} is damaged" in caplog.text
    assert "Traceback" not in caplog.text


def test_an_assignment_that_cannot_be_read_is_one_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directories = AttemptDirectories(tmp_path)
    (directories.path(AttemptKey(7, 1)) / ASSIGNMENT).mkdir(parents=True)
    directories.path(AttemptKey(8, 1)).touch()
    for key in (AttemptKey(7, 1), AttemptKey(8, 1)):
        assert directories.assignment(key) == dispatch.Assignment(attempt=key.to_proto())
    assert "Is a directory" in caplog.text
    assert "Not a directory" in caplog.text


def test_a_supervisor_is_never_another_one(tmp_path: Path) -> None:
    written = SupervisorIdentity(4711, 99, processes.boot_id(), "7.1.abc", "/sys/fs/cgroup/x", "", 4710, 98)
    written.write(tmp_path)
    file = tmp_path / IDENTITY
    whole = file.read_bytes()
    for content in [*damaged(whole), b"", b"null", b"[]", b"{}", b"1", b'{"checksum": "0"}', b"\xff", b"[" * 100_000]:
        file.write_bytes(content)
        with pytest.raises(SupervisorUnknown, match=str(file)):
            SupervisorIdentity.read(tmp_path)
    file.write_bytes(whole)
    assert SupervisorIdentity.read(tmp_path) == written


def test_a_supervisor_whose_record_is_lost_is_known_by_the_mark_of_its_guardian(tmp_path: Path) -> None:
    written = SupervisorIdentity(4711, 99, processes.boot_id(), "7.1.abc", "", "", 4710, 98)
    written.write(tmp_path)
    written.mark(tmp_path)
    record, mark = tmp_path / IDENTITY, tmp_path / MARK
    whole = record.read_bytes()
    for content in damaged(whole):
        record.write_bytes(content)
        assert SupervisorIdentity.read(tmp_path) == written
    record.unlink()
    assert SupervisorIdentity.read(tmp_path) == written
    mark.rename(tmp_path / EMPTIED)
    assert SupervisorIdentity.read(tmp_path) == written
    (tmp_path / EMPTIED).rename(mark)
    for content in damaged(whole):
        mark.write_bytes(content)
        with pytest.raises(SupervisorUnknown, match=str(mark)):
            SupervisorIdentity.read(tmp_path)
    mark.write_bytes(whole)
    record.mkdir()  # as what cannot be read
    assert SupervisorIdentity.read(tmp_path) == written
    mark.unlink()
    with pytest.raises(IsADirectoryError):
        SupervisorIdentity.read(tmp_path)


@pytest.mark.parametrize("name", [IDENTITY, MARK, EMPTIED, "processes", CONTROL, "work", "supervisor.log"])
def test_whatever_a_supervisor_has_made_shows_that_there_was_one(tmp_path: Path, name: str) -> None:
    for own in (ASSIGNMENT, SPOOL, "orphaned"):
        (tmp_path / own).touch()
    assert not was_supervised(tmp_path)
    assert not was_supervised(tmp_path / "gone")
    (tmp_path / name).symlink_to("nowhere")
    assert was_supervised(tmp_path)


def test_a_process_that_was_seen_is_never_another_one(tmp_path: Path) -> None:
    file = tmp_path / "processes"
    seen = {(pid, 1000 + pid): processes.ProcessInfo(pid, 1000 + pid, 1, pid, "S", 1, b"x") for pid in (41, 42, 43)}
    with SpoolWriter.open(tmp_path / "spool") as writer:
        evidence = Evidence(Recorder(writer, Masker()), file)
        evidence.seen(seen.values())
        evidence.close()
    whole = file.read_bytes()
    assert set(read_keys(file)) == seen.keys()
    for content in damaged(whole):
        file.write_bytes(content)
        assert set(read_keys(file)) <= seen.keys()
    # What a full disk has cut short does not spoil the next one.
    file.write_bytes(whole[:-5] + whole)
    assert set(read_keys(file)) == seen.keys()
    assert len(read_keys(file)) == 5


def test_processes_of_before_a_restart_are_not_taken_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "processes"
    seen = processes.ProcessInfo(41, 1041, 1, 41, "S", 1, b"x")
    with SpoolWriter.open(tmp_path / "spool") as writer:
        evidence = Evidence(Recorder(writer, Masker()), file)
        evidence.seen([seen])
        evidence.close()
    assert read_keys(file) == [seen.key]
    monkeypatch.setattr(processes, "boot_id", lambda: "another")
    assert read_keys(file) == []


def test_an_identity_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    sealed = SealedIdentity(tmp_path / "identity")
    file = sealed.directory / OWN
    identity = AgentIdentity.load(sealed.directory)
    whole = identity.content()
    for content in damaged(whole):
        file.write_bytes(content)
        try:
            # The name of the checksum may be what is damaged: then nothing else is.
            assert AgentIdentity.load(sealed.directory) == identity
        except IdentityDamaged as error:
            assert str(error).startswith(f"{file} cannot be read (")
            assert str(error).endswith("): enrol again")
    wrong: list[object] = [None, [], "x", {"name": "a"}, {**json.loads(whole), "checksum": None, "generation": "many"}]
    for value in wrong:
        file.write_text(json.dumps(value))
        with pytest.raises(IdentityDamaged):
            AgentIdentity.load(sealed.directory)
    file.write_bytes(whole)
    for content in (b"", sealed.key_file.read_bytes()[:-1], b"x" * 33):
        sealed.key_file.write_bytes(content)
        with pytest.raises(IdentityDamaged, match=str(sealed.key_file)):
            AgentIdentity.load(sealed.directory).sealing_key(sealed.key_id)
    shutil.rmtree(sealed.directory)
    with pytest.raises(NotEnrolled):
        AgentIdentity.load(sealed.directory)


# What is damaged may be what the reader would warn of.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "ca.pem"])
def test_what_proves_an_identity_is_sound_or_said_to_be_damaged(tmp_path: Path, name: str) -> None:
    identity, _ = write_identity(tmp_path / "state", CertificateAuthority(tmp_path / "tls"))
    file = identity.directory / name
    for content in damaged(file.read_bytes()):
        file.write_bytes(content)
        try:
            # A byte that says nothing, such as a line break, does no harm.
            assert certification.opened(identity.directory) == identity
        except IdentityDamaged as error:
            assert name in str(error)
            assert str(error).endswith(": enrol again")
