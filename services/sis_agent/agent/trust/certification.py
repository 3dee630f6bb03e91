"""How an identity is got and renewed: requests on disk, which outlive the process that made them.

Beside the files of the identity lie

    enrolment/          a request for a new identity, and
    renewal/            one for a new certificate: `keys` once it may be sent, then what was got for it

What a request has brought lies in its directory, identity.json last, before any of it takes the place of what was;
where that was interrupted, `opened` goes on with it. So after a crash at any point the identity is the old one or the
new one. One process at a time may change it: whoever holds the `Hold`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from services.runtime.pairing import renewal_message
from services.runtime.sealing import key_id
from services.sis_agent.agent.errors import CertificateRefused, IdentityDamaged, NotEnrolled
from services.sis_agent.agent.trust.certificates import own_certificate
from services.sis_agent.agent.trust.identity import CA, CERTIFICATE, IDENTITY, KEY, RESUME, SEALING, AgentIdentity
from sis.credentials.v1.certificate_pb2 import AgentKeys, IssuedCertificate
from sis.private_files import make_private, sync_directory, write_private

SUPERSEDED_SECONDS: Final = 86_400.0
"""How long a sealing key is kept after another has taken its place: an assignment may still be sealed to it."""

_ENROLMENT: Final = "enrolment"
_RENEWAL: Final = "renewal"
_KEYS: Final = "keys"
_PAIRING: Final = "pairing"


def opened(directory: Path) -> AgentIdentity:
    """The identity, after what an earlier process was interrupted at was finished. For whoever holds the `Hold`.

    Raises:
        NotEnrolled: there is none.
        IdentityDamaged: it cannot be read, or its files do not belong together.
    """
    for request in (_ENROLMENT, _RENEWAL):
        _apply(directory, directory / request)
    identity = AgentIdentity.load(directory)
    _verify(identity)
    return identity


def _verify(identity: AgentIdentity) -> None:
    """Have damage found here: gRPC would only say, again and again, that it cannot connect."""
    directory = identity.directory
    key = _load_key(directory / KEY)
    try:
        chain, ca = (directory / CERTIFICATE).read_bytes(), (directory / CA).read_bytes()
        own_certificate(chain, ca, key, name=identity.name, group=identity.group)
    except OSError as error:
        raise IdentityDamaged(f"{error.filename} cannot be read: enrol again") from None
    except CertificateRefused as error:
        files = f"{directory / CERTIFICATE}, {CA} or {KEY}"
        raise IdentityDamaged(f"{files} is damaged ({error}): enrol again") from None


def renewal(identity: AgentIdentity) -> tuple[bytes, bytes]:
    """A request for a new certificate, with a new sealing key: the serialised AgentKeys and their signature.

    They are on disk before they are returned, and the same keys every time until there is a certificate for them.

    Raises:
        IdentityDamaged, OSError: the request cannot be made.
    """
    request = identity.directory / _RENEWAL
    key = _load_key(identity.tls.key)
    keys = _begun(request)
    if keys is None or keys.generation <= identity.generation:
        _clear(request)
        keys = _new_keys(identity.directory, key, identity.generation + 1)
        write_private(request / _KEYS, _serialised(keys))
    content = _serialised(keys)
    return content, key.sign(renewal_message(identity.name, content), ec.ECDSA(hashes.SHA256()))


def renewed(
    identity: AgentIdentity,
    issued: IssuedCertificate,
    now: float,
    *,
    agent_endpoints: Sequence[str] = (),
    keep: Collection[str] = (),
) -> AgentIdentity:
    """What the agent is with the certificate that was issued for its `renewal`; durable when it returns.

    Sealing keys whose day is over are removed, except those in `keep`.

    Raises:
        CertificateRefused, OSError: it is not taken. Ask again, with the same `renewal`.
    """
    request = identity.directory / _RENEWAL
    keys = _begun(request)
    if keys is None:
        raise CertificateRefused("a certificate came that was not asked for")
    key, ca = _load_key(identity.tls.key), identity.tls.ca.read_bytes()
    leaf = own_certificate(issued.certificate_chain, ca, key, name=identity.name, group=identity.group)
    moved = replace(identity, agent_endpoints=tuple(agent_endpoints) or identity.agent_endpoints)
    new = _certified(moved, keys, leaf, now)
    write_private(request / CERTIFICATE, issued.certificate_chain)
    write_private(request / IDENTITY, new.content())
    _apply(identity.directory, request)
    _prune(new, now, keep)
    return new


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The request of a program that wants to become an agent: on disk before it is sent, and sent again as it was."""

    keys: bytes
    """A serialised AgentKeys."""
    pairing_id: str
    _directory: Path

    @classmethod
    def begin(cls, directory: Path, pairing_id: str) -> Self:
        """Take up the request that was begun with this code, else make one in the place of any other. What is in the
        directory stays what it is until `complete`."""
        request = directory / _ENROLMENT
        keys = _begun(request)
        if keys is None or not _is(request / _PAIRING, pairing_id) or not (request / KEY).exists():
            _clear(request)
            key = ec.generate_private_key(ec.SECP256R1())
            keys = _new_keys(directory, key, 1)
            write_private(request / KEY, _pem(key))
            write_private(request / _PAIRING, pairing_id.encode())
            write_private(request / _KEYS, _serialised(keys))
        return cls(_serialised(keys), pairing_id, directory)

    def complete(
        self,
        issued: IssuedCertificate,
        ca: bytes,
        now: float,
        *,
        name: str,
        group: str,
        enrolment_endpoint: str,
        agent_endpoints: Sequence[str],
    ) -> AgentIdentity:
        """Become the agent that was certified, under the CA (PEM), in the place of whatever was here; durable when it
        returns.

        Raises:
            CertificateRefused, OSError: it is not taken. Enrol again, with the same code.
        """
        request = self._directory / _ENROLMENT
        keys = AgentKeys.FromString(self.keys)
        key = _load_key(request / KEY)
        leaf = own_certificate(issued.certificate_chain, ca, key, name=name, group=group)
        fresh = AgentIdentity(
            directory=self._directory,
            name=name,
            group=group,
            generation=keys.generation,
            sealing_key_id="",
            enrolment_endpoint=enrolment_endpoint,
            agent_endpoints=tuple(agent_endpoints),
            pairing_id=self.pairing_id,
            certified_at=now,
            not_before=0.0,
            not_after=0.0,
        )
        new = _certified(fresh, keys, leaf, now)
        write_private(request / CA, ca)
        write_private(request / CERTIFICATE, issued.certificate_chain)
        write_private(request / IDENTITY, new.content())
        _apply(self._directory, request)
        return new


