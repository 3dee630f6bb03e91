"""What can be wrong with a request to the credential service, each with its reason (`sis.errors.v1.Reason`).

Those of Vault are in `vault_errors`. No message holds a secret.
"""

from __future__ import annotations

from services.runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    NotFound,
    PermissionDenied,
)


class CredentialNotFound(NotFound):
    reason = "CREDENTIAL_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"name: there is no credential {name!r}, or it was deleted; `sis credentials list` shows the credentials",
            metadata={"name": name},
        )


class CredentialExists(AlreadyExists):
    reason = "CREDENTIAL_EXISTS"

    def __init__(self, name: str) -> None:
        description = f"there is a credential {name!r} already; replace it, or give another name"
        super().__init__(
            f"name: {description}", metadata={"name": name}, violations=[FieldViolation("name", description)]
        )


class CredentialChanged(FailedPrecondition):
    """The credential is not as the request supposes; `condition` is the machine's word for how."""

    reason = "CREDENTIAL_CHANGED"

    def __init__(self, name: str, condition: str, why: str) -> None:
        super().__init__(
            f"credential {name!r} {why}",
            subject=f"credentials/{name}",
            condition=condition,
            metadata={"name": name},
        )


class RequestIdReused(AlreadyExists):
    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id: {request_id!r} was used for another request or another secret; use a new id",
            violations=[FieldViolation("request_id", "was used for another request or another secret; use a new id")],
        )


class PairingRefused(PermissionDenied):
    reason = "PAIRING_REFUSED"

    def __init__(self) -> None:
        super().__init__(
            "the pairing code or the proof is not good for this: make a new code with `sis agents pair` and enrol again"
        )


class AgentRevoked(PermissionDenied):
    reason = "AGENT_REVOKED"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"agent {name!r} was revoked: it has to enrol again with a new pairing code", metadata={"name": name}
        )


class AgentQuarantined(PermissionDenied):
    reason = "AGENT_QUARANTINED"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"two programs have the identity key of agent {name!r}: find the copy, then pair and enrol the agent anew",
            metadata={"name": name},
        )


class AgentNotFound(NotFound):
    reason = "AGENT_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"name: no agent {name!r} has ever enrolled; a pairing code that it had is withdrawn",
            metadata={"name": name},
        )
