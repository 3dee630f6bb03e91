"""A hub that does what a test says: the AgentService over TLS, on a port of its own, and on another one the
EnrolmentService, behind which agents are known and certified as by the credential service."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import duration_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from services.runtime import pairing
from services.runtime.errors import NotFound, PermissionDenied, SisError, to_status
from services.runtime.pairing import PairingCode
from sis.agent.v1 import agent_service_pb2 as pb
from sis.agent.v1 import agent_service_pb2_grpc as rpc
from sis.agent.v1 import enrolment_service_pb2 as enrolment
from sis.agent.v1 import enrolment_service_pb2_grpc as enrolment_rpc
from sis.credentials.v1.certificate_pb2 import AgentKeys, IssuedCertificate
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2
from sis.stack.ports import Reservations
from tests.support.certificates import CertificateAuthority

PATIENCE_SECONDS = 20.0
Key = tuple[int, int]


def key_of(attempt: dispatch.Attempt) -> Key:
    return attempt.job_id, attempt.number


class Log:
    """The log of one attempt as a server would commit it."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.received = 0
        self.digest = bytes(32)
        self.accepted = 0
        self.declined: list[str] = []

    def append(self, frames: list[bytes]) -> None:
        """Commit frames; those that were committed before must be the same. Fails on a gap."""
        for raw in frames:
            self.received += 1
            sequence = frame_pb2.Frame.FromString(raw).sequence
            if sequence <= len(self.frames):
                assert self.frames[sequence - 1] == raw, f"frame {sequence} was cut anew"
                continue
            assert sequence == len(self.frames) + 1, f"frame {sequence} follows {len(self.frames)}"
            if (finished := frame_pb2.Frame.FromString(raw).notice).WhichOneof("fact") == "finished":
                assert finished.finished.digest == self.digest
            self.frames.append(raw)
            self.digest = hashlib.sha256(self.digest + raw).digest()

    @property
    def output(self) -> bytes:
        return b"".join(frame.chunk.data for frame in map(frame_pb2.Frame.FromString, self.frames))

    @property
    def texts(self) -> list[str]:
        return [text for frame in map(frame_pb2.Frame.FromString, self.frames) if (text := frame.notice.text)]

    def fact(self, name: str) -> Any:
        """The last fact of this name, None if there is none."""
        notices = [frame_pb2.Frame.FromString(raw).notice for raw in self.frames]
        found = [getattr(notice, name) for notice in notices if notice.WhichOneof("fact") == name]
        return found[-1] if found else None

    @property
    def finished(self) -> frame_pb2.Finished | None:
        found = self.fact("finished")
        assert found is None or isinstance(found, frame_pb2.Finished)
        return found


