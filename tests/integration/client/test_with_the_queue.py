"""Client and command line with a real queue, at which no agent is: what is created waits until something is done to it.

Each test with `client` is one for the synchronous and one for the asynchronous client.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from services.runtime.tls import TlsFiles
from sis.client import ApiError, AsyncClient, Client, ResumeExpired, from_status
from sis.client.endpoints import Endpoints, Token
from sis.packages import archive, shipped
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from sis.stack import postgres as embedded
from tests.integration.client.conftest import Sis
from tests.support.certificates import CertificateAuthority
from tests.support.queue_server import TOKEN, QueueServer
from tests.support.tcp_proxy import TcpProxy

_numbers = itertools.count(1)
MANIFEST = """
name: test.client
version: 1.0.0
operations:
  use:
    command: ["true"]
    inputs:
      phrase: {type: string, sensitive: true}
      table: {type: file}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(
    postgres: embedded.Postgres,
    queue_template: str,
    authority: CertificateAuthority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[QueueServer]:
    """A queue with two packages. None of the calls may end with a fault."""
    postgres.create_database("client_queue", template=queue_template)
    directory = tmp_path_factory.mktemp("queue")
    (directory / "package.yaml").write_text(MANIFEST)
    with QueueServer(postgres.url("client_queue"), authority, directory) as found:
        endpoints = Endpoints(f"127.0.0.1:{found.ports[0]}", Token(TOKEN), authority.ca.read_bytes())
        with Client(endpoints) as client:
            for package in (shipped() / "core.shell", directory):
                client.packages.push(archive.pack(package))
        yield found
        assert [line for line in found.log() if "fault" in line] == []
    postgres.drop_database("client_queue")


@pytest.fixture
def endpoint(server: QueueServer) -> str:
    return f"127.0.0.1:{server.ports[0]}"


@pytest.fixture
def token() -> str:
    return TOKEN


@pytest.fixture
def queue_tls(authority: CertificateAuthority) -> TlsFiles:
    return TlsFiles(ca=authority.ca, certificate=Path(), key=Path())


@pytest.fixture
def name() -> str:
    """A name of the test's own, by which its jobs are found."""
    return f"client test {next(_numbers)}."


def wanted(name: str, *, deferred: bool = False) -> pb.CreateJobRequest:
    request = pb.CreateJobRequest(
        display_name=name, type=job_pb2.JOB_TYPE_PACKAGE, operation="run", deferred=deferred,
        package=job_pb2.PackageReference(name="core.shell"), site_target=job_pb2.SiteTarget(group="nobody"),
    )  # fmt: skip
    request.parameters["script"].plain = "true"
    return request


def test_a_job_that_is_explained_copied_and_run_again(client: Client, name: str) -> None:
    first = client.jobs.create(wanted(name, deferred=True))
    explained = client.jobs.explain(first.job_id)
    assert [cause.reason for cause in explained.causes] == [job_pb2.WAIT_REASON_HELD]
    assert explained.summary
    copied = client.jobs.copy(first.job_id)
    assert (copied.display_name, copied.parameters["script"].plain) == (name, "true")
    second = client.jobs.create(copied)
    assert second.job_id > first.job_id
    client.jobs.cancel(second.job_id, "enough")
    again = [client.jobs.rerun(second.job_id, f"again {name}").job_id for _ in range(2)]
    assert again == [again[0]] * 2
    assert client.jobs.get(again[0]).rerun_of_job_id == second.job_id
    with pytest.raises(ApiError) as caught:
        client.jobs.rerun(first.job_id)
    assert caught.value.reason == "ILLEGAL_TRANSITION"
    (summary,) = client.jobs.output(second.job_id)
    assert summary.log.verdict == job_pb2.LOG_VERDICT_COMPLETE


def test_one_verb_for_many_jobs(client: Client, name: str) -> None:
    jobs = [client.jobs.create(wanted(name, deferred=deferred)).job_id for deferred in (False, True, False)]
    these = pb.JobFilter(text=name)
    with pytest.raises(ApiError) as caught:
        list(client.jobs.apply(job_pb2.JOB_VERB_CANCEL, filter=these, expected_count=2))
    assert caught.value.reason == "JOB_COUNT_CHANGED"
    client.jobs.abort(jobs[2])
    for validate_only in (True, False):
        total, *results = client.jobs.apply(
            job_pb2.JOB_VERB_CANCEL, filter=these, expected_count=3, validate_only=validate_only
        )
        assert total.total == 3
        refused = [from_status(each.result.error).reason for each in results if each.result.HasField("error")]
        assert ([each.result.job_id for each in results], refused) == (jobs, ["ILLEGAL_TRANSITION"])
        statuses = [each.result.job.status for each in results if each.result.HasField("job")]
        assert statuses == ([] if validate_only else [job_pb2.JOB_STATUS_CANCELED] * 2)
    again = [client.jobs.apply(job_pb2.JOB_VERB_RERUN, job_ids=jobs, request_id=f"r{jobs[0]}") for _ in range(2)]
    first, second = ([each.result.job.job_id for each in found][1:] for found in map(list, again))
    assert first == second
    assert min(first) > max(jobs)


def test_an_export_goes_on_behind_a_token(client: Client, name: str) -> None:
    jobs = [client.jobs.create(wanted(name)).job_id for _ in range(3)]
    found = list(client.jobs.export(pb.JobFilter(text=name), include_logs=True))
    assert [each.job_id for each in found if each.HasField("job")] == jobs
    tokens = [each.resume_token for each in found if each.resume_token]
    assert len(tokens) == 3
    rest = client.jobs.export(pb.JobFilter(text=name), include_logs=True, resume_token=tokens[0])
    assert [each.job_id for each in rest if each.HasField("job")] == jobs[1:]
    assert {each.job_id for each in client.jobs.export(job_ids=jobs[:2])} == set(jobs[:2])


def test_a_list_is_watched_from_where_it_was_read(client: Client, name: str) -> None:
    these = pb.JobFilter(text=name, statuses=[job_pb2.JOB_STATUS_WAITING])
    first = client.jobs.create(wanted(name)).job_id
    page = client.jobs.list(these)
    second = client.jobs.create(wanted(name)).job_id
    client.jobs.cancel(first)
    changes = client.jobs.watch(these, page.watch_token)
    there, gone = set[int](), set[int]()
    for response in changes:
        there |= {job.job_id for job in response.jobs}
        gone |= set(response.gone_job_ids)
        if second in there and first in gone:
            break
    assert first not in there


def test_a_token_that_is_none(client: Client, name: str) -> None:
    with pytest.raises(ApiError) as caught:
        next(iter(client.jobs.watch(pb.JobFilter(text=name), "nonsense")))
    assert caught.value.reason == "INVALID_TOKEN"
    assert not isinstance(caught.value, ResumeExpired)


def test_an_archive_in_two_parts(client: Client) -> None:
    info, *chunks = client.packages.download("core.shell")
    content = b"".join(each.chunk for each in chunks)
    assert hashlib.sha256(content).hexdigest() == info.info.digest
    _, *rest = client.packages.download("core.shell", info.info.version, 10)
    assert b"".join(each.chunk for each in rest) == content[10:]
    assert [each.name for each in client.packages.all("core.shell")] == ["core.shell"]


async def test_a_watch_survives_a_cut(server: QueueServer, authority: CertificateAuthority, name: str) -> None:
    ca = authority.ca.read_bytes()
    direct = Endpoints(f"127.0.0.1:{server.ports[0]}", Token(TOKEN), ca)
    broken = asyncio.Event()
    async with (
        TcpProxy(f"127.0.0.1:{server.ports[0]}") as proxy,
        AsyncClient(direct) as near,
        AsyncClient(Endpoints(proxy.endpoint, Token(TOKEN), ca)) as far,
    ):
        page = await far.jobs.list(pb.JobFilter(text=name))
        seen: list[int] = []
        stream = far.jobs.watch(pb.JobFilter(text=name), page.watch_token, on_interruption=lambda error: broken.set())
        async with aclosing(stream) as responses:
            async for response in responses:
                seen += [job.job_id for job in response.jobs]
                if not broken.is_set():
                    proxy.cut()
                    made = await near.jobs.create(wanted(name))
                elif seen:
                    break
    assert seen == [made.job_id]


# The command line


def test_jobs_from_the_command_line(sis: Sis, name: str, tmp_path: Path) -> None:
    create = (
        "jobs", "create", "--name", name, "--package", "core.shell", "--operation", "run", "--site", "group:nobody",
        "--param", "script=true",
    )  # fmt: skip
    job_id = json.loads(sis(*create, "--defer", "--json").out)["jobId"]
    page = sis("jobs", "explain", job_id).out
    assert page.count("it is held until somebody activates it") == 1
    shown = json.loads(sis("jobs", "copy", job_id, "--param", "script=false", "--show").out)
    assert shown["parameters"]["script"]["plain"] == "false"
    copied = json.loads(sis("jobs", "copy", job_id, "--no-defer", "--json").out)
    assert (copied["status"], copied["displayName"]) == ("JOB_STATUS_WAITING", name)
    ran = sis("jobs", "cancel", "--text", name, "--dry-run")
    assert ran.out.splitlines()[-1] == "2 jobs: 2 would be canceled, 0 refused"
    ran = sis("jobs", "cancel", "--text", name, stdin=b"y\n", terminal=True)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "2 jobs: 2 done, 0 refused")
    ran = sis("jobs", "rerun", job_id)
    assert ran.out.startswith(f"Job {job_id}: rerun as job ")
    assert f"job {job_id}" in sis("jobs", "get", ran.out.split()[5].strip(",")).out
    ran = sis("jobs", "delete", "--text", name, "--state", "active", "--yes")
    assert (ran.code, ran.out) == (0, "0 jobs: 0 done, 0 refused\n")
    path = tmp_path / "jobs.csv"
    ran = sis("jobs", "export", "--text", name, "--format", "csv", "--output", str(path))
    assert ran.err == f"3 jobs exported to {path}\n"
    assert [line.split(",")[3] for line in path.read_text().splitlines()] == [
        "Status",
        "Canceled",
        "Canceled",
        "Waiting",
    ]
    ran = sis("jobs", "delete", "--text", name, "--yes", "--json")
    assert json.loads(ran.out.splitlines()[0])["total"] == "3"
    assert sis("jobs", "list", "--text", name).out == "Total Matching Jobs 0\n"


