"""What a process cannot work without, and how it says that it waits for it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from services.runtime.errors import Internal, SisError, Unavailable


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a dependency does not serve: `cause` for a machine, `words` for a person, who reads them after "waits for
    PostgreSQL: ". Neither holds an address or a name: anybody may read them. `stops`: nothing at all is possible."""

    cause: str
    words: str
    stops: bool = True


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something that a process waits for. `name` is its service in gRPC's health protocol."""

    name: str
    title: str
    look: Callable[[], Awaitable[Trouble | None]]
    """None: it serves. It ends by itself, whatever hangs; the next one begins after it."""
    needed: bool = True
    """Whether the process can do nothing without it, and is then not healthy."""
    grace: float = 0.0
    """For so many seconds after its loss the process still counts as healthy."""
    interval: float = 1.0
    """Between two looks, in seconds."""


RESTARTING: Final = "RESTARTING"
POSTGRESQL, VAULT, QUEUE, CREDENTIALS = "postgresql", "vault", "queue", "credentials"


def unavailable(dependency: str, title: str, trouble: Trouble, *, retry_after: float = 1.0) -> Unavailable:
    """The error of a call that could not be answered for it; its metadata have `dependency` and `cause`."""
    return Unavailable(
        f"waiting for {title}: {trouble.words}; try again",
        metadata={"dependency": dependency, "cause": trouble.cause},
        retry_after=retry_after,
    )


class ShuttingDown(Unavailable):
    """The error of a call that would not end by itself, when its server drains."""

    planned = True

    def __init__(self) -> None:
        super().__init__("the server shuts down; call again", metadata={"cause": RESTARTING}, retry_after=0.2)


def of_peer(error: SisError) -> Trouble:
    """The trouble with another of the suite's processes that ended a call so."""
    metadata = error.metadata
    if {"dependency", "cause"} <= metadata.keys():
        # Its own words, which name no address.
        told = error.message.removeprefix("waiting for ").removesuffix("; try again")
        return Trouble(metadata["cause"], f"it waits for {told}")
    if metadata.get("cause") == RESTARTING:
        return Trouble(RESTARTING, "it shuts down")
    if not error.answered:
        return Trouble("UNREACHABLE", "it does not answer")
    if isinstance(error, Internal):
        return Trouble(error.reason, "it fails; see its log")
    return Trouble(error.reason, f"it refuses ({error.reason})")


class Complaints:
    """Logs what keeps a loop from its work: once when it begins, once when it becomes another, once when it is over."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        """`what` begins the line: "the queue takes no reports"."""
        self._log = log
        self._what = what
        self._last: str | None = None

    def note(self, error: SisError) -> None:
        """It has failed by this."""
        # By the cause where there is one: messages may hold numbers that change all the time.
        key = error.metadata.get("cause") or f"{error.reason} {error.message}"
        if key != self._last:
            self._last = key
            fields = {"reason": error.reason, **error.metadata}
            self._log.warning("%s: %s", self._what, error.message, extra={"problem": fields})

    def over(self) -> None:
        """It has succeeded."""
        if self._last is not None:
            self._last = None
            self._log.info("over: %s", self._what)
