"""The services that people call, answering as they are told, over real gRPC and TLS, at one endpoint."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from services.runtime import errors
from services.runtime.tls import TlsFiles
from sis.credentials.v1 import agent_identity_service_pb2_grpc, credential_service_pb2_grpc
from sis.queue.v1 import job_service_pb2_grpc, package_service_pb2_grpc


class Cut:
    """The connection breaks here: UNAVAILABLE without a word of the suite."""


Answer = Message | errors.SisError | Cut


@dataclass
class Script:
    """What to answer, by the name of the method, in order; and what was asked."""

    answers: dict[str, deque[Any]] = field(default_factory=lambda: defaultdict(deque))
    requests: list[tuple[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def answer(self, method: str, *answers: Answer | Iterable[Answer]) -> None:
        """Append an answer for each of the next calls; for a stream they are several."""
        self.answers[method].extend(answers)

    def asked(self, method: str) -> list[Any]:
        """The requests that a method was given."""
        return [request for name, request in self.requests if name == method]


class _Scripted:
    def __init__(self, script: Script) -> None:
        self._script = script

    def _begin(self, method: str, request: object, context: grpc.ServicerContext) -> Any:
        self._script.requests.append((method, request))
        self._script.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        return self._script.answers[method].popleft()

    def _one(self, method: str, request: object, context: grpc.ServicerContext) -> Any:
        answer = self._begin(method, request, context)
        return answer if isinstance(answer, Message) else _refuse(answer, context)

    def _many(self, method: str, request: object, context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(lambda: self._script.cancelled.append(method))
        for answer in self._begin(method, request, context):
            yield answer if isinstance(answer, Message) else _refuse(answer, context)


def _refuse(answer: errors.SisError | Cut, context: grpc.ServicerContext) -> NoReturn:
    if isinstance(answer, Cut):
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    status: status_pb2.Status = errors.to_status(answer)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


class JobService(_Scripted, job_service_pb2_grpc.JobServiceServicer):
    """Every method answers from the script."""


class PackageService(_Scripted, package_service_pb2_grpc.PackageServiceServicer):
    """Every method answers from the script."""

    def PushPackage(self, request: Iterable[Message], context: grpc.ServicerContext) -> Any:
        # A refusal comes early: the rest is not waited for.
        refused = not isinstance(self._script.answers["PushPackage"][0], Message)
        return self._one("PushPackage", [next(iter(request))] if refused else list(request), context)


class CredentialService(_Scripted, credential_service_pb2_grpc.CredentialServiceServicer):
    """Every method answers from the script."""


class AgentIdentityService(_Scripted, agent_identity_service_pb2_grpc.AgentIdentityServiceServicer):
    """Every method answers from the script."""


def _method(name: str, *, stream: bool) -> Any:
    if stream:
        return lambda self, request, context: self._many(name, request, context)
    return lambda self, request, context: self._one(name, request, context)


for _name in (
    "CreateJob",
    "GetJob",
    "ListJobs",
    "ListJobHistory",
    "ReadLog",
    "SearchLog",
    "ExplainJob",
    "RerunJob",
    "CopyJob",
    "ActivateJob",
    "CancelJob",
    "AbortJob",
    "DeleteJob",
):
    setattr(JobService, _name, _method(_name, stream=False))
for _name in ("WatchJobs", "ExportJobs", "ApplyVerb", "MonitorJob", "GetConsoleOutput", "GetDebugLog"):
    setattr(JobService, _name, _method(_name, stream=True))
for _name in ("ListPackages", "GetPackage", "DeletePackage"):
    setattr(PackageService, _name, _method(_name, stream=False))
PackageService.DownloadPackage = _method("DownloadPackage", stream=True)  # type: ignore[method-assign]
for _name in (
    "CreateCredential",
    "ListCredentials",
    "GetCredential",
    "ReplaceCredential",
    "DeleteCredential",
    "ListCredentialUsage",
    "BindCredential",
):
    setattr(CredentialService, _name, _method(_name, stream=False))
for _name in ("PairAgent", "RevokeAgent", "ListAgentIdentities"):
    setattr(AgentIdentityService, _name, _method(_name, stream=False))


@contextmanager
def serving(script: Script, tls: TlsFiles) -> Iterator[str]:
    """Serve the script; gives the endpoint."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(JobService(script), server)
        package_service_pb2_grpc.add_PackageServiceServicer_to_server(PackageService(script), server)
        credential_service_pb2_grpc.add_CredentialServiceServicer_to_server(CredentialService(script), server)
        agent_identity_service_pb2_grpc.add_AgentIdentityServiceServicer_to_server(AgentIdentityService(script), server)
        credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait(10)
