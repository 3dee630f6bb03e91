"""What can be wrong with Vault, each with its reason (`sis.errors.v1.Reason`).

    Unavailable
     └─ VaultError            nothing was done, except where it says otherwise
         ├─ VaultSealed       somebody has to unseal it
         ├─ VaultUnreachable  nothing answers at its address; a write may have been done all the same
         ├─ VaultSlow         no answer in time; a write may have been done, or be done yet
         ├─ VaultForbidden    its policy or the login does not let this service in
         ├─ VaultRateLimited  too much at once, in its opinion
         └─ VaultFailed       anything else; a write may have been done all the same
    CasMismatch               the current version is not the one that the write supposes
    ValueMissing              there is nothing at the path, or not in this version

No message holds a value. The last two are answers of a Vault that works, for the operations that asked.
"""

from __future__ import annotations

from typing import ClassVar, Self

from services.runtime.errors import Unavailable


class VaultError(Unavailable):
    """`retry_after` is Vault's own word where it gave one. Seconds."""

    retry_seconds: ClassVar[float] = 5.0
    words: ClassVar[str] = "it fails"
    """What anybody may know of it."""
    unknown: ClassVar[bool] = False
    """Whether a write may have been done all the same."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=self.retry_seconds if retry_after is None else retry_after)

    def amended(self, more: str) -> Self:
        """The same error, which says more."""
        found = type(self).__new__(type(self))
        VaultError.__init__(found, f"{self.message}; {more}", retry_after=self.retry_after)
        return found


class VaultSealed(VaultError):
    reason = "VAULT_SEALED"
    words = "it is sealed; unseal it"

    def __init__(self) -> None:
        super().__init__("Vault is sealed; unseal it, then what waits for it goes on by itself")


class VaultUnreachable(VaultError):
    reason = "VAULT_UNREACHABLE"
    words = "it does not answer"
    retry_seconds = 2.0
    unknown = True

    def __init__(self, address: str, why: str) -> None:
        super().__init__(f"Vault does not answer at {address}: {why}")


class VaultSlow(VaultError):
    reason = "VAULT_SLOW"
    words = "it does not answer in time"
    retry_seconds = 2.0
    unknown = True

    def __init__(self, address: str, seconds: float) -> None:
        super().__init__(f"Vault at {address} has not answered within {seconds:g} s")


class VaultForbidden(VaultError):
    """`what` is what it denies, or why the login is not possible."""

    reason = "VAULT_FORBIDDEN"
    words = "it refuses the login of this service; see its log"
    retry_seconds = 15.0

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}; `sis vault bootstrap` puts policy and login of the credential service right")


class VaultRateLimited(VaultError):
    reason = "VAULT_RATE_LIMITED"
    words = "its rate limit is reached"
    retry_seconds = 1.0

    def __init__(self, retry_after: float | None) -> None:
        super().__init__("Vault has refused for its rate limit; try again later", retry_after=retry_after)


class VaultFailed(VaultError):
    reason = "VAULT_FAILED"
    unknown = True


class CasMismatch(Exception):
    """A write was refused: the path's current version is another."""


class ValueMissing(Exception):
    """What was asked for is not in Vault."""
