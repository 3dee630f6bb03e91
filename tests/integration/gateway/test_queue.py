"""A gateway, as a process of its own, before a real queue on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.runtime.database import Database
from sis.packages import archive, shipped
from sis.stack import postgres as embedded
from tests.integration.queue.rig import Rig, of
from tests.support.certificates import CertificateAuthority
from tests.support.gateway_server import GatewayProcess, Http, events
from tests.support.numbered_job import until
from tests.support.queue_server import QueueServer

ARCHIVE = archive.pack(shipped() / "core.shell")
DIGEST = archive.digest(ARCHIVE)
GZIP = {"Content-Type": "application/gzip"}
JOB = {
    "displayName": "hello",
    "type": "JOB_TYPE_PACKAGE",
    "package": {"name": "core.shell"},
    "operation": "run",
    "parameters": {"script": {"plain": "echo hello"}},
    "siteTarget": {"group": "nobody"},
}


@pytest.fixture(scope="module")
def url(postgres: embedded.Postgres, queue_template: str) -> Iterator[str]:
    postgres.create_database("gateway", template=queue_template)
    yield postgres.url("gateway")
    postgres.drop_database("gateway")


@pytest.fixture(scope="module")
def queue(url: str, authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueServer]:
    with QueueServer(url, authority, tmp_path_factory.mktemp("queue")) as found:
        yield found
        assert [line for line in found.log() if "fault" in line] == []


@pytest.fixture(scope="module")
def site(
    queue: QueueServer, authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """The gateway, with core.shell in the library."""
    target = f"ipv4:127.0.0.1:{queue.ports[1]},127.0.0.1:1"
    found = GatewayProcess(authority.service("gateway"), tmp_path_factory.mktemp("gateway"), queue=target)
    assert found.call("POST", f"/v1/packages?upload.digest={DIGEST}", ARCHIVE, GZIP).status == 200
    yield found
    assert found.stop() == 0
    assert [line for line in found.log() if "fault" in line] == []


def create(site: Http, **changes: Any) -> str:
    answer = site.call("POST", "/v1/jobs", {**JOB, **changes})
    assert answer.status == 200, answer.body
    job_id: str = answer.json["job"]["jobId"]
    return job_id


def at_a_site(url: str, work: Any) -> Any:
    """What an agent does, straight to the tables: `work` is given a rig."""

    async def run() -> Any:
        database = Database(url, application_name="test")
        try:
            return await work(Rig(database, "site"))
        finally:
            await database.dispose()

    return asyncio.run(run())


def test_a_package_in_the_library(site: Http) -> None:
    again = site.call("POST", "/v1/packages", ARCHIVE, {"Content-Type": "application/octet-stream"})
    assert (again.status, again.json["existed"], again.json["package"]["digest"]) == (200, True, DIGEST)
    listed = site.call("GET", "/v1/packages?pageSize=10").json["packages"]
    assert [each["name"] for each in listed] == ["core.shell"]
    whole = site.call("GET", "/v1/packages/core.shell/archive")
    assert (whole.body, whole.headers["ETag"]) == (ARCHIVE, f'"{DIGEST}"')
    part = site.call(
        "GET", "/v1/packages/core.shell/archive", headers={"Range": "bytes=10-99", "If-Range": f'"{DIGEST}"'}
    )
    assert (part.status, part.body) == (206, ARCHIVE[10:100])
    assert site.call("GET", "/v1/packages/nothing").reason == "PACKAGE_NOT_FOUND"
    assert site.call("POST", f"/v1/packages?upload.digest={'0' * 64}", ARCHIVE, GZIP).status == 400
    assert site.call("POST", "/v1/packages", b"no archive", GZIP).reason == "INVALID_PACKAGE"


def test_the_life_of_a_job(site: Http) -> None:
    created = site.call("POST", "/v1/jobs", {**JOB, "requestId": "r-1"}, {"X-Forwarded-For": "6.6.6.6, 192.0.2.7"})
    job = created.json["job"]
    assert (created.status, job["status"], job["createTime"][-1]) == (200, "JOB_STATUS_WAITING", "Z")
    again = site.call("POST", "/v1/jobs", {**JOB, "requestId": "r-1"})
    assert again.json["job"]["jobId"] == job["jobId"]
    reused = site.call("POST", "/v1/jobs", {**JOB, "requestId": "r-1", "displayName": "other"})
    assert (reused.status, reused.reason) == (409, "REQUEST_ID_REUSED")
    path = f"/v1/jobs/{job['jobId']}"
    assert site.call("GET", path).json["job"]["displayName"] == "hello"
    found = site.call("GET", "/v1/jobs?filter.statuses=JOB_STATUS_WAITING&filter.text=hello&orderBy=job_id").json
    assert job["jobId"] in [each["jobId"] for each in found["jobs"]] and int(found["totalSize"]) >= 1
    canceled = site.call("POST", f"{path}:cancel", {"reason": "no more"})
    assert canceled.json["job"]["status"] == "JOB_STATUS_CANCELED"
    history = site.call("GET", f"{path}/history").json["entries"]
    assert history[0]["event"] == "CREATE" and "192.0.2.7" in json.dumps(history[0])
    refused = site.call("POST", f"{path}:activate")
    assert (refused.status, refused.reason) == (400, "ILLEGAL_TRANSITION")
    assert site.call("DELETE", path).json == {}
    assert (site.call("DELETE", path).status, site.call("GET", path).reason) == (404, "JOB_NOT_FOUND")


def test_pages_follow_each_other(site: Http) -> None:
    made = {create(site, labels={"for": "pages"}) for _ in range(3)}
    seen: list[str] = []
    token = ""
    while True:
        page = site.call("GET", f"/v1/jobs?pageSize=2&pageToken={token}").json
        seen += [each["jobId"] for each in page["jobs"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert made <= set(seen) and len(seen) == len(set(seen))
    assert site.call("GET", "/v1/jobs?pageToken=damaged").reason == "INVALID_TOKEN"


def test_wrong_fields_are_named_as_json_names_them(site: Http) -> None:
    answer = site.call("POST", "/v1/jobs", {"runTimeout": "0s"})
    assert (answer.status, answer.reason) == (400, "INVALID_FIELD")
    assert {"displayName", "siteTarget"} <= set(answer.fields)
    assert site.call("GET", "/v1/jobs/0").fields == ["jobId"]
    assert (
        site.call("POST", "/v1/jobs", {**JOB, "parameters": {"host_name": {"plain": "x"}}}).reason
        == "INVALID_PARAMETER"
    )


def test_who_is_not_known_is_refused(site: Http) -> None:
    wrong = site.call("GET", "/v1/jobs", headers={"Authorization": "Bearer wrong"}, token=False)
    assert (wrong.status, wrong.reason) == (401, "UNAUTHENTICATED")
    assert wrong.headers["WWW-Authenticate"] == 'Bearer realm="sis"'
    # An upload of any size is refused for what it is, not cut off.
    large = site.call("POST", "/v1/packages", bytes(8_000_000), {**GZIP, "Authorization": "Bearer wrong"}, token=False)
    assert (large.status, large.reason) == (401, "UNAUTHENTICATED")


def _lines(server: GatewayProcess | QueueServer, request_id: str) -> list[dict[str, Any]]:
    return [line for line in server.log() if line.get("request_id") == request_id]


def test_a_request_has_one_id_everywhere(site: GatewayProcess, queue: QueueServer) -> None:
    site.call("GET", "/v1/jobs", headers={"X-Request-Id": "one-id", "X-Forwarded-For": "192.0.2.8"})
    for server in (site, queue):
        # It may be written after the answer.
        until(lambda server=server: len(_lines(server, "one-id")) > 0, "a line in the log")
        (line,) = _lines(server, "one-id")
        assert (line["method"], line["origin"]) == ("/sis.queue.v1.JobService/ListJobs", "192.0.2.8")


def test_readiness_names_who_is_missing(site: Http) -> None:
    ready = site.call("GET", "/readyz", token=False)
    assert (ready.status, ready.json["status"]) == (503, "not ready")
    assert ready.json["upstreams"] == {"queue": "SERVING", "credentials": "UNREACHABLE", "hub": "UNREACHABLE"}
    assert site.call("GET", "/v1/credentials").reason == "DEPENDENCY_UNAVAILABLE"


# --- what a job says ---


async def _ended(rig: Rig) -> int:
    key, spool = await rig.started()
    await rig.report(key, spool.output(b"hello\n"), spool.output(bytes(range(256))))
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    return key.job_id


OUTPUT = b"hello\n" + bytes(range(256))


def test_output_in_ranges(site: Http, url: str) -> None:
    path = f"/v1/jobs/{at_a_site(url, _ended)}/output"
    whole = site.call("GET", path)
    assert (whole.status, whole.body, whole.headers["Content-Length"]) == (200, OUTPUT, str(len(OUTPUT)))
    for range_, expected in (("bytes=0-4", OUTPUT[:5]), ("bytes=4-", OUTPUT[4:]), ("bytes=-7", OUTPUT[-7:])):
        part = site.call("GET", path, headers={"Range": range_})
        assert (part.status, part.body) == (206, expected)
    assert site.call("GET", path, headers={"Range": "bytes=9999-"}).status == 416
    assert site.call("GET", path, headers={"If-None-Match": whole.headers["ETag"]}).status == 304
    lines = site.call("GET", f"{path}?offset=1&length=4", headers={"Accept": "application/x-ndjson"})
    log, *chunks = [json.loads(line) for line in lines.body.splitlines()]
    assert log["log"]["outputBytes"] == str(len(OUTPUT)) and chunks[0]["chunk"]["data"] == "ZWxsbw=="


def test_a_monitor_goes_on_after_its_last_event(site: Http, url: str) -> None:
    job_id = at_a_site(url, _ended)
    with site.opened("GET", f"/v1/jobs/{job_id}:monitor") as response:
        *whole, end = events(response)
    assert end["event"] == "end" and all(each["id"] for each in whole)
    resumed = {"Last-Event-ID": whole[0]["id"]}
    with site.opened("GET", f"/v1/jobs/{job_id}:monitor", headers=resumed) as response:
        *rest, end = events(response)
    told = [each["data"] for each in whole[1:] if '"job":' not in each["data"]]
    assert end["event"] == "end"
    assert [json.loads(each["data"]).get("history") for each in rest if '"history":' in each["data"]] == [
        json.loads(each).get("history") for each in told if '"history":' in each
    ]
    wrong = site.call("GET", f"/v1/jobs/{job_id}:monitor", headers={"Last-Event-ID": "damaged"})
    assert (wrong.status, wrong.reason) == (400, "INVALID_TOKEN")
    debug = site.call(
        "GET", f"/v1/jobs/{job_id}/debugLog?view=DEBUG_LOG_VIEW_FULL", headers={"Accept": "application/x-ndjson"}
    )
    assert debug.status == 200 and all(json.loads(line) for line in debug.body.splitlines())


def test_a_watch_is_live(site: Http) -> None:
    with site.opened("GET", "/v1/jobs:watch") as response:
        found = events(response)
        assert json.loads(next(found)["data"])["resumeToken"]
        job_id = create(site)
        for each in found:
            if job_id in [job["jobId"] for job in json.loads(each.get("data", "{}")).get("jobs", [])]:
                break


def test_a_verb_for_many(site: Http) -> None:
    made = [create(site) for _ in range(2)]
    answer = site.call(
        "POST",
        "/v1/jobs:apply",
        {"verb": "JOB_VERB_CANCEL", "jobIds": [*made, "999999"]},
        {"Accept": "application/x-ndjson"},
    )
    total, *results = [json.loads(line) for line in answer.body.splitlines()]
    assert total == {"total": "3"}
    by_job = {each["result"]["jobId"]: each["result"] for each in results}
    assert all(by_job[each]["job"]["status"] == "JOB_STATUS_CANCELED" for each in made)
    assert by_job["999999"]["error"]["details"][0]["reason"] == "JOB_NOT_FOUND"


def test_a_stopped_gateway_sends_its_streams_elsewhere(
    queue: QueueServer, authority: CertificateAuthority, tmp_path: Path, site: Http
) -> None:
    job_id = create(site)
    first = GatewayProcess(authority.service("gateway"), tmp_path, queue=f"127.0.0.1:{queue.ports[1]}")
    try:
        with first.opened("GET", f"/v1/jobs/{job_id}:monitor") as response:
            found = events(response)
            last_id = next(found)["id"]
            first.terminate()
            told = list(found)
    finally:
        assert first.stop() == 0
    assert (told[-1]["event"], json.loads(told[-1]["data"])["error"]["status"]) == ("failure", "UNAVAILABLE")
    with site.opened("GET", f"/v1/jobs/{job_id}:monitor", headers={"Last-Event-ID": last_id}) as response:
        assert response.status == 200 and next(events(response))["id"]
