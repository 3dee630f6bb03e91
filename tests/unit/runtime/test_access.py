"""Every method of every service is given to somebody, and to nobody else."""

from __future__ import annotations

import hashlib

import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.access import (
    ACCESS,
    Audience,
    Caller,
    acting_as,
    authenticate,
    authorise,
    current_caller,
)
from services.runtime.errors import PermissionDenied, Unauthenticated
from sis.agent.v1 import agent_admin_service_pb2, agent_service_pb2, enrolment_service_pb2
from sis.credentials.v1 import (
    agent_identity_service_pb2,
    certificate_service_pb2,
    credential_service_pb2,
    lease_service_pb2,
)
from sis.queue.v1 import dispatch_service_pb2, job_service_pb2, package_service_pb2

CONTRACTS: list[FileDescriptor] = [
    agent_admin_service_pb2.DESCRIPTOR,
    agent_service_pb2.DESCRIPTOR,
    enrolment_service_pb2.DESCRIPTOR,
    agent_identity_service_pb2.DESCRIPTOR,
    certificate_service_pb2.DESCRIPTOR,
    credential_service_pb2.DESCRIPTOR,
    lease_service_pb2.DESCRIPTOR,
    dispatch_service_pb2.DESCRIPTOR,
    job_service_pb2.DESCRIPTOR,
    package_service_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
]
TOKEN = "correct horse battery staple"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()

GET_JOB = "/sis.queue.v1.JobService/GetJob"
CLAIM = "/sis.queue.v1.DispatchService/Claim"
CONNECT = "/sis.agent.v1.AgentService/Connect"
JOIN = "/sis.credentials.v1.CertificateService/IssueServiceCertificate"
CHECK = "/grpc.health.v1.Health/Check"

ANYONE = Caller("anyone", "")
PERSON = Caller("person", "administrator", role=Audience.ADMIN)
HUB = Caller("service", "hub")
QUEUE = Caller("service", "queue")
AGENT = Caller("agent", "a1", group="local")


def described_methods() -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for contract in CONTRACTS
        for service in contract.services_by_name.values()
        for method in service.methods
    }


def test_access_lists_exactly_the_methods_of_all_descriptors() -> None:
    assert set(ACCESS) == described_methods()


def test_only_health_reflection_and_enrolment_are_for_anyone() -> None:
    opened = {method for method, audience in ACCESS.items() if audience is Audience.ANYONE}
    assert opened == {method for method in ACCESS if method.startswith(("/grpc.", "/sis.agent.v1.EnrolmentService/"))}


@pytest.mark.parametrize("method", sorted(ACCESS))
@pytest.mark.parametrize("caller", [ANYONE, PERSON, HUB, QUEUE, AGENT], ids=lambda caller: caller.kind + caller.name)
def test_a_method_is_for_its_audience_alone(method: str, caller: Caller) -> None:
    permitted = {
        Audience.VIEWER: {PERSON},
        Audience.OPERATOR: {PERSON},
        Audience.ADMIN: {PERSON},
        Audience.HUB: {HUB},
        Audience.AGENT: {AGENT},
        Audience.SERVICE: {HUB, QUEUE},
        Audience.ANYONE: {ANYONE, PERSON, HUB, QUEUE, AGENT},
    }[ACCESS[method]]
    if caller in permitted:
        authorise(method, caller)
    else:
        with pytest.raises(Unauthenticated if caller is ANYONE else PermissionDenied):
            authorise(method, caller)


@pytest.mark.parametrize(
    ("role", "method", "permitted"),
    [
        (Audience.VIEWER, GET_JOB, True),
        (Audience.VIEWER, "/sis.queue.v1.JobService/CancelJob", False),
        (Audience.OPERATOR, "/sis.queue.v1.JobService/CancelJob", True),
        (Audience.OPERATOR, "/sis.queue.v1.PackageService/PushPackage", False),
        (None, GET_JOB, False),
        (Audience.AGENT, GET_JOB, False),
    ],
)
def test_roles_include_the_lesser_ones(role: Audience | None, method: str, permitted: bool) -> None:
    caller = Caller("person", "somebody", role=role)
    if permitted:
        authorise(method, caller)
    else:
        with pytest.raises(PermissionDenied):
            authorise(method, caller)


@pytest.mark.parametrize("caller", [ANYONE, PERSON, HUB, AGENT], ids=lambda caller: caller.kind)
def test_a_method_that_is_not_listed_cannot_be_called(caller: Caller) -> None:
    with pytest.raises(PermissionDenied):
        authorise("/sis.queue.v1.JobService/DropEverything", caller)


JOIN_TOKEN = "the queue's join token"
JOIN_TOKENS = {hashlib.sha256(JOIN_TOKEN.encode()).hexdigest(): "queue"}


def prove(
    *authorization: str,
    spiffe_id: str | None = None,
    method: str = GET_JOB,
    digest: str | None = DIGEST,
    forwarded_origin: str = "",
) -> Caller:
    return authenticate(
        method,
        authorization=authorization,
        spiffe_id=spiffe_id,
        origin="10.0.0.1",
        admin_token_sha256=digest,
        join_tokens=JOIN_TOKENS,
        certificate=b"" if spiffe_id is None else b"PEM",
        forwarded_origin=forwarded_origin,
    )


def test_the_token_makes_the_administrator() -> None:
    expected = Caller("person", "administrator", role=Audience.ADMIN, origin="10.0.0.1")
    assert prove(f"Bearer {TOKEN}") == expected
    assert prove(f"bearer {TOKEN}") == expected
    assert prove(f"Bearer {TOKEN}", spiffe_id="spiffe://sis/agent/local/a1") == expected


