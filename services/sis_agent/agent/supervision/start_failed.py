"""Why a payload was not started."""

from __future__ import annotations

from typing import Final

EXEC_FAILED: Final = "EXEC_FAILED"
RUN_AS_REFUSED: Final = "RUN_AS_REFUSED"
LEASE_UNREADABLE: Final = "LEASE_UNREADABLE"
CREDENTIAL_UNSUITABLE: Final = "CREDENTIAL_UNSUITABLE"
PLATFORM_UNSUPPORTED: Final = "PLATFORM_UNSUPPORTED"


class StartFailed(Exception):
    """The payload could not be started, and nothing of it runs. The message says why, for a person; the reason, for a
    machine."""

    def __init__(self, message: str, reason: str = EXEC_FAILED) -> None:
        super().__init__(message)
        self.reason = reason
