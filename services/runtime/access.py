"""Who may call what, as data. A method that is not listed here cannot be called.

People prove themselves by a bearer token, processes and agents by a client certificate with a SPIFFE id; a process that
is to get one, its first or the next, by its join token.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from services.runtime.errors import PermissionDenied, Unauthenticated


class Audience(enum.Enum):
    """Whom a method is for. Of the three roles of people, each later one may do what the earlier ones may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    HUB = "hub"
    AGENT = "agent"
    SERVICE = "service"
    ANYONE = "anyone"


_ROLES = (Audience.VIEWER, Audience.OPERATOR, Audience.ADMIN)

ACCESS: Mapping[str, Audience] = {
    "/sis.queue.v1.JobService/CreateJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/GetJob": Audience.VIEWER,
    "/sis.queue.v1.JobService/ListJobs": Audience.VIEWER,
    "/sis.queue.v1.JobService/MonitorJob": Audience.VIEWER,
    "/sis.queue.v1.JobService/ReadLog": Audience.VIEWER,
    "/sis.queue.v1.JobService/SearchLog": Audience.VIEWER,
    "/sis.queue.v1.JobService/GetConsoleOutput": Audience.VIEWER,
    "/sis.queue.v1.JobService/GetDebugLog": Audience.VIEWER,
    "/sis.queue.v1.JobService/ListJobHistory": Audience.VIEWER,
    "/sis.queue.v1.JobService/ActivateJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/CancelJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/AbortJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/DeleteJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/WatchJobs": Audience.VIEWER,
    "/sis.queue.v1.JobService/ExportJobs": Audience.VIEWER,
    "/sis.queue.v1.JobService/ApplyVerb": Audience.OPERATOR,
    "/sis.queue.v1.JobService/ExplainJob": Audience.VIEWER,
    "/sis.queue.v1.JobService/RerunJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/CopyJob": Audience.VIEWER,
    # A package is code that agents run.
    "/sis.queue.v1.PackageService/PushPackage": Audience.ADMIN,
    "/sis.queue.v1.PackageService/DeletePackage": Audience.ADMIN,
    "/sis.queue.v1.PackageService/ListPackages": Audience.VIEWER,
    "/sis.queue.v1.PackageService/GetPackage": Audience.VIEWER,
    "/sis.queue.v1.PackageService/DownloadPackage": Audience.VIEWER,
    "/sis.queue.v1.DispatchService/OpenSession": Audience.HUB,
    "/sis.queue.v1.DispatchService/CloseSession": Audience.HUB,
    "/sis.queue.v1.DispatchService/Claim": Audience.HUB,
    "/sis.queue.v1.DispatchService/Report": Audience.HUB,
    "/sis.queue.v1.DispatchService/Heartbeat": Audience.HUB,
    "/sis.queue.v1.DispatchService/Watch": Audience.HUB,
    "/sis.queue.v1.DispatchService/AcknowledgeLeaseEnds": Audience.HUB,
    "/sis.queue.v1.DispatchService/GetPackageArchive": Audience.HUB,
    "/sis.agent.v1.AgentService/Connect": Audience.AGENT,
    "/sis.agent.v1.AgentService/FetchPackage": Audience.AGENT,
    "/sis.agent.v1.AgentAdminService/ListAgents": Audience.VIEWER,
    "/sis.agent.v1.AgentAdminService/GetAgent": Audience.VIEWER,
    # The credential service verifies the proofs in these requests; the hub relays them.
    "/sis.agent.v1.EnrolmentService/Enrol": Audience.ANYONE,
    "/sis.agent.v1.EnrolmentService/Rejoin": Audience.ANYONE,
    "/sis.credentials.v1.CredentialService/CreateCredential": Audience.OPERATOR,
    "/sis.credentials.v1.CredentialService/ListCredentials": Audience.VIEWER,
    "/sis.credentials.v1.CredentialService/GetCredential": Audience.VIEWER,
    "/sis.credentials.v1.CredentialService/ReplaceCredential": Audience.OPERATOR,
    "/sis.credentials.v1.CredentialService/DeleteCredential": Audience.OPERATOR,
    "/sis.credentials.v1.CredentialService/ListCredentialUsage": Audience.VIEWER,
    "/sis.credentials.v1.CredentialService/BindCredential": Audience.OPERATOR,
    "/sis.credentials.v1.LeaseService/TakeLeases": Audience.HUB,
    "/sis.credentials.v1.LeaseService/EndLeases": Audience.HUB,
    "/sis.credentials.v1.CertificateService/IssueServiceCertificate": Audience.SERVICE,
    "/sis.credentials.v1.CertificateService/EnrolAgent": Audience.HUB,
    "/sis.credentials.v1.CertificateService/RenewAgentCertificate": Audience.HUB,
    "/sis.credentials.v1.CertificateService/WatchRevocations": Audience.HUB,
    "/sis.credentials.v1.AgentIdentityService/PairAgent": Audience.ADMIN,
    "/sis.credentials.v1.AgentIdentityService/RevokeAgent": Audience.ADMIN,
    "/sis.credentials.v1.AgentIdentityService/ListAgentIdentities": Audience.VIEWER,
    "/grpc.health.v1.Health/Check": Audience.ANYONE,
    "/grpc.health.v1.Health/List": Audience.ANYONE,
    "/grpc.health.v1.Health/Watch": Audience.ANYONE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Audience.ANYONE,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes the call in progress, as proven."""

    kind: Literal["person", "service", "agent", "anyone"]
    name: str
    # Of an agent.
    group: str = ""
    # Of a person: VIEWER, OPERATOR or ADMIN.
    role: Audience | None = None
    # The peer's address without its port.
    origin: str = ""
    # What it showed, in PEM, if anything.
    certificate: bytes = field(default=b"", repr=False)


_caller: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Who makes the call that this task serves.

    Raises:
        LookupError: the task serves no call (use `acting_as` in a background task).
    """
    return _caller.get()


@contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    """Make `caller` the current one for the block."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


GATEWAY_ID = "spiffe://sis/service/gateway"

# A name in an identity; it is shown to people and part of paths, so nothing exotic.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_IDENTITY = re.compile(rf"spiffe://sis/(?:service/(?P<service>{_NAME})|agent/(?P<group>{_NAME})/(?P<agent>{_NAME}))")


def authenticate(
    method: str,
    *,
    authorization: tuple[str, ...],
    spiffe_id: str | None,
    origin: str,
    admin_token_sha256: str | None,
    join_tokens: Mapping[str, str] = MappingProxyType({}),
    certificate: bytes = b"",
    forwarded_origin: str = "",
) -> Caller:
    """Who calls, from the values of the `authorization` metadata and the client certificate with its SPIFFE id.

    A token goes before a certificate. The gateway forwards the tokens of people and says where they call from: its
    `forwarded_origin` counts, nobody else's. The gateway itself is nobody: without a token it calls as anyone. Where
    anyone may call, proofs are not looked at. `join_tokens` are the services by the SHA-256 of their tokens; these are
    good for methods of Audience.SERVICE alone, and there no certificate is: without a token, whoever shows one calls as
    anyone.

    Raises:
        Unauthenticated: a token or identity was shown that is not known here.
    """
    if ACCESS.get(method) is Audience.ANYONE:
        return Caller("anyone", "", origin=origin)
    if spiffe_id == GATEWAY_ID:
        origin, spiffe_id = forwarded_origin or origin, None
    if ACCESS.get(method) is Audience.SERVICE:
        # Else a copy of a service's certificate, which nobody can revoke, would renew itself for ever.
        spiffe_id = None
    if authorization:
        digest = hashlib.sha256(_token(authorization).encode()).hexdigest()
        if ACCESS.get(method) is Audience.SERVICE and digest in join_tokens:
            return Caller("service", join_tokens[digest], origin=origin)
        if admin_token_sha256 is None or not hmac.compare_digest(digest, admin_token_sha256):
            raise Unauthenticated("authorization: the token is not known here")
        return Caller("person", "administrator", role=Audience.ADMIN, origin=origin)
    if spiffe_id is None:
        return Caller("anyone", "", origin=origin)
    found = _IDENTITY.fullmatch(spiffe_id)
    if found is None:
        raise Unauthenticated("the client certificate names no identity of this suite: use one that it issued")
    if found["service"]:
        return Caller("service", found["service"], origin=origin, certificate=certificate)
    return Caller("agent", found["agent"], group=found["group"], origin=origin, certificate=certificate)


def _token(authorization: tuple[str, ...]) -> str:
    scheme, _, token = authorization[0].partition(" ")
    if len(authorization) != 1 or scheme.lower() != "bearer" or not token:
        raise Unauthenticated("authorization: send one value, `Bearer <token>`")
    return token


def authorise(method: str, caller: Caller) -> None:
    """Check that `caller` may call `method` (`/package.Service/Method`).

    Raises:
        Unauthenticated: only a known caller may.
        PermissionDenied: this caller may not.
    """
    audience = ACCESS.get(method)
    if audience is Audience.ANYONE:
        return
    if audience is None:
        raise PermissionDenied(f"{method}: nobody may call this method")
    if caller.kind == "anyone":
        raise Unauthenticated(f"{method}: send {_PROOFS.get(audience, 'a client certificate')}")
    if not _permitted(audience, caller):
        raise PermissionDenied(
            f"{method}: this is for {_DESCRIBED[audience]}; you called as {caller.kind} {caller.name!r}",
            metadata={"audience": audience.value},
        )


_PROOFS = {
    **dict.fromkeys(_ROLES, "an `authorization: Bearer <token>`"),
    Audience.SERVICE: "an `authorization: Bearer <join token>`; a client certificate does not do here",
}

_DESCRIBED = {
    Audience.VIEWER: "people with the role viewer",
    Audience.OPERATOR: "people with the role operator",
    Audience.ADMIN: "people with the role admin",
    Audience.HUB: "the hub",
    Audience.AGENT: "agents",
    Audience.SERVICE: "server processes by their join tokens",
}


def _permitted(audience: Audience, caller: Caller) -> bool:
    if audience in _ROLES:
        return caller.kind == "person" and caller.role in _ROLES and _ROLES.index(caller.role) >= _ROLES.index(audience)
    if audience is Audience.HUB:
        return caller.kind == "service" and caller.name == "hub"
    if audience is Audience.SERVICE:
        return caller.kind == "service"
    return audience is Audience.AGENT and caller.kind == "agent"
