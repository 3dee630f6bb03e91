"""What a failure of PostgreSQL means, told by SQLSTATE, or by its words where a connection is refused and has none."""

from __future__ import annotations

from enum import StrEnum, auto
from typing import Final

from services.runtime.dependencies import Trouble


class Cause(StrEnum):
    """Why PostgreSQL does not serve; the machine's word, in `cause` of errors and health."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name

    CONNECTION_REFUSED = auto()
    NO_ANSWER = auto()
    UNKNOWN_HOST = auto()
    STARTING = auto()
    SHUTTING_DOWN = auto()
    CONNECTION_LIMIT = auto()
    READ_ONLY = auto()
    DISK_FULL = auto()
    STORAGE_FAILED = auto()
    OUT_OF_MEMORY = auto()
    LOGIN_REFUSED = auto()
    PERMISSION_DENIED = auto()
    NO_DATABASE = auto()
    SCHEMA_TOO_OLD = auto()
    CONNECTION_LOST = auto()
    BUSY = auto()


WORDS: Final[dict[Cause, str]] = {
    Cause.CONNECTION_REFUSED: "nothing listens at its address",
    Cause.NO_ANSWER: "it does not answer",
    Cause.UNKNOWN_HOST: "its host name cannot be resolved",
    Cause.STARTING: "it starts up, or recovers from a crash",
    Cause.SHUTTING_DOWN: "it shuts down",
    Cause.CONNECTION_LIMIT: "it takes no more connections",
    Cause.READ_ONLY: "it is a standby or read-only, and no primary is known",
    Cause.DISK_FULL: "its disk is full",
    Cause.STORAGE_FAILED: "its storage fails",
    Cause.OUT_OF_MEMORY: "it is out of memory",
    Cause.LOGIN_REFUSED: "it refuses the login of this service: user, password, certificate or pg_hba.conf",
    Cause.PERMISSION_DENIED: "it does not permit this service's user what it needs",
    Cause.NO_DATABASE: "the database that the URL names is not there",
    Cause.SCHEMA_TOO_OLD: "its schema is older than this service; run the service's migrate command",
    Cause.CONNECTION_LOST: "it has ended the connection",
    Cause.BUSY: "all connections of this process to it are in use",
}

PARTIAL: Final = frozenset({Cause.CONNECTION_LIMIT, Cause.DISK_FULL, Cause.STORAGE_FAILED, Cause.OUT_OF_MEMORY})
"""With these some transactions still succeed, so that one that does proves nothing."""

# The most telling first: of several hosts each has failed in its own way.
_TEXTS: Final[tuple[tuple[Cause, tuple[str, ...]], ...]] = (
    (
        Cause.LOGIN_REFUSED,
        (
            "authentication failed",
            "no pg_hba.conf entry",
            "no password supplied",
            "not permitted to log in",
            "no such user",
            "auth failed",
            "certificate verify failed",
        ),
    ),
    (Cause.NO_DATABASE, ("no such database",)),
    (
        Cause.CONNECTION_LIMIT,
        (
            "too many clients",
            "too many connections",
            "connection slots are reserved",
            "no more connections allowed",
            "query_wait_timeout",
        ),
    ),
    (Cause.STARTING, ("starting up", "not yet accepting connections", "recovery mode", "not accepting connections")),
    (Cause.SHUTTING_DOWN, ("shutting down",)),
    (Cause.DISK_FULL, ("no space left on device",)),
    (Cause.READ_ONLY, ("session is read-only", "hot standby mode")),
    (Cause.UNKNOWN_HOST, ("could not translate host name", "failed to resolve", "name or service not known")),
    (
        Cause.NO_ANSWER,
        ("timeout expired", "timed out", "no route to host", "network is unreachable", "server_login_retry"),
    ),
    (Cause.CONNECTION_REFUSED, ("connection refused", "no such file or directory")),
)

_STATES: Final[tuple[tuple[str, Cause], ...]] = (
    ("53300", Cause.CONNECTION_LIMIT),
    ("53100", Cause.DISK_FULL),
    ("53", Cause.OUT_OF_MEMORY),
    ("57P03", Cause.STARTING),
    ("57P", Cause.CONNECTION_LOST),
    ("25P03", Cause.CONNECTION_LOST),
    ("25P04", Cause.CONNECTION_LOST),
    ("25006", Cause.READ_ONLY),
    ("28", Cause.LOGIN_REFUSED),
    ("3D000", Cause.NO_DATABASE),
    ("42501", Cause.PERMISSION_DENIED),
    ("58", Cause.STORAGE_FAILED),
)


def cause_of(state: str, message: str, *, lost: bool) -> Cause | None:
    """By SQLSTATE ("" for none) and message; `lost`: the connection is gone, or was never made. None: it is not
    PostgreSQL's, but a fault of the statement."""
    for prefix, cause in _STATES:
        if state.startswith(prefix):
            return cause
    if state and not state.startswith("08") and not lost:
        return None
    told = message.lower()
    if 'database "' in told and "does not exist" in told:
        return Cause.NO_DATABASE
    if 'role "' in told and "does not exist" in told:
        return Cause.LOGIN_REFUSED
    for cause, texts in _TEXTS:
        if any(each in told for each in texts):
            return cause
    return Cause.CONNECTION_LOST if lost or state else None


def trouble(cause: Cause) -> Trouble:
    """As it is told."""
    return Trouble(cause, WORDS[cause], stops=cause not in PARTIAL)
