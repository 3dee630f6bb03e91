"""Every method gives the same over HTTP as over gRPC: the same result, and the same error for the same reason."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.routes import Binding, bindings
from sis.client import Client
from sis.packages import archive, shipped
from tests.support.enrolled import enrolled_agent
from tests.support.numbered_job import shell_job
from tests.support.stack import Stack
from tests.support.twins import Document, Twins, comparable

BINDINGS = {f"{b.method.containing_service.name}.{b.method.name}": b for b in bindings()}
NO_JOB = "999999999999"
ARCHIVE = archive.pack(shipped() / "core.shell")
MANIFEST = """
name: {name}
version: 1.0.0
operations:
  run:
    command: ["true"]
    inputs:
      script: {{type: string, default: ""}}
"""


class World:
    """What requests are about. Everything that a call changes is made anew for each side."""

    def __init__(self, client: Client, scratch: Path, revoked: str) -> None:
        self._client = client
        self._scratch = scratch
        self.revoked = revoked
        """The name of an agent that has enrolled and was revoked, which can be repeated."""
        self._numbers = itertools.count(1)
        self.ran = str(client.jobs.create(shell_job('echo out; echo err >&2; echo result=7 >> "$SIS_OUTPUT"')).job_id)
        list(client.jobs.monitor(int(self.ran)))
        self.deleted = self.held()
        """The number of a job that is gone, which says when."""
        client.jobs.delete(int(self.deleted), "a twin says so")
        self.needed = self.package()
        """The name of a package that a held job needs."""
        job = shell_job("true", site="group:nowhere", deferred=True)
        job.package.name = self.needed
        client.jobs.create(job)

    def name(self) -> str:
        return f"twin-{next(self._numbers)}"

    def held(self) -> str:
        """The number of a deferred job."""
        return str(self._client.jobs.create(shell_job("true", site="group:nowhere", deferred=True)).job_id)

    def ended(self) -> str:
        job_id = self.held()
        self._client.jobs.cancel(int(job_id))
        return job_id

    def package(self) -> str:
        """The name of a package, of which there is version 1.0.0."""
        name = self.name()
        (self._scratch / "package.yaml").write_text(MANIFEST.format(name=name))
        self._client.packages.push(archive.pack(self._scratch))
        return name

    def credential(self, *, for_one_job: bool = False) -> str:
        name = self.name()
        self._client.credentials.create(job_credential(name, for_one_job=for_one_job))
        return name


def job_credential(name: str, *, for_one_job: bool):  # type: ignore[no-untyped-def]
    from sis.credentials.v1 import credential_pb2, credential_service_pb2

    return credential_service_pb2.CreateCredentialRequest(
        name=name,
        kind=credential_pb2.CREDENTIAL_KIND_TOKEN,
        value=credential_pb2.SecretValue(secret=b"a secret of a twin"),
        for_one_job=for_one_job,
    )


@dataclass(frozen=True)
class Case:
    """A request, made by `request` for each side, and why it is refused: "" if it is not."""

    method: str
    request: Callable[[World], Document]
    reason: str = ""
    first: bool = False
    archive: bytes = b""

    def __str__(self) -> str:
        return f"{self.method} {self.reason or 'is done'}"


def _script(text: str) -> Document:
    return {"script": {"plain": text}}


def _job(world: World, **fields: object) -> Document:
    return {
        "displayName": "a twin",
        "type": "JOB_TYPE_PACKAGE",
        "package": {"name": "core.shell"},
        "operation": "run",
        "parameters": _script("true"),
        "siteTarget": {"group": "nowhere"},
        "deferred": True,
        **fields,
    }


SECRET = {"secret": "YSBzZWNyZXQgb2YgYSB0d2lu"}
KIND = "CREDENTIAL_KIND_TOKEN"
CASES = [
    Case("JobService.CreateJob", lambda w: _job(w, requestId=w.name(), labels={"a": "b"}, runTimeout="90s")),
    Case(
        "JobService.CreateJob",
        lambda w: _job(w, deferralLimit="60s", startTimeout="10s", outputTimeout="3600s", cancelGrace="0s"),
    ),
    Case("JobService.CreateJob", lambda w: _job(w, deferred=False, deferralLimit="60s"), "INVALID_FIELD"),
    Case("JobService.CreateJob", lambda w: {}, "INVALID_FIELD"),
    Case("JobService.CreateJob", lambda w: _job(w, parameters={"scrip": {"plain": ""}}), "INVALID_PARAMETER"),
    Case("JobService.CreateJob", lambda w: _job(w, package={"name": "no.such"}), "PACKAGE_NOT_FOUND"),
    Case("JobService.CreateJob", lambda w: _job(w, operation="walk"), "OPERATION_NOT_FOUND"),
    Case("JobService.GetJob", lambda w: {"jobId": w.ran}),
    Case("JobService.GetJob", lambda w: {"jobId": NO_JOB}, "JOB_NOT_FOUND"),
    Case("JobService.GetJob", lambda w: {"jobId": w.deleted}, "JOB_NOT_FOUND"),
    Case("JobService.GetJob", lambda w: {"jobId": "-1"}, "INVALID_FIELD"),
    Case(
        "JobService.ListJobs",
        lambda w: {
            "filter": {"runStates": ["RUN_STATE_SUCCEEDED"], "types": ["JOB_TYPE_PACKAGE", "JOB_TYPE_DISCOVERY"]},
            "pageSize": 1,
            "orderBy": "create_time desc",
        },
    ),
    Case("JobService.ListJobs", lambda w: {"orderBy": "beauty"}, "INVALID_FIELD"),
    Case("JobService.ListJobs", lambda w: {"pageToken": "forged"}, "INVALID_TOKEN"),
    Case("JobService.WatchJobs", lambda w: {"filter": {"text": "no job has this text"}}, first=True),
    Case("JobService.WatchJobs", lambda w: {"resumeToken": "forged"}, "INVALID_TOKEN"),
    Case("JobService.ExportJobs", lambda w: {"jobIds": [w.ran], "includeLogs": True}),
    Case("JobService.ExportJobs", lambda w: {"jobIds": [w.ran, NO_JOB]}, "JOB_NOT_FOUND"),
    Case("JobService.ApplyVerb", lambda w: {"verb": "JOB_VERB_CANCEL", "jobIds": [w.held(), w.ran, NO_JOB]}),
    Case("JobService.ApplyVerb", lambda w: {"verb": "JOB_VERB_ABORT", "jobIds": [w.held(), w.ended()], "force": True}),
    Case("JobService.ApplyVerb", lambda w: {"verb": "JOB_VERB_CANCEL", "filter": {}}, "INVALID_FIELD"),
    Case(
        "JobService.ApplyVerb",
        lambda w: {"verb": "JOB_VERB_CANCEL", "jobIds": [w.ran], "force": True},
        "INVALID_FIELD",
    ),
    Case(
        "JobService.ApplyVerb",
        lambda w: {"verb": "JOB_VERB_DELETE", "filter": {"text": "no job has this text"}, "expectedCount": "3"},
        "JOB_COUNT_CHANGED",
    ),
    Case("JobService.ExplainJob", lambda w: {"jobId": w.held()}),
    Case("JobService.ExplainJob", lambda w: {"jobId": NO_JOB}, "JOB_NOT_FOUND"),
    Case("JobService.RerunJob", lambda w: {"jobId": w.ended(), "requestId": w.name(), "reason": "a twin says so"}),
    Case("JobService.RerunJob", lambda w: {"jobId": w.held()}, "ILLEGAL_TRANSITION"),
    Case("JobService.CopyJob", lambda w: {"jobId": w.held()}),
    Case("JobService.CopyJob", lambda w: {"jobId": NO_JOB}, "JOB_NOT_FOUND"),
    Case("JobService.MonitorJob", lambda w: {"jobId": w.ran}),
    Case("JobService.MonitorJob", lambda w: {"jobId": NO_JOB}, "JOB_NOT_FOUND"),
    Case("JobService.MonitorJob", lambda w: {"jobId": w.ran, "tailBytes": "200"}),
    Case("JobService.MonitorJob", lambda w: {"jobId": w.ran, "tailBytes": "-1"}, "INVALID_FIELD"),
    Case("JobService.ReadLog", lambda w: {"jobId": w.ran, "beforeSequence": "4", "maxBytes": 200}),
    Case("JobService.ReadLog", lambda w: {"jobId": w.ran, "time": "2026-01-01T00:00:00Z"}),
    Case("JobService.ReadLog", lambda w: {"jobId": w.ran, "firstSequence": "0", "maxBytes": -1}, "INVALID_FIELD"),
    Case("JobService.ReadLog", lambda w: {"jobId": NO_JOB}, "JOB_NOT_FOUND"),
    Case("JobService.SearchLog", lambda w: {"jobId": w.ran, "text": "PAYLOAD", "firstSequence": "2"}),
    Case("JobService.SearchLog", lambda w: {"jobId": w.ran, "text": " "}, "INVALID_FIELD"),
    Case("JobService.SearchLog", lambda w: {"jobId": NO_JOB, "text": "x"}, "JOB_NOT_FOUND"),
    Case("JobService.GetConsoleOutput", lambda w: {"jobId": w.ran, "offset": "1", "length": "5"}),
    Case("JobService.GetConsoleOutput", lambda w: {"jobId": w.ran, "offset": "-1"}, "INVALID_FIELD"),
    Case("JobService.GetDebugLog", lambda w: {"jobId": w.ran, "view": "DEBUG_LOG_VIEW_FULL"}),
    Case("JobService.GetDebugLog", lambda w: {"jobId": NO_JOB}, "JOB_NOT_FOUND"),
    Case("JobService.ListJobHistory", lambda w: {"jobId": w.ran, "pageSize": 2}),
    Case("JobService.ListJobHistory", lambda w: {"jobId": w.ran, "pageSize": -1}, "INVALID_FIELD"),
    Case("JobService.ActivateJob", lambda w: {"jobId": w.held(), "reason": "a twin says so"}),
    Case("JobService.ActivateJob", lambda w: {"jobId": w.ran}, "ILLEGAL_TRANSITION"),
    Case("JobService.CancelJob", lambda w: {"jobId": w.held(), "reason": "a twin says so"}),
    Case("JobService.CancelJob", lambda w: {"jobId": w.held(), "reason": "a\nb"}, "INVALID_FIELD"),
    Case("JobService.AbortJob", lambda w: {"jobId": w.held()}),
    Case("JobService.AbortJob", lambda w: {"jobId": w.ran}, "ILLEGAL_TRANSITION"),
    Case("JobService.AbortJob", lambda w: {"jobId": w.ran, "force": True}),
    Case("JobService.AbortJob", lambda w: {"jobId": w.held(), "force": True}, "FORCE_REFUSED"),
    Case("JobService.DeleteJob", lambda w: {"jobId": w.held(), "reason": "a twin says so"}),
    Case("JobService.DeleteJob", lambda w: {"jobId": NO_JOB}, "JOB_NOT_FOUND"),
    Case("PackageService.PushPackage", lambda w: _upload(ARCHIVE), archive=ARCHIVE),
    Case("PackageService.PushPackage", lambda w: _upload(b"no archive"), "INVALID_PACKAGE", archive=b"no archive"),
    Case("PackageService.ListPackages", lambda w: {"name": "core.shell", "pageSize": 1}),
    Case("PackageService.ListPackages", lambda w: {"pageToken": "forged"}, "INVALID_TOKEN"),
    Case("PackageService.GetPackage", lambda w: {"name": "core.shell"}),
    Case("PackageService.GetPackage", lambda w: {"name": "core.shell", "version": "0.0.1"}, "PACKAGE_NOT_FOUND"),
    Case("PackageService.DownloadPackage", lambda w: {"name": "core.shell", "offset": "10", "length": "20"}),
    Case("PackageService.DownloadPackage", lambda w: {"name": "no.such"}, "PACKAGE_NOT_FOUND"),
    Case("PackageService.DeletePackage", lambda w: {"name": w.package(), "version": "1.0.0"}),
    Case("PackageService.DeletePackage", lambda w: {"name": "no.such", "version": "1.0.0"}, "PACKAGE_NOT_FOUND"),
    Case("PackageService.DeletePackage", lambda w: {"name": w.needed, "version": "1.0.0"}, "PACKAGE_IN_USE"),
    Case("CredentialService.CreateCredential", lambda w: {"name": w.name(), "kind": KIND, "value": SECRET}),
    Case("CredentialService.CreateCredential", lambda w: {"name": "-", "kind": KIND}, "INVALID_FIELD"),
    Case(
        "CredentialService.CreateCredential",
        lambda w: {"name": w.credential(), "kind": KIND, "value": SECRET, "requestId": w.name()},
        "CREDENTIAL_EXISTS",
    ),
    Case("CredentialService.ListCredentials", lambda w: {"includeForOneJob": True, "pageSize": 1}),
    Case("CredentialService.ListCredentials", lambda w: {"pageToken": "forged"}, "INVALID_TOKEN"),
    Case("CredentialService.GetCredential", lambda w: {"name": w.credential()}),
    Case("CredentialService.GetCredential", lambda w: {"name": "no-twin"}, "CREDENTIAL_NOT_FOUND"),
    Case("CredentialService.ReplaceCredential", lambda w: {"name": w.credential(), "value": SECRET, "version": "1"}),
    Case(
        "CredentialService.ReplaceCredential",
        lambda w: {"name": w.credential(), "value": SECRET, "version": "2"},
        "CREDENTIAL_CHANGED",
    ),
    Case("CredentialService.DeleteCredential", lambda w: {"name": w.credential()}),
    Case("CredentialService.DeleteCredential", lambda w: {"name": "no-twin"}, "CREDENTIAL_NOT_FOUND"),
    Case("CredentialService.ListCredentialUsage", lambda w: {"name": w.credential()}),
    Case("CredentialService.ListCredentialUsage", lambda w: {"name": "no-twin"}, "CREDENTIAL_NOT_FOUND"),
    Case("CredentialService.BindCredential", lambda w: {"name": w.credential(for_one_job=True), "jobId": w.ran}),
    Case("CredentialService.BindCredential", lambda w: {"name": w.credential(), "jobId": w.ran}, "CREDENTIAL_CHANGED"),
    Case("AgentAdminService.ListAgents", lambda w: {"group": "local"}),
    Case("AgentAdminService.ListAgents", lambda w: {"pageToken": "forged"}, "INVALID_TOKEN"),
    Case("AgentAdminService.GetAgent", lambda w: {"name": "local-1"}),
    Case("AgentAdminService.GetAgent", lambda w: {"name": "nobody"}, "AGENT_NOT_FOUND"),
    Case("AgentIdentityService.PairAgent", lambda w: {"name": w.name(), "group": "twins"}),
    Case("AgentIdentityService.PairAgent", lambda w: {"name": "/", "group": "twins"}, "INVALID_FIELD"),
    Case("AgentIdentityService.RevokeAgent", lambda w: {"name": w.revoked}),
    Case("AgentIdentityService.RevokeAgent", lambda w: {"name": "nobody"}, "AGENT_NOT_FOUND"),
    Case("AgentIdentityService.ListAgentIdentities", lambda w: {"pageSize": 1000}),
    Case("AgentIdentityService.ListAgentIdentities", lambda w: {"pageToken": "forged"}, "INVALID_TOKEN"),
]


def _upload(content: bytes) -> Document:
    return {"upload": {"digest": hashlib.sha256(content).hexdigest(), "sizeBytes": str(len(content))}}


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("agent")
    with stack.client() as client:
        with enrolled_agent(stack, directory / "state", name="twin-revoked", group="twins"):
            client.identities.revoke("twin-revoked", "a twin says so")
        (directory / "package").mkdir()
        yield World(client, directory / "package", "twin-revoked")


@pytest.fixture(scope="module")
def twins(stack: Stack) -> Iterator[Twins]:
    twins = Twins(stack, stack.token)
    yield twins
    twins.close()


def test_no_method_is_left_out() -> None:
    assert {case.method for case in CASES if case.reason} == set(BINDINGS)
    assert {case.method for case in CASES if not case.reason} == set(BINDINGS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_http_gives_what_grpc_gives(case: Case, world: World, twins: Twins) -> None:
    binding = BINDINGS[case.method]
    by_grpc = twins.grpc(binding, case.request(world), first=case.first, archive=case.archive)
    by_http = twins.http(binding, case.request(world), first=case.first, archive=case.archive)
    assert by_grpc.reason == case.reason
    assert comparable(by_http) == comparable(by_grpc)
    assert by_grpc.error or by_grpc.responses or case.first


@pytest.mark.parametrize("binding", bindings(), ids=lambda b: b.method.name)
@pytest.mark.parametrize("token", [None, "not the token"], ids=["no token", "another token"])
def test_whoever_has_no_token_is_refused_by_both(stack: Stack, binding: Binding, token: str | None) -> None:
    twins = Twins(stack, token)
    try:
        request = {"jobId": "1"} if binding.path_fields == ("job_id",) else dict.fromkeys(binding.path_fields, "x")
        by_grpc, by_http = twins.grpc(binding, request), twins.http(binding, request)
    finally:
        twins.close()
    assert by_grpc.reason == by_http.reason == "UNAUTHENTICATED"
    # Where there is no token at all, each says what to send in its own words.
    assert token is None or comparable(by_http) == comparable(by_grpc)
