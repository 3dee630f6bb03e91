"""The certificate of a server process: where it comes from, and how its peers meet the next one."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from cryptography import x509

from services.runtime import identity as identities
from services.runtime import joining
from services.runtime.access import current_caller
from services.runtime.channels import Peer, refusals
from services.runtime.errors import InvalidArgument, Unavailable
from services.runtime.identity import Identity, Unusable
from services.runtime.server import Listener, Server
from services.runtime.settings import ServiceSettings
from services.runtime.tls import TlsFiles
from sis.credentials.v1 import certificate_pb2
from sis.credentials.v1 import certificate_service_pb2 as certificate_pb
from sis.credentials.v1 import certificate_service_pb2_grpc as certificate_rpc
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import job_service_pb2 as job_pb
from sis.queue.v1.dispatch_service_pb2_grpc import DispatchServiceStub, add_DispatchServiceServicer_to_server
from sis.queue.v1.job_service_pb2_grpc import JobServiceStub, add_JobServiceServicer_to_server
from tests.integration.runtime.conftest import BEARER, DispatchServicer, JobServicer
from tests.support.certificates import CertificateAuthority

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
JOIN_TOKEN = "the queue's join token"
HUB = "spiffe://sis/service/hub"


class Issuer:
    """Stands for the credential service: certifies for `life`, unless it is `away`."""

    def __init__(self, authority: CertificateAuthority, *, life: timedelta = timedelta(days=1)) -> None:
        self._authority = authority
        self.life = life
        self.away = False
        self.asked = asyncio.Event()
        self.count = 0

    async def obtain(self, request: bytes) -> bytes:
        self.count += 1
        self.asked.set()
        if self.away:
            raise Unavailable("the credential service does not answer; try again")
        return self._authority.certify(request, HUB, ("localhost", "hub"), life=self.life)


class Clock:
    """The time, wrong by `shift`."""

    def __init__(self) -> None:
        self.shift = timedelta(0)
        self._read = 0

    def __call__(self) -> datetime:
        self._read += 1
        return datetime.now(UTC) + self.shift

    async def looks(self, count: int) -> None:
        """Wait until somebody has read it so many times more."""
        wanted = self._read + count
        async with asyncio.timeout(20):
            while self._read < wanted:  # noqa: ASYNC110  (it sets no event)
                await asyncio.sleep(0.01)


@pytest.fixture
def issuer(authority: CertificateAuthority) -> Issuer:
    return Issuer(authority)


def identity_at(directory: Path, authority: CertificateAuthority, issuer: Issuer, **more: Any) -> Identity:
    return Identity(directory / "identity", authority.ca, issuer.obtain, name="hub", **more)


def serial(tls: TlsFiles) -> int:
    return x509.load_pem_x509_certificate(tls.certificate.read_bytes()).serial_number


@asynccontextmanager
async def running(identity: Identity) -> AsyncIterator[None]:
    task = asyncio.create_task(identity.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


async def renewed(identity: Identity, generation: int) -> None:
    async with asyncio.timeout(20):
        while identity.generation < generation:  # noqa: ASYNC110  (it sets no event)
            await asyncio.sleep(0.01)


async def test_it_is_obtained_once_and_kept(tmp_path: Path, authority: CertificateAuthority, issuer: Issuer) -> None:
    identity = identity_at(tmp_path, authority, issuer)
    await identity.ready()
    first = serial(identity.tls)
    assert issuer.count == 1
    assert stat.S_IMODE(identity.tls.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(identity.tls.key.parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in identity.tls.key.parent.iterdir()) == ["certificate.pem", "key.pem"]

    issuer.away = True
    again = identity_at(tmp_path, authority, issuer)
    await again.ready()
    assert (serial(again.tls), issuer.count) == (first, 1)


async def test_it_waits_for_whoever_issues(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.away = True
    identity = identity_at(tmp_path, authority, issuer)
    ready = asyncio.create_task(identity.ready())
    await issuer.asked.wait()
    assert not ready.done()
    issuer.away = False
    await asyncio.wait_for(ready, 10)
    assert "the credential service does not answer" in caplog.text


async def test_it_is_renewed_when_two_thirds_of_its_life_are_over(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.life = timedelta(hours=3)
    clock = Clock()
    monkeypatch.setattr(identities, "_now", clock)
    monkeypatch.setattr(identities, "_LOOK_SECONDS", 0.01)
    identity = identity_at(tmp_path, authority, issuer)
    await identity.ready()
    keys = {identity.tls.key.read_bytes()}
    async with running(identity):
        clock.shift = timedelta(minutes=119)
        await clock.looks(10)
        assert issuer.count == 1
        clock.shift = timedelta(minutes=121)
        await renewed(identity, 2)
        keys.add(identity.tls.key.read_bytes())
    assert len(keys) == 2


async def test_the_last_one_stays_while_a_renewal_fails(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer
) -> None:
    issuer.life = timedelta(seconds=2)
    identity = identity_at(tmp_path, authority, issuer)
    await identity.ready()
    kept = serial(identity.tls)
    issuer.away = True
    issuer.asked.clear()
    async with running(identity):
        async with asyncio.timeout(10):
            while issuer.count < 4:
                issuer.asked.clear()
                await issuer.asked.wait()
        assert serial(identity.tls) == kept
        issuer.away = False
        await renewed(identity, 2)
    assert serial(identity.tls) != kept


async def test_a_lost_host_name_is_asked_for_without_a_wait(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer
) -> None:
    await identity_at(tmp_path, authority, issuer).ready()
    identity = identity_at(tmp_path, authority, issuer, host_names=["hub", "hub.example.com"])
    await identity.ready()
    assert issuer.count == 1
    async with running(identity):
        await renewed(identity, 1)


@pytest.mark.parametrize("damage", ["key", "certificate", "both", "another CA", "expired"])
async def test_what_cannot_serve_is_replaced(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer, damage: str
) -> None:
    if damage == "expired":
        issuer.life = timedelta(seconds=-1)
        identity = identity_at(tmp_path, authority, issuer)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(identity.ready(), 0.5)
        assert not identity.tls.certificate.exists()
        issuer.life = timedelta(days=1)
        await identity.ready()
        return
    identity = identity_at(tmp_path, authority, issuer)
    await identity.ready()
    other = CertificateAuthority(tmp_path / "other").service("hub")
    if damage in ("key", "both"):
        identity.tls.key.write_bytes(b"no key")
    if damage in ("certificate", "both"):
        identity.tls.certificate.unlink()
    if damage == "another CA":
        shutil.copy(other.key, identity.tls.key)
        shutil.copy(other.certificate, identity.tls.certificate)
    await identity_at(tmp_path, authority, issuer).ready()
    assert issuer.count == 2


async def test_killed_between_certificate_and_key_it_goes_on_with_both(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer
) -> None:
    identity = identity_at(tmp_path, authority, issuer)
    await identity.ready()
    former = identity.tls.key.read_bytes()
    await identity_at(tmp_path / "elsewhere", authority, issuer).ready()
    new = tmp_path / "elsewhere" / "identity"
    # As a renewal leaves it: the key is written beside, the certificate is in place, the key is not.
    shutil.copy(new / "key.pem", identity.tls.key.with_name("key.next.pem"))
    again = identity_at(tmp_path, authority, issuer)
    await again.ready()
    assert again.tls.key.read_bytes() == former
    shutil.copy(new / "certificate.pem", identity.tls.certificate)
    again = identity_at(tmp_path, authority, issuer)
    await again.ready()
    assert again.tls.key.read_bytes() == (new / "key.pem").read_bytes()
    assert issuer.count == 2


async def test_a_chain_is_followed_to_the_ca(tmp_path: Path, authority: CertificateAuthority) -> None:
    tls = authority.service("hub")
    key, leaf, ca = tls.key.read_bytes(), tls.certificate.read_bytes(), tls.ca.read_bytes()
    now = datetime.now(UTC)
    assert identities.check(key, leaf + ca, ca, now).serial_number == serial(tls)
    other = CertificateAuthority(tmp_path)
    with pytest.raises(Unusable, match="CA"):
        identities.check(key, leaf + ca, other.ca.read_bytes(), now)
    with pytest.raises(Unusable, match="valid from"):
        identities.check(key, leaf, ca, now + timedelta(days=2))


# --- what is served, and to whom ---


@asynccontextmanager
async def serving(*listeners: Listener, jobs: JobServicer) -> AsyncIterator[tuple[int, ...]]:
    server = Server(
        "test",
        [
            (add_JobServiceServicer_to_server, jobs),
        ],
        listeners,
        admin_token_sha256=hashlib.sha256(BEARER[0][1].removeprefix("Bearer ").encode()).hexdigest(),
    )
    yield await server.start()
    await server.stop(0)


async def served_serial(port: int) -> int:
    """Of the certificate that a new connection is shown."""
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def test_new_connections_meet_the_renewed_certificate(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer
) -> None:
    identity = identity_at(tmp_path, authority, issuer)
    await identity.ready()
    issuer.life = timedelta(hours=1)
    jobs = JobServicer()
    async with serving(Listener("127.0.0.1:0", identity.tls), jobs=jobs) as ports:
        first = serial(identity.tls)
        assert await served_serial(ports[0]) == first
        credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{ports[0]}", credentials) as channel:
            stub = JobServiceStub(channel)
            await stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=BEARER)
            lacking = identity_at(tmp_path, authority, issuer, host_names=["another"])
            await lacking.ready()
            async with running(lacking):
                await renewed(lacking, 1)
            second = serial(identity.tls)
            assert second != first
            assert await served_serial(ports[0]) == second
            # A connection that was there goes on.
            await stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=BEARER)


async def test_a_key_without_its_certificate_is_not_served(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    identity = identity_at(tmp_path, authority, issuer)
    await identity.ready()
    async with serving(Listener("127.0.0.1:0", identity.tls), jobs=JobServicer()) as ports:
        identity.tls.key.write_bytes(authority.service("queue").key.read_bytes())
        assert await served_serial(ports[0]) == serial(identity.tls)
        assert "is not taken" in caplog.text


class Watched(DispatchServicer):
    """Says which certificate the caller of the internal listener has shown."""

    shown: bytes = b""

    async def CloseSession(
        self, request: dispatch_pb.CloseSessionRequest, context: Context
    ) -> dispatch_pb.CloseSessionResponse:
        type(self).shown = current_caller().certificate
        return dispatch_pb.CloseSessionResponse()

    async def Watch(self, request: dispatch_pb.WatchRequest, context: Context) -> AsyncIterator[Any]:
        yield dispatch_pb.WatchResponse(wake=True)
        await asyncio.Event().wait()


@pytest.mark.parametrize("grace", [0.2, 600.0], ids=["grace", "close"])
async def test_a_peer_goes_on_with_the_renewed_certificate(
    tmp_path: Path, authority: CertificateAuthority, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    monkeypatch.setattr("services.runtime.channels.PEER_GRACE_SECONDS", grace)
    issuer.life = timedelta(seconds=3)
    identity = identity_at(tmp_path, authority, issuer)
    await identity.ready()
    queue = authority.service("queue")
    server = Server(
        "queue",
        [(add_DispatchServiceServicer_to_server, Watched())],
        [Listener("127.0.0.1:0", queue, demand_client_certificate=True)],
    )
    (port,) = await server.start()
    peer = Peer(f"127.0.0.1:{port}", identity, DispatchServiceStub, server_name="queue")

    async def shown() -> int:
        await peer.stub.CloseSession(dispatch_pb.CloseSessionRequest())
        return x509.load_pem_x509_certificate(Watched.shown).serial_number

    async def watch() -> None:
        with refusals():
            async for _ in peer.stub.Watch(dispatch_pb.WatchRequest(hub="h")):
                watching.set()

    try:
        watching = asyncio.Event()
        watcher = asyncio.create_task(watch())
        await watching.wait()
        assert await shown() == serial(identity.tls)
        async with running(identity):
            await renewed(identity, 2)
            issuer.life = timedelta(days=1)
            await renewed(identity, 3)
        assert await shown() == serial(identity.tls)
        # What went on over the former channel is cut off after a while, or with the peer, and its task is not taken for
        # cancelled.
        if grace > 1:
            await peer.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(watcher, 10)
    finally:
        await peer.close()
        await server.stop(0)


async def test_a_cancelled_task_stays_cancelled() -> None:
    async def wait() -> None:
        with refusals():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


# --- joining ---


class CertificateServicer(certificate_rpc.CertificateServiceServicer):
    """Certifies whoever asks, as it asks."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority
        self.asked: list[tuple[str, list[str]]] = []

    async def IssueServiceCertificate(
        self, request: certificate_pb.IssueServiceCertificateRequest, context: Context
    ) -> certificate_pb.IssueServiceCertificateResponse:
        caller = current_caller()
        self.asked.append((caller.name, list(request.host_names)))
        if "refused.example.com" in request.host_names:
            raise InvalidArgument.field("host_names[0]", "is refused")
        chain = self._authority.certify(
            request.csr, f"spiffe://sis/service/{caller.name}", (caller.name, *request.host_names)
        )
        issued = certificate_pb2.IssuedCertificate(certificate_chain=chain)
        return certificate_pb.IssueServiceCertificateResponse(certificate=issued)