class Members:
    """The agents, as the credential service knows them: who may be certified, and with which keys."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self.life = timedelta(days=1)
        """Of the certificates that are issued."""
        self.serials: list[int] = []
        self._authority = authority
        self._codes: dict[str, tuple[PairingCode, str, str]] = {}
        self._used: dict[str, bytes] = {}
        self._members: dict[str, _Member] = {}

    def pair(self, group: str = "local", name: str = "one") -> PairingCode:
        """A code for an agent of this name."""
        ca = x509.load_pem_x509_certificate(self._authority.ca.read_bytes())
        code = PairingCode.mint(ca.public_bytes(serialization.Encoding.DER))
        self._codes[code.pairing_id] = code, group, name
        return code

    def enrol(self, request: enrolment.EnrolRequest) -> enrolment.EnrolResponse:
        """Raises PermissionDenied, unless the code is new, or was used for these very keys."""
        code, group, name = self._codes.get(request.pairing_id, (None, "", ""))
        if code is None or pairing.mac(code.key(), request.keys) != request.mac:
            raise PermissionDenied("no such code", reason="PAIRING_REFUSED")
        if self._used.setdefault(request.pairing_id, request.keys) != request.keys:
            raise PermissionDenied("the code was used", reason="PAIRING_REFUSED")
        self.add(group, name, request.keys)
        issued = self._issue(name)
        proof = pairing.enrolled_mac(code.key(), name, group, issued.serial)
        return enrolment.EnrolResponse(certificate=issued, name=name, group=group, mac=proof)

    def add(self, group: str, name: str, keys: bytes) -> None:
        """Know an agent by the keys with which it has enrolled."""
        self._members[name] = _Member(group, keys)

    def forget(self, name: str) -> None:
        del self._members[name]

    def renew(self, name: str, keys: bytes, signature: bytes) -> IssuedCertificate:
        """Raises PermissionDenied, unless the agent's key has signed keys that are the next ones, or the same."""
        member = self._members.get(name)
        if member is None:
            raise PermissionDenied("no such agent", reason="PAIRING_REFUSED")
        try:
            algorithm = ec.ECDSA(hashes.SHA256())
            member.key.verify(signature, pairing.renewal_message(name, keys), algorithm)
        except InvalidSignature:
            raise PermissionDenied("the signature is wrong", reason="PAIRING_REFUSED") from None
        wanted, known = AgentKeys.FromString(keys), AgentKeys.FromString(member.keys)
        if wanted.generation != known.generation + 1 and keys != member.keys:
            raise PermissionDenied("two programs have the key", reason="AGENT_QUARANTINED")
        self._members[name] = _Member(member.group, keys)
        return self._issue(name)

    def keys(self, name: str = "one") -> AgentKeys:
        """Those that were certified last."""
        return AgentKeys.FromString(self._members[name].keys)

    def _issue(self, name: str) -> IssuedCertificate:
        member = self._members[name]
        csr = AgentKeys.FromString(member.keys).csr
        chain = self._authority.certify(csr, f"spiffe://sis/agent/{member.group}/{name}", life=self.life)
        self.serials.append(x509.load_pem_x509_certificate(chain).serial_number)
        serial = f"{self.serials[-1]:x}"
        return IssuedCertificate(certificate_chain=chain, ca=self._authority.ca.read_bytes(), serial=serial)


@dataclass(frozen=True)
class _Member:
    group: str
    keys: bytes

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        key = x509.load_der_x509_csr(AgentKeys.FromString(self.keys).csr).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key


