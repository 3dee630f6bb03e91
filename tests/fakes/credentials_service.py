"""The credential service as a hub sees it, over real gRPC and mutual TLS: leases, certificates, revocations.

Nothing is sealed and nothing certified; what it should do wrong, the test says.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from cryptography import x509

from services.runtime.errors import SisError
from services.runtime.interceptors import Context
from services.runtime.server import Listener, Registration, Server
from services.runtime.tls import TlsFiles
from sis.credentials.v1 import certificate_pb2, certificate_service_pb2, lease_pb2, lease_service_pb2
from sis.credentials.v1 import certificate_service_pb2_grpc as certificate_rpc
from sis.credentials.v1 import lease_service_pb2_grpc as lease_rpc

WAIT_SECONDS = 10.0

Key = tuple[int, int]
Message = TypeVar("Message")


class FakeCredentials(lease_rpc.LeaseServiceServicer, certificate_rpc.CertificateServiceServicer):
    """`until` waits for something that a hub does."""

    def __init__(self) -> None:
        self.leases: dict[tuple[int, int, str, str], lease_pb2.SealedLease] = {}
        """By job, attempt, agent and ref."""
        self.ended: set[Key] = set()
        self.refusals: dict[Key, lease_pb2.LeaseRefusal] = {}
        """What attempts get instead of leases."""
        self.alter: Callable[[lease_service_pb2.LeaseResult], None] = lambda _: None
        """Called with each result that has leases."""
        self.refuse_take: Callable[[lease_service_pb2.TakeLeasesRequest], SisError | None] = lambda _: None
        """What a whole call fails with."""
        self.gate = asyncio.Event()
        """Calls that take leases or certify wait while it is cleared."""
        self.gate.set()
        self.failures: defaultdict[str, deque[SisError]] = defaultdict(deque)
        """What the next calls of a method fail with."""

        self.taken: list[list[lease_service_pb2.LeaseRequest]] = []
        self.takes_in_flight = 0
        self.most_takes_in_flight = 0
        self.ends: list[list[lease_service_pb2.EndedAttempt]] = []
        self.enrolments: list[certificate_service_pb2.EnrolAgentRequest] = []
        self.renewals: list[certificate_service_pb2.RenewAgentCertificateRequest] = []
        self.revocations: list[certificate_pb2.Revocation] = []

        self._watchers: set[asyncio.Queue[certificate_pb2.Revocation]] = set()
        self._changed = asyncio.Condition()

    # What tests do

    @asynccontextmanager
    async def serving(self, tls: TlsFiles, port: int = 0) -> AsyncIterator[int]:
        """Serve on a port; the calls in flight are cut off at the end."""
        registrations: list[Registration] = [
            (lease_rpc.add_LeaseServiceServicer_to_server, self),
            (certificate_rpc.add_CertificateServiceServicer_to_server, self),
        ]
        server = Server(
            "credentials", registrations, [Listener(f"127.0.0.1:{port}", tls, demand_client_certificate=True)]
        )
        (port,) = await server.start()
        try:
            yield port
        finally:
            await server.stop(grace=0)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds that a call to this fake changes."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(holds)

    async def watched(self, watchers: int = 1) -> None:
        """Wait until so many hubs watch the revocations."""
        await self.until(lambda: len(self._watchers) >= watchers)

    def revoke(self, agent: str, tls: TlsFiles) -> None:
        """Revoke the certificate in these files."""
        certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
        revocation = certificate_pb2.Revocation(serial=f"{certificate.serial_number:040x}", agent=agent)
        revocation.not_after.FromDatetime(certificate.not_valid_after_utc)
        self.revocations.append(revocation)
        for watcher in self._watchers:
            watcher.put_nowait(revocation)

    @property
    def requests(self) -> list[lease_service_pb2.LeaseRequest]:
        """What was wanted, in the order of its arrival."""
        return [request for call in self.taken for request in call]

    # What hubs call

    async def TakeLeases(
        self, request: lease_service_pb2.TakeLeasesRequest, context: Context
    ) -> lease_service_pb2.TakeLeasesResponse:
        self.takes_in_flight += 1
        self.most_takes_in_flight = max(self.most_takes_in_flight, self.takes_in_flight)
        try:
            await self._note(self.taken, list(request.requests))
            await self.gate.wait()
            self._fail("TakeLeases")
            if refused := self.refuse_take(request):
                raise refused
            return lease_service_pb2.TakeLeasesResponse(results=map(self._take, request.requests))
        finally:
            self.takes_in_flight -= 1

    def _take(self, request: lease_service_pb2.LeaseRequest) -> lease_service_pb2.LeaseResult:
        if (request.job_id, request.attempt) in self.ended:
            return lease_service_pb2.LeaseResult(
                refusal=lease_pb2.LeaseRefusal(reason=lease_pb2.LEASE_REFUSAL_REASON_ATTEMPT_ENDED)
            )
        if refusal := self.refusals.get((request.job_id, request.attempt)):
            return lease_service_pb2.LeaseResult(refusal=refusal)
        result = lease_service_pb2.LeaseResult()
        for use in request.uses:
            lease = lease_pb2.SealedLease(
                lease_id=secrets.token_hex(8), ref=use.ref, sealing_key_id="0" * 16, ciphertext=secrets.token_bytes(48)
            )
            key = request.job_id, request.attempt, request.agent, use.ref
            result.leases.append(self.leases.setdefault(key, lease))
        self.alter(result)
        return result

    async def EndLeases(
        self, request: lease_service_pb2.EndLeasesRequest, context: Context
    ) -> lease_service_pb2.EndLeasesResponse:
        await self._note(self.ends, list(request.attempts))
        self._fail("EndLeases")
        self.ended |= {(each.job_id, each.attempt) for each in request.attempts}
        return lease_service_pb2.EndLeasesResponse()

    async def IssueServiceCertificate(
        self, request: certificate_service_pb2.IssueServiceCertificateRequest, context: Context
    ) -> certificate_service_pb2.IssueServiceCertificateResponse:
        raise NotImplementedError

    async def EnrolAgent(
        self, request: certificate_service_pb2.EnrolAgentRequest, context: Context
    ) -> certificate_service_pb2.EnrolAgentResponse:
        await self._note(self.enrolments, request)
        self._fail("EnrolAgent")
        return certificate_service_pb2.EnrolAgentResponse(
            certificate=_issued(), name="a1", group="berlin", mac=b"a proof"
        )

    async def RenewAgentCertificate(
        self, request: certificate_service_pb2.RenewAgentCertificateRequest, context: Context
    ) -> certificate_service_pb2.RenewAgentCertificateResponse:
        await self._note(self.renewals, request)
        await self.gate.wait()
        self._fail("RenewAgentCertificate")
        return certificate_service_pb2.RenewAgentCertificateResponse(certificate=_issued())

    async def WatchRevocations(
        self, request: certificate_service_pb2.WatchRevocationsRequest, context: Context
    ) -> AsyncIterator[certificate_service_pb2.WatchRevocationsResponse]:
        self._fail("WatchRevocations")
        watcher: asyncio.Queue[certificate_pb2.Revocation] = asyncio.Queue()
        try:
            yield certificate_service_pb2.WatchRevocationsResponse(revocations=self.revocations, complete=True)
            self._watchers.add(watcher)
            await self._notify()
            while True:
                yield certificate_service_pb2.WatchRevocationsResponse(revocations=[await watcher.get()])
        finally:
            self._watchers.discard(watcher)
            await self._notify()

    def _fail(self, method: str) -> None:
        if self.failures[method]:
            raise self.failures[method].popleft()

    async def _note(self, found: list[Message], message: Message) -> None:
        found.append(message)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _issued() -> certificate_pb2.IssuedCertificate:
    return certificate_pb2.IssuedCertificate(certificate_chain=b"a chain", ca=b"a CA", serial="abc")