async def test_a_service_joins_by_its_token(
    tmp_path: Path, authority: CertificateAuthority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    servicer = CertificateServicer(authority)
    server = Server(
        "credentials",
        [(certificate_rpc.add_CertificateServiceServicer_to_server, servicer)],
        [Listener("127.0.0.1:0", authority.service("credentials"))],
        join_tokens={hashlib.sha256(JOIN_TOKEN.encode()).hexdigest(): "queue"},
    )
    (port,) = await server.start()
    token = tmp_path / "join.token"
    token.write_text("wrong\n")

    def settings(**changes: object) -> ServiceSettings:
        return ServiceSettings.model_validate(
            {
                "tls_ca": authority.ca,
                "identity": tmp_path / "identity",
                "host_names": "queue.example.com,127.0.0.1",
                "join_endpoint": f"127.0.0.1:{port}",
                "join_token_file": token,
                **changes,
            }
        )

    try:
        # With a wrong token it waits; nobody has to restart it when that is mended.
        ready = asyncio.create_task(joining.identity(settings(), "queue").ready())
        async with asyncio.timeout(10):
            while "the token is not known here" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        token.write_text(f"{JOIN_TOKEN}\n")
        await asyncio.wait_for(ready, 10)
        assert servicer.asked == [("queue", ["queue.example.com", "127.0.0.1"])]
        leaf = x509.load_pem_x509_certificate((tmp_path / "identity" / "certificate.pem").read_bytes())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://sis/service/queue"]
        assert JOIN_TOKEN not in caplog.text
    finally:
        await server.stop(0)
    # It is there now: nobody is asked.
    await asyncio.wait_for(joining.identity(settings(), "queue").ready(), 5)