class Stream:
    """One agent's stream, from its hello on. The test plays the hub."""

    def __init__(self, hub: FakeHub, request: pb.ConnectRequest, serial: int) -> None:
        self.hello = request.hello
        self.resume_secret = request.resume_secret
        self.serial = serial
        """Of the certificate that the agent has shown."""
        self.beats: list[pb.Beat] = []
        self._hub = hub
        self._said: asyncio.Queue[pb.ConnectResponse | SisError | None] = asyncio.Queue()
        self._heard: asyncio.Queue[pb.AgentReport] = asyncio.Queue()
        self._requests: asyncio.Queue[pb.CertificateRequest] = asyncio.Queue()
        self._changed = asyncio.Event()

    @property
    def in_hand(self) -> dict[Key, int]:
        return {key_of(each.attempt): each.acknowledged_sequence for each in self.hello.attempts}

    def welcome(
        self,
        *verdicts: tuple[Key, dispatch.Verdict.ValueType, int],
        limit_bytes: int = 1 << 20,
        beat_seconds: float = 0.2,
        resume_secret: bytes = b"",
    ) -> None:
        """Welcome the agent. An attempt in hand without a verdict here goes on from the end of its log, or is to be
        forgotten if that has been reached."""
        given = {key: (verdict, sequence) for key, verdict, sequence in verdicts}
        for key in self.in_hand:
            log = self._hub.logs[key]
            usual = dispatch.VERDICT_GO_ON if log.finished is None else dispatch.VERDICT_FORGET
            given.setdefault(key, (usual, len(log.frames)))
        interval = duration_pb2.Duration()
        interval.FromMilliseconds(int(beat_seconds * 1000))
        welcome = pb.Welcome(
            epoch=self._hub.next_epoch(),
            beat_interval=interval,
            unacknowledged_limit_bytes=limit_bytes,
            resume_secret=resume_secret,
        )
        for key, (verdict, sequence) in given.items():
            attempt = dispatch.Attempt(job_id=key[0], number=key[1])
            welcome.verdicts.add(attempt=attempt, verdict=verdict, acknowledged_sequence=sequence)
        self._say(pb.ConnectResponse(welcome=welcome))

    def assign(self, *assignments: dispatch.Assignment) -> None:
        self._say(pb.ConnectResponse(assignments=pb.Assignments(assignments=assignments)))

    def stop(self, key: Key, kind: frame_pb2.StopKind.ValueType, reason: str = "a test says so") -> None:
        command = dispatch.StopCommand(attempt=dispatch.Attempt(job_id=key[0], number=key[1]), kind=kind, reason=reason)
        self._say(pb.ConnectResponse(stops=pb.Stops(stops=[command])))

    def acknowledge(self, report: pb.AgentReport) -> None:
        """Commit a report and say so."""
        log = self._hub.logs[key_of(report.attempt)]
        answer = pb.Acknowledgement(attempt=report.attempt)
        match report.WhichOneof("content"):
            case "accepted":
                log.accepted += 1
                answer.accepted = True
            case "declined":
                log.declined.append(report.declined.reason)
            case _:
                log.append(list(report.frames.frames))
                answer.sealed = log.finished is not None
        answer.acknowledged_sequence = len(log.frames)
        self._say(pb.ConnectResponse(acknowledgements=pb.Acknowledgements(acknowledgements=[answer])))

    def refuse(self, report: pb.AgentReport, error: SisError, acknowledged_sequence: int = 0) -> None:
        status = status_pb2.Status()
        status.CopyFrom(to_status(error))
        answer = pb.Acknowledgement(attempt=report.attempt, error=status, acknowledged_sequence=acknowledged_sequence)
        self._say(pb.ConnectResponse(acknowledgements=pb.Acknowledgements(acknowledgements=[answer])))

    async def certificate_request(self) -> pb.CertificateRequest:
        """The next one that was not taken yet."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._requests.get()

    def certificate_requests_waiting(self) -> int:
        return self._requests.qsize()

    def certify(self, request: pb.CertificateRequest, name: str = "one") -> None:
        """Issue the certificate, or say why not."""
        try:
            issued = self._hub.members.renew(name, request.keys, request.signature)
        except SisError as error:
            self.refuse_certificate(error)
        else:
            self._say(pb.ConnectResponse(certificate=pb.CertificateAnswer(certificate=issued)))

    def refuse_certificate(self, error: SisError) -> None:
        status = status_pb2.Status()
        status.CopyFrom(to_status(error))
        self._say(pb.ConnectResponse(certificate=pb.CertificateAnswer(error=status)))

    def end(self, error: SisError | None = None) -> None:
        """End the stream, with an error or without."""
        self._said.put_nowait(error)

    async def report(self) -> pb.AgentReport:
        """The next report that was not taken yet."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._heard.get()

    def reports_waiting(self) -> int:
        return self._heard.qsize()

    async def accept(self, *assignments: dispatch.Assignment) -> None:
        """Assign and commit the acceptances, and what else is reported until then."""
        self.assign(*assignments)
        awaited = Counter(key_of(each.attempt) for each in assignments)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while awaited:
                report = await self.report()
                assert not report.HasField("declined"), report
                if report.HasField("accepted"):
                    awaited -= Counter([key_of(report.attempt)])
                self.acknowledge(report)

    async def commit_until(self, enough: Callable[[], bool]) -> None:
        """Commit everything that is reported until it is enough."""
        while not enough():
            self.acknowledge(await self.report())

    async def commit_all(self, *keys: Key) -> None:
        """Commit everything that is reported until these attempts have ended."""
        await self.commit_until(lambda: all(self._hub.logs[key].finished for key in keys))

    async def beat(self, enough: Callable[[pb.Beat], bool]) -> pb.Beat:
        """The next beat that satisfies the test."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                seen = len(self.beats)
                if self.beats and enough(self.beats[-1]):
                    return self.beats[-1]
                while len(self.beats) == seen:
                    self._changed.clear()
                    await self._changed.wait()

    def _say(self, response: pb.ConnectResponse) -> None:
        self._said.put_nowait(response)

    async def listen(self, requests: AsyncIterator[pb.ConnectRequest]) -> None:
        async for request in requests:
            if request.HasField("beat"):
                self.beats.append(request.beat)
            for report in request.reports.reports:
                self._heard.put_nowait(report)
            if request.HasField("certificate_request"):
                self._requests.put_nowait(request.certificate_request)
            self._changed.set()

    async def talk(self) -> AsyncIterator[pb.ConnectResponse]:
        while isinstance(said := await self._said.get(), pb.ConnectResponse):
            yield said
        if said is not None:
            raise said


class FakeHub(rpc.AgentServiceServicer, enrolment_rpc.EnrolmentServiceServicer):
    """Listens on two loopback ports and hands its streams to the test."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self.logs: defaultdict[Key, Log] = defaultdict(Log)
        self.packages: dict[str, bytes] = {}
        self.fetches: list[tuple[str, int]] = []
        self.on_fetch: Callable[[], Any] = lambda: None
        self.members = Members(authority)
        self.enrolments: list[enrolment.EnrolRequest] = []
        self.rejoins: list[enrolment.RejoinRequest] = []
        self.on_enrolled: Callable[[], Any] = lambda: None
        """Called when the request was granted, before the answer."""
        self.falsify: Callable[[enrolment.EnrolResponse], Any] = lambda _: None
        """What it does to the answer."""
        self.refusals: dict[int, SisError] = {}
        """What an agent hears that shows the certificate with this serial, instead of being let in."""
        self.refused = 0
        self.shown = authority.ca.read_bytes()
        """What the enrolment port shows beside its own certificate."""
        self.port = 0
        self.enrolment_port = 0
        self._tls = authority.service("hub")
        self._epoch = 0
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def enrolment_endpoint(self) -> str:
        return f"127.0.0.1:{self.enrolment_port}"

    def next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    async def start(self) -> None:
        """Serve, on the same ports as before if there were any: no outgoing connection is given them meanwhile."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        rpc.add_AgentServiceServicer_to_server(self, self._server)
        enrolment_rpc.add_EnrolmentServiceServicer_to_server(self, self._server)
        key, certificate, ca = (path.read_bytes() for path in (self._tls.key, self._tls.certificate, self._tls.ca))
        mutual = grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=True)
        one_sided = grpc.ssl_server_credentials([(key, certificate + self.shown)])
        with Reservations() as ports:
            self.port = self.port or ports.take(0)
            self.enrolment_port = self.enrolment_port or ports.take(0)
            self._server.add_secure_port(self.endpoint, mutual)
            self._server.add_secure_port(self.enrolment_endpoint, one_sided)
            await self._server.start()

    async def stop(self) -> None:
        """Cut every stream and listen no longer. Repeatable."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def stream(self) -> Stream:
        """The next stream that an agent opens; its hello has been heard."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._streams.get()

    async def Enrol(
        self, request: enrolment.EnrolRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> enrolment.EnrolResponse:
        self.enrolments.append(request)
        try:
            response = self.members.enrol(request)
            self.on_enrolled()
        except SisError as error:
            await _abort(context, error)
        response.agent_endpoints.append(f":{self.port}")
        self.falsify(response)
        return response

    async def Rejoin(
        self, request: enrolment.RejoinRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> enrolment.RejoinResponse:
        self.rejoins.append(request)
        try:
            issued = self.members.renew(request.agent, request.keys, request.signature)
        except SisError as error:
            await _abort(context, error)
        return enrolment.RejoinResponse(certificate=issued, agent_endpoints=[f":{self.port}"])

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ConnectResponse]:
        shown = x509.load_pem_x509_certificate(next(iter(context.auth_context()["x509_pem_cert"]))).serial_number
        if shown in self.refusals:
            self.refused += 1
            await _abort(context, self.refusals[shown])
        stream = Stream(self, await anext(request_iterator), shown)
        self._streams.put_nowait(stream)
        listening = asyncio.create_task(stream.listen(request_iterator))
        try:
            async for response in stream.talk():
                yield response
        except SisError as error:
            await _abort(context, error)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def FetchPackage(
        self, request: pb.FetchPackageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.FetchPackageResponse]:
        self.fetches.append((request.digest, request.offset))
        await asyncio.sleep(0)
        try:
            self.on_fetch()
        except SisError as error:
            await _abort(context, error)
        archive = self.packages.get(request.digest)
        if archive is None:
            await _abort(context, NotFound("there is no such package", reason="PACKAGE_NOT_FOUND"))
            return
        for offset in range(request.offset, len(archive), 1024):
            chunk = archive[offset : offset + 1024]
            yield pb.FetchPackageResponse(chunk=chunk, size_bytes=len(archive))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SisError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
