"""Who may call what, as data. A method that is not listed here cannot be called.

People prove themselves by a bearer token, processes and agents by a client certificate with a SPIFFE id.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from services.runtime.errors import PermissionDenied, Unauthenticated


class Audience(enum.Enum):
    """Whom a method is for. Of the three roles of people, each later one may do what the earlier ones may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    HUB = "hub"
    AGENT = "agent"
    ANYONE = "anyone"


_ROLES = (Audience.VIEWER, Audience.OPERATOR, Audience.ADMIN)

ACCESS: Mapping[str, Audience] = {
    "/sis.queue.v1.JobService/CreateJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/GetJob": Audience.VIEWER,
    "/sis.queue.v1.JobService/ListJobs": Audience.VIEWER,
    "/sis.queue.v1.JobService/MonitorJob": Audience.VIEWER,
    "/sis.queue.v1.JobService/GetConsoleOutput": Audience.VIEWER,
    "/sis.queue.v1.JobService/GetDebugLog": Audience.VIEWER,
    "/sis.queue.v1.JobService/ListJobHistory": Audience.VIEWER,
    "/sis.queue.v1.JobService/ActivateJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/CancelJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/AbortJob": Audience.OPERATOR,
    "/sis.queue.v1.JobService/DeleteJob": Audience.OPERATOR,
    # A package is code that agents run.
    "/sis.queue.v1.PackageService/PushPackage": Audience.ADMIN,
    "/sis.queue.v1.PackageService/ListPackages": Audience.VIEWER,
    "/sis.queue.v1.PackageService/GetPackage": Audience.VIEWER,
    "/sis.queue.v1.DispatchService/OpenSession": Audience.HUB,
    "/sis.queue.v1.DispatchService/CloseSession": Audience.HUB,
    "/sis.queue.v1.DispatchService/Claim": Audience.HUB,
    "/sis.queue.v1.DispatchService/Report": Audience.HUB,
    "/sis.queue.v1.DispatchService/Heartbeat": Audience.HUB,
    "/sis.queue.v1.DispatchService/Watch": Audience.HUB,
    "/sis.queue.v1.DispatchService/GetPackageArchive": Audience.HUB,
    "/sis.agent.v1.AgentService/Connect": Audience.AGENT,
    "/sis.agent.v1.AgentService/FetchPackage": Audience.AGENT,
    "/sis.agent.v1.AgentAdminService/ListAgents": Audience.VIEWER,
    "/sis.agent.v1.AgentAdminService/GetAgent": Audience.VIEWER,
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
) -> Caller:
    """Who calls, from the values of the `authorization` metadata and the SPIFFE id of the client certificate.

    A token goes before a certificate. Where anyone may call, proofs are not looked at.

    Raises:
        Unauthenticated: a token or identity was shown that is not known here.
    """
    if ACCESS.get(method) is Audience.ANYONE:
        return Caller("anyone", "", origin=origin)
    if authorization:
        return _person(authorization, admin_token_sha256, origin)
    if spiffe_id is None:
        return Caller("anyone", "", origin=origin)
    found = _IDENTITY.fullmatch(spiffe_id)
    if found is None:
        raise Unauthenticated("the client certificate names no identity of this suite: use one that it issued")
    if found["service"]:
        return Caller("service", found["service"], origin=origin)
    return Caller("agent", found["agent"], group=found["group"], origin=origin)


def _person(authorization: tuple[str, ...], admin_token_sha256: str | None, origin: str) -> Caller:
    scheme, _, token = authorization[0].partition(" ")
    if len(authorization) != 1 or scheme.lower() != "bearer" or not token:
        raise Unauthenticated("authorization: send one value, `Bearer <token>`")
    digest = hashlib.sha256(token.encode()).hexdigest()
    if admin_token_sha256 is None or not hmac.compare_digest(digest, admin_token_sha256):
        raise Unauthenticated("authorization: the token is not known here")
    return Caller("person", "administrator", role=Audience.ADMIN, origin=origin)


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
        proof = "an `authorization: Bearer <token>`" if audience in _ROLES else "a client certificate"
        raise Unauthenticated(f"{method}: send {proof}")
    if not _permitted(audience, caller):
        raise PermissionDenied(
            f"{method}: this is for {_DESCRIBED[audience]}; you called as {caller.kind} {caller.name!r}",
            metadata={"audience": audience.value},
        )


_DESCRIBED = {
    Audience.VIEWER: "people with the role viewer",
    Audience.OPERATOR: "people with the role operator",
    Audience.ADMIN: "people with the role admin",
    Audience.HUB: "the hub",
    Audience.AGENT: "agents",
}


def _permitted(audience: Audience, caller: Caller) -> bool:
    if audience in _ROLES:
        return caller.kind == "person" and caller.role in _ROLES and _ROLES.index(caller.role) >= _ROLES.index(audience)
    if audience is Audience.HUB:
        return caller.kind == "service" and caller.name == "hub"
    return audience is Audience.AGENT and caller.kind == "agent"
