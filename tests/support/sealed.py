"""An agent's identity as its supervisors see it, and leases that are sealed to it, without an enrolment."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.runtime import sealing
from services.runtime.sealing import LeaseBinding
from sis.credentials.v1 import credential_pb2, lease_pb2
from sis.queue.v1 import dispatch_service_pb2 as dispatch

PASSWORD = credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD
SSH_KEY = credential_pb2.CREDENTIAL_KIND_SSH_KEY
TOKEN = credential_pb2.CREDENTIAL_KIND_TOKEN
DOMAIN_ACCOUNT = credential_pb2.CREDENTIAL_KIND_DOMAIN_ACCOUNT


class SealedIdentity:
    """What an agent of this name has in its identity directory to open leases with."""

    def __init__(self, directory: Path, name: str = "agent-a") -> None:
        self.directory = directory
        self.name = name
        key = X25519PrivateKey.generate()
        self._public = key.public_key().public_bytes_raw()
        self.key_id = sealing.key_id(self._public)
        sealing_directory = directory / "sealing"
        sealing_directory.mkdir(mode=0o700, parents=True)
        directory.chmod(0o700)
        self.key_file = sealing_directory / f"{self.key_id}.key"
        self.key_file.touch(0o600)
        self.key_file.write_bytes(key.private_bytes_raw())
        values = {
            "name": name,
            "group": "g",
            "generation": 1,
            "sealing_key_id": self.key_id,
            "enrolment_endpoint": "hub:1",
            "agent_endpoints": ["hub:2"],
            "pairing_id": "p",
            "certified_at": 0.0,
            "not_before": 0.0,
            "not_after": 0.0,
        }
        (directory / "identity.json").write_text(json.dumps(values))

    def lease(
        self,
        assignment: dispatch.Assignment,
        ref: str,
        secret: bytes,
        kind: credential_pb2.CredentialKind.ValueType = PASSWORD,
        *,
        credential: str = "",
        username: str = "",
        domain: str = "",
        passphrase: bytes = b"",
    ) -> lease_pb2.SealedLease:
        """Have the assignment want a credential, and hold the lease of it."""
        name = credential or f"the-{ref}"
        leased = lease_pb2.LeasedSecret(credential=name, version=1, kind=kind, username=username, domain=domain)
        leased.value.secret = secret
        leased.value.passphrase = passphrase
        lease_id = f"lease-{len(assignment.leases) + 1}"
        binding = LeaseBinding(assignment.attempt.job_id, assignment.attempt.number, self.name, lease_id, ref)
        assignment.credentials.add(ref=ref, credential=name)
        assignment.leases.add(
            lease_id=lease_id,
            ref=ref,
            sealing_key_id=self.key_id,
            ciphertext=sealing.seal(leased.SerializeToString(), self._public, binding),
        )
        return assignment.leases[-1]
