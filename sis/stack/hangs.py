"""Finds servers that hang: that live, and give no answer at all.

An answer is any answer: a server that says NOT_SERVING waits for something, and starting it again would not help. Only
what is silent for a while, in look after look, hangs. What has never answered and does not listen yet waits for
something, too: for its certificate. What may be silent because nobody looked does not count: after a gap in its own
looks (this process stood still, or had no processor) the watch begins anew. While the machine is suspended the clock
stands still.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

from grpc_health.v1 import health_pb2, health_pb2_grpc

from sis.client import ApiError
from sis.client.sync.connection import Connection
from sis.stack.processes import Identity, Kind

KINDS: Final[frozenset[Kind]] = frozenset({"credentials", "queue", "hub", "gateway"})
"""What is watched. PostgreSQL and OpenBao are not: what they were in the middle of is nobody's to throw away. An agent
has no address to be asked at."""

_GAP_SECONDS: Final = 5.0
"""A look that comes so much too late, or takes so much too long, is a gap."""

_REFUSAL_SECONDS: Final = 1.0
"""For a connection to be refused, on this machine."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """In seconds."""

    interval: float = 5.0
    """Between the beginnings of two looks."""
    silence: float = 30.0
    """A server that has answered before hangs when it has not for so long."""
    start: float = 120.0
    """The same of one that listens and has not answered yet."""
    answer: float = 5.0
    """For an answer."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A living server: who it is, and where it answers."""

    name: str
    kind: Kind
    identity: Identity
    endpoint: str


class Answer(Enum):
    """What comes of asking a server."""

    GIVEN = auto()
    NONE = auto()
    REFUSED = auto()
    """None, for nothing listens at its address."""


class HangWatch:
    """Looks at the servers in a thread of its own, and tells of those that hang."""

    def __init__(
        self,
        servers: Callable[[], Sequence[Watched]],
        ask: Callable[[Watched, float], Answer],
        tell: Callable[[Watched, float], None],
        complain: Callable[[str], None],
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`servers` are those that live now; `ask` asks one, for so many seconds at the most; `tell` gets the one that
        hangs, once, and for how many seconds it has been silent; `complain` gets a sentence when looks begin to fail.
        All are called in the watch's threads."""
        self._servers = servers
        self._ask = ask
        self._tell = tell
        self._complain = complain
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._silent_since: dict[Identity, float] = {}
        self._heard: set[Identity] = set()
        self._told: set[Identity] = set()
        self._last: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hangs", daemon=True)

    def start(self) -> None:
        """Begin, when every server that lives has just answered."""
        self._heard.update(server.identity for server in self._servers())
        self._thread.start()

    def stop(self) -> None:
        """Nobody is told of anything after this. A look that is under way comes to its end by itself."""
        self._over.set()

    def _run(self) -> None:
        took, fails = 0.0, False
        while not self._over.wait(max(0.0, self._bounds.interval - took)):
            began = self._clock()
            try:
                self.look()
                fails = False
            except Exception as error:
                # It is a gap. A watch that ended would go unnoticed.
                self._silent_since.clear()
                if not fails and not self._over.is_set():
                    self._complain(f"nobody can tell whether servers hang: {type(error).__name__}: {error}")
                fails = True
            took = self._clock() - began

    def look(self) -> None:
        """Ask every server once, all at the same time."""
        began = self._clock()
        servers = self._servers()
        # One that waits for its turn would be silent for the time of those before it.
        with ThreadPoolExecutor(max_workers=max(1, len(servers)), thread_name_prefix="hangs") as pool:
            answers = list(pool.map(lambda server: self._ask(server, self._bounds.answer), servers))
        ended = self._clock()
        gap = self._last is not None and began - self._last > self._bounds.interval + _GAP_SECONDS
        self._last = ended
        if gap or ended - began > self._bounds.answer + _GAP_SECONDS:
            self._silent_since.clear()
            return
        living = {server.identity for server in servers}
        self._silent_since = {who: since for who, since in self._silent_since.items() if who in living}
        self._heard &= living
        self._told &= living
        for server, answer in zip(servers, answers, strict=True):
            if answer is Answer.GIVEN:
                self._heard.add(server.identity)
                self._silent_since.pop(server.identity, None)
            elif answer is Answer.REFUSED and server.identity not in self._heard:
                self._silent_since.pop(server.identity, None)
            else:
                self._judge(server, ended - self._silent_since.setdefault(server.identity, began))

    def _judge(self, server: Watched, silent: float) -> None:
        allowed = self._bounds.silence if server.identity in self._heard else self._bounds.start
        if silent >= allowed and server.identity not in self._told and not self._over.is_set():
            self._told.add(server.identity)
            self._tell(server, silent)


def asks(token: Path, ca: Path) -> Callable[[Watched, float], Answer]:
    """What asks a server whether it lives: a health check on a new connection; whatever comes back is an answer."""

    def ask(server: Watched, seconds: float) -> Answer:
        if server.kind == "gateway":
            answered = _http_answers(server.endpoint, seconds)
        else:
            answered = _grpc_answers(server.endpoint, token, ca, seconds)
        if answered:
            return Answer.GIVEN
        return Answer.REFUSED if _refuses(server.endpoint) else Answer.NONE

    return ask


def _refuses(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_REFUSAL_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # also of one that listens, and takes no more connections
        return False
    return False


def _grpc_answers(endpoint: str, token: Path, ca: Path, seconds: float) -> bool:
    try:
        known, trusted = token.read_text(encoding="ascii").strip(), ca.read_bytes()
    except OSError:
        return True  # nobody can ask, which is not the server's fault
    connection = Connection(endpoint, known, trusted, seconds)
    try:
        connection.call(health_pb2_grpc.HealthStub(connection.channel).Check, health_pb2.HealthCheckRequest())
    except ApiError as error:
        # A certificate that is not good is an answer as well.
        return not (error.unreachable and error.passing) or "TSI_PROTOCOL_FAILURE" in error.message
    finally:
        connection.close()
    return True


def _http_answers(endpoint: str, seconds: float) -> bool:
    host, _, port = endpoint.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=seconds)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True