def test_a_file_goes_with_the_job_and_its_copy(sis: Sis, name: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"\0\xff")
    create = ("jobs", "create", "--name", name, "--package", "test.client", "--operation", "use", "--site", "group:g")
    ran = sis(*create, "--param-file", f"table={tmp_path}/table.csv", "--json")
    job = json.loads(ran.out)
    file = job["parameters"]["table"]["file"]
    assert (file["name"], file["sizeBytes"], file["content"]) == ("table.csv", "2", "")
    assert "(the file table.csv, 2 B" in sis("jobs", "get", job["jobId"]).out
    copied = json.loads(sis("jobs", "copy", job["jobId"], "--json").out)
    assert copied["parameters"]["table"]["file"]["sha256"] == file["sha256"]


def test_what_the_queue_refuses_is_refused_before_in_its_words(sis: Sis, client: Client, name: str) -> None:
    create = ("jobs", "create", "--name", name, "--package", "test.client", "--operation", "use", "--site", "group:g")
    ran = sis(*create, "--param", "phrase=hunter2 hunter2", "--param", "table=x", "--param", "more=1")
    request = wanted(name)
    request.package.name, request.operation = "test.client", "use"
    request.parameters.clear()
    for each in ("phrase", "table", "more"):
        request.parameters[each].plain = "x"
    with pytest.raises(ApiError) as caught:
        client.jobs.create(request)
    hint = {"parameters.table": " (--param-file table=PATH)"}
    assert ran.err.splitlines() == [
        f"error: --param, {each.field}: {each.description}{hint.get(each.field, '')}"
        for each in caught.value.violations
    ]
