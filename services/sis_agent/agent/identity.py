"""Who this agent is: the files of `STATE/identity/`, mode 0700, and what they prove.

    key.pem             the identity key (P-256): for TLS, and to prove that this agent wants a new certificate
    certificate.pem     its certificate, then what leads to the CA
    ca.pem              the CA, pinned when the agent enrolled
    sealing/ID.key      X25519 keys, raw: what secrets are sealed to, by `services.runtime.sealing.key_id`
    identity.json       everything else
    resume              the last resume secret that was persisted
    enrolment/          a request for a new identity, and
    renewal/            one for a new certificate: `keys` once it may be sent, then what was got for it

Every file is replaced whole. What a request has brought lies in its directory, identity.json last, before any of it
takes the place of what was; where that was interrupted, `AgentIdentity.open` goes on with it. So after a crash at any
point the identity is the old one or the new one. One process at a time may change it: whoever holds the `Hold`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from services.runtime.pairing import renewal_message
from services.runtime.sealing import key_id
from services.runtime.settings import TlsFiles
from services.sis_agent.agent.attempts import sync_directory
from services.sis_agent.agent.certificates import own_certificate
from services.sis_agent.agent.errors import CertificateRefused, IdentityDamaged, NotEnrolled
from services.sis_agent.agent.private_files import make_private, write_private
from sis.credentials.v1.certificate_pb2 import AgentKeys, IssuedCertificate

SUPERSEDED_SECONDS: Final = 86_400.0
"""How long a sealing key is kept after another has taken its place: an assignment may still be sealed to it."""
SKEW_SECONDS: Final = 600.0
"""So far a clock may be set back without anything following from it."""

_KEY: Final = "key.pem"
_CERTIFICATE: Final = "certificate.pem"
_CA: Final = "ca.pem"
_SEALING: Final = "sealing"
_IDENTITY: Final = "identity.json"
_RESUME: Final = "resume"
_ENROLMENT: Final = "enrolment"
_RENEWAL: Final = "renewal"
_KEYS: Final = "keys"
_PAIRING: Final = "pairing"
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """What this agent was the moment it was loaded. Times are seconds since 1970."""

    directory: Path
    name: str
    group: str
    generation: int
    """Of the last request that was granted."""
    sealing_key_id: str
    """Of the key to which secrets are sealed from now on."""
    enrolment_endpoint: str
    agent_endpoints: tuple[str, ...]
    """As the hub gave them; see `hub_endpoints`."""
    pairing_id: str
    """Of the code with which it enrolled."""
    certified_at: float
    """When the certificate was taken, by the clock of this site."""
    not_before: float
    not_after: float

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read it. Changes nothing, and may be called while somebody else changes it.

        Raises:
            NotEnrolled: there is none.
            IdentityDamaged: it cannot be read.
        """
        try:
            values = json.loads((directory / _IDENTITY).read_bytes())
            return cls(
                directory=directory,
                name=str(values["name"]),
                group=str(values["group"]),
                generation=int(values["generation"]),
                sealing_key_id=str(values["sealing_key_id"]),
                enrolment_endpoint=str(values["enrolment_endpoint"]),
                agent_endpoints=tuple(map(str, values["agent_endpoints"])),
                pairing_id=str(values["pairing_id"]),
                certified_at=float(values["certified_at"]),
                not_before=float(values["not_before"]),
                not_after=float(values["not_after"]),
            )
        except FileNotFoundError:
            raise NotEnrolled(
                f"there is no identity in {directory}: have `sis agents pair --name NAME --group GROUP` print a "
                "pairing code, then run `sis-agent enrol --hub HOST:PORT --code CODE` here"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IdentityDamaged(f"{directory / _IDENTITY} cannot be read ({error}): enrol again") from None

    @classmethod
    def open(cls, directory: Path) -> Self:
        """`load`, after what an earlier process was interrupted at was finished. For whoever holds the `Hold`."""
        for request in (_ENROLMENT, _RENEWAL):
            _apply(directory, directory / request)
        return cls.load(directory)

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(ca=self.directory / _CA, certificate=self.directory / _CERTIFICATE, key=self.directory / _KEY)

    @property
    def hub_endpoints(self) -> tuple[str, ...]:
        """Where it connects, `host:port` each: where nothing else was said, at the host at which it enrolled."""
        host = self.enrolment_endpoint.rpartition(":")[0]
        return tuple(host + each if each.startswith(":") else each for each in self.agent_endpoints)

    def sealing_key(self, wanted: str) -> X25519PrivateKey | None:
        """The sealing key of this id, None if it is not here (any more).

        Raises:
            IdentityDamaged: it is here and cannot be read.
        """
        if _KEY_ID.fullmatch(wanted) is None:
            return None
        path = self.directory / _SEALING / f"{wanted}.key"
        try:
            return X25519PrivateKey.from_private_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise IdentityDamaged(f"{path} cannot be read: enrol again") from None

    # The resume secret

    @property
    def resume_secret(self) -> bytes:
        """The last one that was persisted; empty before the first."""
        try:
            return (self.directory / _RESUME).read_bytes()
        except FileNotFoundError:
            return b""

    def persist_resume_secret(self, secret: bytes) -> None:
        """Durable when it returns; where it raises OSError, the one before stays."""
        write_private(self.directory / _RESUME, secret)

    # The certificate's life

    @property
    def renew_at(self) -> float:
        """When two thirds of the certificate's life are over, by the clock of this site, which may be wrong."""
        whole = self.not_after - self.not_before  # longer than its life, for certificates are back-dated
        left = self.not_after - self.certified_at  # wrong by as much as the clock
        life = min(whole, left) if left > 0 else whole / 3
        return self.certified_at + life * 2 / 3

    def due(self, now: float) -> bool:
        """Whether the certificate is to be renewed; also where the clock was set back, so that nobody can tell."""
        return not self.certified_at - SKEW_SECONDS <= now < self.renew_at

    def worn(self, now: float) -> bool:
        """Whether a hub may refuse the certificate for its age."""
        return self.due(now) or now >= self.not_after

    def renewal(self) -> tuple[bytes, bytes]:
        """A request for a new certificate, with a new sealing key: the serialised AgentKeys and their signature.

        They are on disk before they are returned, and the same keys every time until there is a certificate for them.
        """
        request = self.directory / _RENEWAL
        key = _load_key(self.directory / _KEY)
        keys = _begun(request)
        if keys is None or keys.generation <= self.generation:
            _clear(request)
            keys = _new_keys(self.directory, key, self.generation + 1)
            write_private(request / _KEYS, _serialised(keys))
        content = _serialised(keys)
        return content, key.sign(renewal_message(self.name, content), ec.ECDSA(hashes.SHA256()))

    def certified(
        self, issued: IssuedCertificate, now: float, *, agent_endpoints: Sequence[str] = (), keep: Collection[str] = ()
    ) -> AgentIdentity:
        """What this agent is with the certificate that was issued for its `renewal`; durable when it returns.

        Sealing keys whose day is over are removed, except those in `keep`.

        Raises:
            CertificateRefused, OSError: it is not taken. Ask again, with the same `renewal`.
        """
        request = self.directory / _RENEWAL
        keys = _begun(request)
        if keys is None:
            raise CertificateRefused("a certificate came that was not asked for")
        key = _load_key(self.directory / _KEY)
        ca = (self.directory / _CA).read_bytes()
        leaf = own_certificate(issued.certificate_chain, ca, key, name=self.name, group=self.group)
        endpoints = tuple(agent_endpoints) or self.agent_endpoints
        new = replace(self, agent_endpoints=endpoints)._with(keys, leaf, now)
        write_private(request / _CERTIFICATE, issued.certificate_chain)
        write_private(request / _IDENTITY, new._content())
        _apply(self.directory, request)
        new._prune(now, keep)
        return new

    def _with(self, keys: AgentKeys, leaf: x509.Certificate, now: float) -> AgentIdentity:
        return replace(
            self,
            generation=keys.generation,
            sealing_key_id=key_id(keys.sealing_key),
            certified_at=now,
            not_before=leaf.not_valid_before_utc.timestamp(),
            not_after=leaf.not_valid_after_utc.timestamp(),
        )

    def _content(self) -> bytes:
        values = asdict(self)
        del values["directory"]
        return json.dumps(values, indent=2).encode()

    def _prune(self, now: float, keep: Collection[str]) -> None:
        for path in (self.directory / _SEALING).glob("*.key"):
            if path.stem == self.sealing_key_id or path.stem in keep:
                continue
            with contextlib.suppress(OSError):  # the next certificate brings the next look
                if path.stat().st_mtime + SUPERSEDED_SECONDS < now:
                    path.unlink()


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
        if keys is None or not _is(request / _PAIRING, pairing_id) or not (request / _KEY).exists():
            _clear(request)
            key = ec.generate_private_key(ec.SECP256R1())
            keys = _new_keys(directory, key, 1)
            write_private(request / _KEY, _pem(key))
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
        key = _load_key(request / _KEY)
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
        new = fresh._with(keys, leaf, now)
        write_private(request / _CA, ca)
        write_private(request / _CERTIFICATE, issued.certificate_chain)
        write_private(request / _IDENTITY, new._content())
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


def _new_keys(directory: Path, key: ec.EllipticCurvePrivateKey, generation: int) -> AgentKeys:
    """Keys to be certified; the sealing key is on disk when it returns."""
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    sealing = X25519PrivateKey.generate()
    public = sealing.public_key().public_bytes_raw()
    write_private(directory / _SEALING / f"{key_id(public)}.key", sealing.private_bytes_raw())
    return AgentKeys(csr=csr.public_bytes(serialization.Encoding.DER), sealing_key=public, generation=generation)


def _begun(request: Path) -> AgentKeys | None:
    """The keys of a request that is complete, and so may have been sent."""
    try:
        return AgentKeys.FromString((request / _KEYS).read_bytes())
    except (FileNotFoundError, DecodeError):
        return None


def _apply(directory: Path, request: Path) -> None:
    """Put what a request has brought in the place of what was, if it has brought all. Repeatable after a crash."""
    if not (request / _IDENTITY).exists():
        return
    if request.name == _ENROLMENT:
        (directory / _RESUME).unlink(missing_ok=True)
        shutil.rmtree(directory / _RENEWAL, ignore_errors=True)
    with contextlib.suppress(NotEnrolled, IdentityDamaged, FileNotFoundError):
        former = AgentIdentity.load(directory)
        superseded_at = AgentIdentity.load(request).certified_at
        os.utime(directory / _SEALING / f"{former.sealing_key_id}.key", (superseded_at, superseded_at))
    for name in (_CA, _KEY, _CERTIFICATE):
        if (request / name).exists():
            (request / name).replace(directory / name)
    sync_directory(directory)
    (request / _IDENTITY).replace(directory / _IDENTITY)
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
    except (OSError, ValueError, TypeError):
        raise IdentityDamaged(f"{path} cannot be read: enrol again") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityDamaged(f"{path} is not a P-256 key: enrol again")
    return key
