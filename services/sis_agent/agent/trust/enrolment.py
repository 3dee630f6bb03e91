"""How a program becomes an agent by a pairing code, and one again whose certificate has expired.

The code names the CA by its fingerprint, so the server has to prove itself before anything is sent to it; what is sent
and what is answered are bound to the code by an HMAC, so that whoever relays them can put nothing of its own in their
place, nor enrol the agent's keys by a code of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from services.runtime import pairing
from services.runtime.channels import refusals, server_channel
from services.runtime.errors import PermissionDenied, SisError
from services.runtime.pairing import PairingCode
from services.runtime.trust import issued_under
from services.sis_agent.agent.errors import CertificateRefused, EnrolmentFailed, IdentityDamaged, NotEnrolled
from services.sis_agent.agent.trust import certification
from services.sis_agent.agent.trust.certification import Enrolment, Hold
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.agent.v1 import enrolment_service_pb2 as pb
from sis.agent.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub

SERVER_NAME: Final = "hub"
"""What a hub's certificate names, wherever it is reached."""
LOOK_SECONDS: Final = 10.0
"""From the first try to connect to the server's certificates."""
HOLD_SECONDS: Final = 3.0
"""An agent that was refused has its identity in hand for a moment only, while it tries again."""
CALL_SECONDS: Final = 30.0
"""For one call, behind which the credential service asks Vault."""
_READ_BYTES: Final = 1 << 16


async def enrol(directory: Path, endpoint: str, code: PairingCode) -> AgentIdentity:
    """Become the agent that the code was made for, at the hub whose enrolment port is at `endpoint`.

    Takes the place of the identity in `directory`, if there is one. Safe to repeat with the same code, within its
    hour while that was not answered, and for ever after it was.

    Raises:
        EnrolmentFailed: with words for a person.
        OSError: the identity cannot be written.
    """
    hold = Hold(directory)
    await _acquire(hold, directory)
    try:
        with contextlib.suppress(NotEnrolled, IdentityDamaged):
            present = certification.opened(directory)
            if present.pairing_id == code.pairing_id:
                return present
        ca = trusted_ca(await certificates_of(endpoint), code)
        if ca is None:
            raise EnrolmentFailed(
                f"the server at {endpoint} does not belong to the suite that this pairing code was made for; "
                "nothing was sent to it"
            )
        request = Enrolment.begin(directory, code.pairing_id)
        answer = await _enrol(endpoint, ca, code, request.keys)
        if not _proven(answer, code):
            raise EnrolmentFailed(
                f"the hub at {endpoint} is not to be trusted: it does not prove that this pairing code has made this "
                f"program agent {answer.name} of group {answer.group}; nothing was taken from it"
            )
        if not answer.agent_endpoints:
            raise EnrolmentFailed(
                f"the hub at {endpoint} does not say where agents connect: mend its settings, try again"
            )
        try:
            return request.complete(
                answer.certificate,
                ca,
                time.time(),
                name=answer.name,
                group=answer.group,
                enrolment_endpoint=endpoint,
                agent_endpoints=answer.agent_endpoints,
            )
        except CertificateRefused as error:
            raise EnrolmentFailed(f"the hub at {endpoint} is not to be trusted: {error}") from None
    finally:
        hold.release()


async def _acquire(hold: Hold, directory: Path) -> None:
    try:
        async with asyncio.timeout(HOLD_SECONDS):
            while not hold.acquire():  # noqa: ASYNC110  (another process has it)
                await asyncio.sleep(HOLD_SECONDS / 50)
    except TimeoutError:
        raise EnrolmentFailed(f"an agent runs with the identity in {directory}: end it first") from None


async def _enrol(endpoint: str, ca: bytes, code: PairingCode, keys: bytes) -> pb.EnrolResponse:
    request = pb.EnrolRequest(pairing_id=code.pairing_id, keys=keys, mac=pairing.mac(code.key(), keys))
    try:
        async with server_channel(endpoint, ca, server_name=SERVER_NAME) as channel:
            with refusals():
                return await EnrolmentServiceStub(channel).Enrol(request, timeout=CALL_SECONDS)
    except PermissionDenied as error:
        raise EnrolmentFailed(f"the pairing code was refused: {error}") from None
    except SisError as error:
        raise EnrolmentFailed(f"the hub at {endpoint} did not enrol this agent, try again soon: {error}") from None


def _proven(answer: pb.EnrolResponse, code: PairingCode) -> bool:
    """Whether the credential service says this, for the very certificate that came."""
    try:
        leaf = x509.load_pem_x509_certificate(answer.certificate.certificate_chain)
    except ValueError:
        return False
    expected = pairing.enrolled_mac(code.key(), answer.name, answer.group, f"{leaf.serial_number:x}")
    return hmac.compare_digest(expected, answer.mac)


async def rejoin(identity: AgentIdentity) -> pb.RejoinResponse:
    """Ask for a new certificate where only the server proves itself. Safe to retry.

    Raises:
        PermissionDenied: AGENT_REVOKED, AGENT_QUARANTINED or PAIRING_REFUSED; only another enrolment helps.
        SisError: not now.
        IdentityDamaged, OSError: the request cannot be made.
    """
    keys, signature = certification.renewal(identity)
    request = pb.RejoinRequest(agent=identity.name, keys=keys, signature=signature)
    ca = identity.tls.ca.read_bytes()
    async with server_channel(identity.enrolment_endpoint, ca, server_name=SERVER_NAME) as channel:
        with refusals():
            return await EnrolmentServiceStub(channel).Rejoin(request, timeout=CALL_SECONDS)


def trusted_ca(chain: list[x509.Certificate], code: PairingCode) -> bytes | None:
    """The certificate (PEM) of the CA that the code names, if it is in the chain and has issued its first."""
    for each in chain:
        if code.trusts(each.public_bytes(serialization.Encoding.DER)) and issued_under(chain, each):
            return each.public_bytes(serialization.Encoding.PEM)
    return None


async def certificates_of(endpoint: str) -> list[x509.Certificate]:
    """What the server at `host:port` shows, unverified, its own first.

    Raises:
        EnrolmentFailed: it does not answer within 10 s, or not as a server with TLS does.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            reader, writer = await asyncio.open_connection(host.removeprefix("[").removesuffix("]"), int(port))
            try:
                context = SSL.Context(SSL.TLS_CLIENT_METHOD)
                context.set_min_proto_version(SSL.TLS1_2_VERSION)
                context.set_alpn_protos([b"h2"])
                connection = SSL.Connection(context, None)
                connection.set_tlsext_host_name(SERVER_NAME.encode())
                connection.set_connect_state()
                while True:
                    try:
                        connection.do_handshake()
                    except SSL.WantReadError:
                        writer.writelines(_outgoing(connection))
                        if not (received := await reader.read(_READ_BYTES)):
                            raise ConnectionError("the server has closed the connection") from None
                        connection.bio_write(received)
                    else:
                        return list(connection.get_peer_cert_chain(as_cryptography=True) or ())
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise EnrolmentFailed(f"{endpoint} does not answer within {LOOK_SECONDS:.0f} s") from None
    except (SSL.Error, ValueError):
        raise EnrolmentFailed(f"{endpoint} does not speak TLS: give the enrolment port of a hub") from None
    except OSError as error:
        raise EnrolmentFailed(f"{endpoint} does not answer: {error}") from None


def _outgoing(connection: SSL.Connection) -> Iterable[bytes]:
    with contextlib.suppress(SSL.WantReadError):
        while True:
            yield connection.bio_read(_READ_BYTES)
