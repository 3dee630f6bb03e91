"""Who this agent is: the files of `STATE/identity/`, mode 0700, and what they prove.

    key.pem             the identity key (P-256): for TLS, and to prove that this agent wants a new certificate
    certificate.pem     its certificate, then what leads to the CA
    ca.pem              the CA, pinned when the agent enrolled
    sealing/ID.key      X25519 keys, raw: what secrets are sealed to, by `services.runtime.sealing.key_id`
    identity.json       everything else
    resume              the last resume secret that was persisted

Every file is replaced whole. All but the last become others by way of `certification`, where what is under way lies in
directories beside them.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.runtime.tls import TlsFiles
from services.sis_agent.agent.errors import IdentityDamaged, NotEnrolled
from services.sis_agent.agent.records import checksum
from sis.private_files import write_private

SKEW_SECONDS: Final = 600.0
"""So far a clock may be set back without anything following from it."""

KEY: Final = "key.pem"
CERTIFICATE: Final = "certificate.pem"
CA: Final = "ca.pem"
SEALING: Final = "sealing"
IDENTITY: Final = "identity.json"
RESUME: Final = "resume"
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
            values = json.loads((directory / IDENTITY).read_bytes())
            # One that was written by an older version has none.
            if values.pop("checksum", None) not in (None, checksum(values)):
                raise ValueError("it is not what was written")
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
                "pairing code, then run `sis-agent enrol --hub HOST:PORT --code -` here"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IdentityDamaged(f"{directory / IDENTITY} cannot be read ({error}): enrol again") from None

    def content(self) -> bytes:
        """What `load` reads."""
        values = asdict(self)
        del values["directory"]
        return json.dumps({**values, "checksum": checksum(values)}, indent=2).encode()

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(ca=self.directory / CA, certificate=self.directory / CERTIFICATE, key=self.directory / KEY)

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
        path = self.directory / SEALING / f"{wanted}.key"
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
            return (self.directory / RESUME).read_bytes()
        except FileNotFoundError:
            return b""

    def persist_resume_secret(self, secret: bytes) -> None:
        """Durable when it returns; where it raises OSError, the one before stays."""
        write_private(self.directory / RESUME, secret)

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
