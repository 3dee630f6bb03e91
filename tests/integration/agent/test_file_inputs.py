"""Files that a job gives: where the payload finds them, and that nothing of them is left."""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

from services.sis_agent.agent.attempts import (
    ASSIGNMENT,
    AttemptDirectories,
    AttemptKey,
    read_assignment,
    write_assignment,
)
from services.sis_agent.agent.supervision import private_directory
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from sis.packages.values import MAX_FILE_BYTES, File
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as pb
from tests.support.attempts import PYTHON, Attempts

CONTENT = bytes(range(256)) * 100
BOTH = """
import hashlib, os, sys
for path in (*sys.argv[1:], os.environ["SIS_PARAM_OTHER"]):
    mode = oct(os.stat(path.removeprefix("--config=")).st_mode)
    content = open(path.removeprefix("--config="), "rb").read()
    print(path, mode, hashlib.sha256(content).hexdigest())
print("absent" if "SIS_PARAM_NONE" not in os.environ else "there")
"""


async def test_a_file_is_there_while_the_payload_runs_and_gone_afterwards(attempts: Attempts) -> None:
    files = {"config": File("site a.json", CONTENT), "other": File("site a.json", b"")}
    command = [*PYTHON, "--config={param.config}", "{param.other}", "{param.none}"]
    attempt = await attempts.run(BOTH, command=command, files=files, inputs={"none": {"type": "file"}})
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED, attempt.text()
    config, *others, absent = attempt.output().decode().splitlines()
    path, mode, digest = config.removeprefix("--config=").split(" ")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (Path(path).name, mode, digest) == ("site_a.json", "0o100400", hashlib.sha256(CONTENT).hexdigest())
    assert others == [f"{Path(path).parent}/2-site_a.json 0o100400 {empty}"] * 2
    assert absent == "absent"
    assert not Path(path).parent.exists()
    assert "on disk" not in attempt.text()


async def test_a_value_of_another_kind_is_refused(attempts_anyhow: Attempts) -> None:
    attempt = attempts_anyhow.prepare("true", files={"config": File("a", b"")}, inputs={"name": {"type": "string"}})
    assignment = read_assignment(attempt.directory)
    assignment.parameters["name"].CopyFrom(assignment.parameters["config"])
    assignment.parameters["config"].plain = "/etc/passwd"
    (attempt.directory / ASSIGNMENT).unlink()
    write_assignment(attempt.directory, assignment)
    await (await attempts_anyhow.spawn(attempt)).end()
    assert (attempt.finished().outcome, attempt.finished().failure_reason) == (pb.OUTCOME_FAILED, "EXEC_FAILED")
    assert "parameter name: must be a string value, not a file" in attempt.text()
    assert "parameter config: must be a file: give its name and its content" in attempt.text()


async def test_a_file_for_which_there_is_no_room_fails_the_start(attempts_anyhow: Attempts) -> None:
    files = {"config": File("a", b"x"), "other": File("b", bytes(MAX_FILE_BYTES))}
    attempt = attempts_anyhow.prepare("echo started", files=files)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What the supervisor can write has half a mebibyte at most: a full disk for the second file alone.
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, before[1]))
    try:
        await attempts_anyhow.zygote.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await (await attempts_anyhow.spawn(attempt)).end()
    assert (attempt.finished().outcome, attempt.finished().failure_reason) == (pb.OUTCOME_FAILED, "EXEC_FAILED")
    assert "Failed: the payload's files could not be made: File too large" in attempt.text()
    assert attempt.output() == b""
    identity = SupervisorIdentity.read(attempt.directory)
    assert identity is not None
    assert not any(path.exists() for path in private_directory.paths(identity.attempt, attempt.directory))


def test_an_assignment_of_the_largest_files_is_kept(tmp_path: Path) -> None:
    directories = AttemptDirectories(tmp_path)
    assignment = dispatch.Assignment(attempt=dispatch.Attempt(job_id=1, number=1))
    for name in ("a", "b"):
        assignment.parameters[name].file.content = os.urandom(MAX_FILE_BYTES)
    directories.create(assignment)
    assert directories.assignment(AttemptKey(1, 1)) == assignment
