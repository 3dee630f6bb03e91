"""Files as the values of inputs: shown by name and digest, handed out whole, in answers of a bounded size."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from services.queue import dispatch, sessions
from services.queue import parameters as stored
from services.queue.convert import dispatch as convert
from services.queue.sessions import Heartbeat
from sis.packages.values import MAX_FILE_BYTES, File
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import SECONDS, Api, fields, refusal
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig

MANIFEST = """
name: test.delivery
version: 1.0.0
operations:
  unpack:
    command: ["true"]
    inputs:
      archive: {type: file, required: true}
      patch: {type: file}
      more: {type: file}
      places: {type: list}
"""
MESSAGE_BYTES = 16 << 20
CONTENT = bytes(range(256)) * 100


def request(rig: Rig, **parameters: job_pb2.ParameterValue) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(
        display_name="unpack",
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name="test.delivery"),
        operation="unpack",
        site_target=job_pb2.SiteTarget(group=rig.group),
        parameters=parameters,
    )


def file(name: str, content: bytes) -> job_pb2.ParameterValue:
    return job_pb2.ParameterValue(file=job_pb2.FileValue(name=name, content=content))


async def test_a_file_is_shown_without_and_handed_out_with_its_content(
    api: Api, hub: Any, served: Rig, tmp_path: Path
) -> None:
    await served.push(tmp_path, MANIFEST)
    places = job_pb2.ParameterValue(list=job_pb2.StringList(items=["file", "content"]))
    given = {"archive": file("grüße.tar", CONTENT), "patch": file("empty", b""), "places": places}
    job = (await api(api.jobs.CreateJob, request(served, **given))).job
    digest = hashlib.sha256(CONTENT).hexdigest()
    shown = job_pb2.FileValue(name="grüße.tar", size_bytes=len(CONTENT), sha256=digest)
    assert job.parameters["archive"].file == shown and job.parameters["patch"].file.name == "empty"
    assert job.parameters["places"] == places
    again = (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=job.job_id))).job
    assert again.parameters == job.parameters
    copied = (await api(api.jobs.CopyJob, pb.CopyJobRequest(job_id=job.job_id))).request
    assert copied.parameters == given
    await served.hello(slots=4)
    session = dispatch_pb.Session(agent=served.agent("a"), epoch=served.epochs["a"])
    capacity = dispatch_pb.Capacity(session=session, free_slots=1)
    claimed = await hub.Claim(dispatch_pb.ClaimRequest(capacities=[capacity]), timeout=SECONDS)
    assert claimed.assignments[0].assignment.parameters == given
    await api(api.jobs.AbortJob, pb.AbortJobRequest(job_id=job.job_id))
    rerun = (await api(api.jobs.RerunJob, pb.RerunJobRequest(job_id=job.job_id))).job
    assert rerun.parameters == job.parameters
    copied = (await api(api.jobs.CopyJob, pb.CopyJobRequest(job_id=rerun.job_id))).request
    assert copied.parameters == given


@pytest.mark.parametrize(
    ("reason", "wrong", "given"),
    [
        ("INVALID_FIELD", "parameters.archive", {"archive": file("a/b", b"x")}),
        ("INVALID_FIELD", "parameters.archive", {"archive": file("a", bytes(MAX_FILE_BYTES + 1))}),
        ("INVALID_PARAMETER", "parameters.archive", {"archive": job_pb2.ParameterValue(plain="text")}),
        ("INVALID_PARAMETER", "parameters.archive", {"patch": file("a", b"x")}),
        (
            "INVALID_PARAMETER",
            "parameters.archive",
            {name: file("a", bytes(MAX_FILE_BYTES - 1)) for name in ("archive", "patch", "more")},
        ),
        (
            "INVALID_PARAMETER",
            "parameters.places",
            {"archive": file("a", b"x"), "places": file("b", b"x")},
        ),
    ],
)
async def test_a_wrong_file_is_refused(
    api: Api, served: Rig, tmp_path: Path, reason: str, wrong: str, given: dict[str, job_pb2.ParameterValue]
) -> None:
    await served.push(tmp_path, MANIFEST)
    error = await refusal(api(api.jobs.CreateJob, request(served, **given)))
    assert (error.reason, fields(error)) == (reason, [wrong])


async def test_answers_with_files_are_bounded_and_the_rest_is_delivered_again(own_rig: Rig, tmp_path: Path) -> None:
    """Many large jobs are claimed at once: the first answer has some of them, heartbeats have the others."""
    clock = await Clock.install(own_rig.database)
    await own_rig.push(tmp_path, MANIFEST)
    await own_rig.hello(slots=100)
    contents = [b"\xfe" * MAX_FILE_BYTES, bytes(MAX_FILE_BYTES)]
    files = {name: File("large", content) for name, content in zip(("archive", "patch"), contents, strict=True)}
    large = await own_rig.create_many(9, package_name="test.delivery", operation="unpack", parameters=files)
    small = await own_rig.create_many(9)
    delivered: dict[int, dict[str, Any]] = {}
    capacity = dispatch.Capacity(own_rig.agent("a"), own_rig.epochs["a"], 100)
    async with own_rig.database.begin() as connection:
        assigned, stale = await dispatch.claim(connection, [capacity])
    answers = [convert.to_claims(assigned, stale).ByteSize()]
    while assigned:
        delivered |= {a.job_id: stored.from_rows(a.parameters) for _, a in assigned}
        for _, assignment in assigned:
            await own_rig.accept(sessions.AttemptKey(assignment.job_id, assignment.attempt))
        await clock.advance(6)
        beat = Heartbeat(own_rig.session("a"), frozenset(), draining=False)
        async with own_rig.database.begin() as connection:
            answer = await sessions.heartbeat(connection, [beat])
        assigned = answer.undelivered
        answers.append(convert.to_heartbeat_response(answer).ByteSize())
    assert set(delivered) == {*large, *small}
    assert all(delivered[job_id] == files for job_id in large)
    assert max(answers) < MESSAGE_BYTES and len(answers) > 2, answers