class Hold:
    """The right to change the identity in a directory: an agent's, except while its identity is refused, and that of
    an enrolment. It ends with its process."""

    def __init__(self, directory: Path) -> None:
        self._path = directory.with_name(f"{directory.name}.lock")
        self._descriptor = -1

    def acquire(self) -> bool:
        """Whether it is held now. Repeatable."""
        if self._descriptor == -1:
            make_private(self._path.parent)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Repeatable."""
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1


def _certified(identity: AgentIdentity, keys: AgentKeys, leaf: x509.Certificate, now: float) -> AgentIdentity:
    return replace(
        identity,
        generation=keys.generation,
        sealing_key_id=key_id(keys.sealing_key),
        certified_at=now,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def _prune(identity: AgentIdentity, now: float, keep: Collection[str]) -> None:
    kept = {identity.sealing_key_id, *keep}
    # An enrolment that was begun may be repeated at any time, as it was.
    if (begun := _begun(identity.directory / _ENROLMENT)) is not None:
        kept.add(key_id(begun.sealing_key))
    for path in (identity.directory / SEALING).glob("*.key"):
        if path.stem in kept:
            continue
        with contextlib.suppress(OSError):  # the next certificate brings the next look
            if path.stat().st_mtime + SUPERSEDED_SECONDS < now:
                path.unlink()


def _new_keys(directory: Path, key: ec.EllipticCurvePrivateKey, generation: int) -> AgentKeys:
    """Keys to be certified; the sealing key is on disk when it returns."""
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    sealing = X25519PrivateKey.generate()
    public = sealing.public_key().public_bytes_raw()
    write_private(directory / SEALING / f"{key_id(public)}.key", sealing.private_bytes_raw())
    return AgentKeys(csr=csr.public_bytes(serialization.Encoding.DER), sealing_key=public, generation=generation)


def _begun(request: Path) -> AgentKeys | None:
    """The keys of a request that is complete, and so may have been sent."""
    try:
        return AgentKeys.FromString((request / _KEYS).read_bytes())
    except (FileNotFoundError, DecodeError):
        return None


def _apply(directory: Path, request: Path) -> None:
    """Put what a request has brought in the place of what was, if it has brought all. Repeatable after a crash."""
    if not (request / IDENTITY).exists():
        return
    if request.name == _ENROLMENT:
        (directory / RESUME).unlink(missing_ok=True)
        shutil.rmtree(directory / _RENEWAL, ignore_errors=True)
    with contextlib.suppress(NotEnrolled, IdentityDamaged, FileNotFoundError):
        former = AgentIdentity.load(directory)
        superseded_at = AgentIdentity.load(request).certified_at
        os.utime(directory / SEALING / f"{former.sealing_key_id}.key", (superseded_at, superseded_at))
    for name in (CA, KEY, CERTIFICATE):
        if (request / name).exists():
            (request / name).replace(directory / name)
    sync_directory(directory)
    (request / IDENTITY).replace(directory / IDENTITY)
    sync_directory(directory)
    shutil.rmtree(request, ignore_errors=True)


def _clear(request: Path) -> None:
    if request.exists():
        # Without `keys`, whatever is left is not taken for a request.
        (request / _KEYS).unlink(missing_ok=True)
        shutil.rmtree(request)


def _is(path: Path, content: str) -> bool:
    try:
        return path.read_bytes() == content.encode()
    except FileNotFoundError:
        return False


def _serialised(keys: AgentKeys) -> bytes:
    return keys.SerializeToString(deterministic=True)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityDamaged(f"{path} cannot be read: enrol again") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityDamaged(f"{path} is not a P-256 key: enrol again")
    return key
