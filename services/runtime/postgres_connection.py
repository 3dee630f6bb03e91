"""Connections to PostgreSQL that end when nothing answers, and whose commits nobody cancels half-way."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen

from services.runtime import postgres_url

CONNECT_SECONDS: Final = 5
ANSWER_SECONDS: Final = 20.0
"""Longer than the server lets a statement take: who has not answered by then is gone, whatever its kernel says."""

# A server that vanished without a word is noticed by the kernel: 10 s for what is sent, 25 s for what is
# awaited.
CONNECTION: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # Whatever the server or the environment would choose.
    "client_encoding": "utf8",
}

T = TypeVar("T")


def parameters(url: str, application_name: str) -> dict[str, Any]:
    """What a connection is made with; the URL has the last word. Raises ValueError for something that is no URL."""
    return {**CONNECTION, "application_name": application_name, **postgres_url.parameters(url)}


class Connection(psycopg.AsyncConnection[Any]):
    """A connection of the pool.

    A commit that waits (for a synchronous standby, for a disk) is never cancelled at the server: PostgreSQL would end
    the wait, keep what only the primary has, and show it to everybody. Whoever stops waiting closes the connection;
    whether it was committed is unknown then, and nobody sees it before it is safe.
    """

    _commits = False

    async def commit(self) -> None:
        """As psycopg's."""
        self._commits = True
        try:
            await super().commit()
        finally:
            self._commits = False

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's. Raises OperationalError when the server has not answered within ANSWER_SECONDS."""
        try:
            if not self._commits:
                return await super().wait(gen, interval, timeout or ANSWER_SECONDS)
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=ANSWER_SECONDS)
        except psycopg.errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"timeout expired: no answer within {ANSWER_SECONDS:.0f} s") from None
        except BaseException:
            if self._commits:
                self.pgconn.finish()
            raise