@pytest.mark.parametrize(
    "authorization",
    [
        ("Bearer wrong",),
        ("Bearer ",),
        ("Basic abc",),
        (TOKEN,),
        ("",),
        (f"Bearer {TOKEN}", f"Bearer {TOKEN}"),
    ],
)
def test_a_wrong_token_is_refused_whatever_the_certificate(authorization: tuple[str, ...]) -> None:
    with pytest.raises(Unauthenticated) as caught:
        prove(*authorization, spiffe_id="spiffe://sis/service/hub")
    assert TOKEN not in caught.value.message


def test_without_a_known_digest_no_token_is_right() -> None:
    with pytest.raises(Unauthenticated):
        prove(f"Bearer {TOKEN}", digest=None)


def test_certificates_make_services_and_agents() -> None:
    assert prove(spiffe_id="spiffe://sis/service/hub") == Caller(
        "service", "hub", origin="10.0.0.1", certificate=b"PEM"
    )
    assert prove(spiffe_id="spiffe://sis/agent/paris/web-1") == Caller(
        "agent", "web-1", group="paris", origin="10.0.0.1", certificate=b"PEM"
    )
    assert prove().kind == "anyone"


GATEWAY = "spiffe://sis/service/gateway"


def test_the_gateway_says_where_a_person_calls_from() -> None:
    found = prove(f"Bearer {TOKEN}", spiffe_id=GATEWAY, forwarded_origin="192.0.2.7")
    assert found == Caller("person", "administrator", role=Audience.ADMIN, origin="192.0.2.7")
    assert prove(f"Bearer {TOKEN}", spiffe_id=GATEWAY).origin == "10.0.0.1"


@pytest.mark.parametrize(
    "spiffe_id",
    [
        None,
        "spiffe://sis/service/hub",
        "spiffe://sis/service/gateway2",
        "spiffe://sis/agent/local/gateway",
        GATEWAY + "/",
    ],
)
def test_nobody_else_says_it(spiffe_id: str | None) -> None:
    assert prove(f"Bearer {TOKEN}", spiffe_id=spiffe_id, forwarded_origin="192.0.2.7").origin == "10.0.0.1"


@pytest.mark.parametrize("method", sorted(ACCESS))
def test_the_gateway_itself_is_nobody(method: str) -> None:
    caller = prove(spiffe_id=GATEWAY, method=method, forwarded_origin="192.0.2.7")
    assert (caller.kind, caller.name, caller.certificate) == ("anyone", "", b"")
    if ACCESS[method] is not Audience.ANYONE:
        with pytest.raises(Unauthenticated):
            authorise(method, caller)


def test_a_wrong_token_through_the_gateway_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        prove("Bearer wrong", spiffe_id=GATEWAY, forwarded_origin="192.0.2.7")


def test_a_join_token_makes_a_service_for_joining_alone() -> None:
    assert prove(f"Bearer {JOIN_TOKEN}", method=JOIN) == Caller("service", "queue", origin="10.0.0.1")
    for method in sorted(ACCESS.keys() - {JOIN}):
        if ACCESS[method] is not Audience.ANYONE:
            with pytest.raises(Unauthenticated):
                prove(f"Bearer {JOIN_TOKEN}", method=method)
    with pytest.raises(PermissionDenied):
        authorise(JOIN, prove(f"Bearer {TOKEN}", method=JOIN))
    with pytest.raises(Unauthenticated):
        prove(f"Bearer {JOIN_TOKEN}x", method=JOIN)


@pytest.mark.parametrize("name", ["service/hub", "service/queue", "service/gateway", "agent/local/a1"])
def test_a_certificate_is_no_join_token(name: str) -> None:
    spiffe_id = f"spiffe://sis/{name}"
    caller = prove(spiffe_id=spiffe_id, method=JOIN)
    assert (caller.kind, caller.name, caller.certificate) == ("anyone", "", b"")
    with pytest.raises(Unauthenticated, match="join token"):
        authorise(JOIN, caller)
    # It does no harm to whoever has the token as well, and makes nobody else of it.
    assert prove(f"Bearer {JOIN_TOKEN}", spiffe_id=spiffe_id, method=JOIN).name == "queue"


def test_a_certificate_is_not_shown_in_a_representation() -> None:
    assert "PEM" not in repr(prove(spiffe_id="spiffe://sis/service/hub"))


@pytest.mark.parametrize(
    "spiffe_id",
    [
        "spiffe://other/service/hub",
        "spiffe://sis/service/",
        "spiffe://sis/service/hub/x",
        "spiffe://sis/agent/a1",
        "spiffe://sis/agent/local/../hub",
        "spiffe://sis/agent/local/a1\n",
        "spiffe://sis/agent/lo cal/a1",
        "",
    ],
)
def test_a_foreign_identity_is_refused(spiffe_id: str) -> None:
    with pytest.raises(Unauthenticated):
        prove(spiffe_id=spiffe_id)


@given(st.text())
def test_no_identity_but_the_hubs_own_makes_the_hub(tail: str) -> None:
    spiffe_id = f"spiffe://sis/{tail}"
    try:
        caller = prove(spiffe_id=spiffe_id, method=CLAIM)
        authorise(CLAIM, caller)
    except (Unauthenticated, PermissionDenied):
        assert tail != "service/hub"
    else:
        assert tail == "service/hub"


def test_proofs_are_not_looked_at_where_anyone_may_call() -> None:
    assert prove("Bearer wrong", spiffe_id="nonsense", method=CHECK).kind == "anyone"


def test_the_current_caller_is_set_for_a_block() -> None:
    with pytest.raises(LookupError):
        current_caller()
    with acting_as(HUB):
        assert current_caller() is HUB
        with acting_as(AGENT):
            assert current_caller() is AGENT
        assert current_caller() is HUB
