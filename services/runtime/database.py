"""PostgreSQL: transactions and notifications; its failures as errors that callers understand.

Fit for PgBouncer in transaction mode: no prepared statements, settings for one transaction only. What needs a
session (LISTEN, migrations) goes to the direct URL.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import sqlalchemy
from psycopg import sql
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from services.runtime.backoff import Backoff
from services.runtime.errors import DeadlineExceeded, SisError, Unavailable

_CONNECT_SECONDS = 5
_POOL_SECONDS = 5.0
_PING_SECONDS = 2.0

# How long a connection that listens may be silent before it is tried.
_LISTEN_TRIAL_SECONDS = 15.0

# A server that vanished without a word is noticed by the kernel: 10 s for what is sent, 25 s for what is
# awaited.
CONNECTION: dict[str, Any] = {
    "connect_timeout": _CONNECT_SECONDS,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}

# A statement ends in time, and a process that is stopped in the middle of a transaction gives its locks back.
_BOUNDS = {"statement_timeout": "10s", "idle_in_transaction_session_timeout": "30s"}
_FOR_THE_SESSION = " ".join(f"-c {name}={value}" for name, value in _BOUNDS.items())
_FOR_THE_TRANSACTION = text("SELECT " + ", ".join(f"set_config('{n}', '{v}', true)" for n, v in _BOUNDS.items()))

_log = logging.getLogger("database")


class Database:
    """A pool of connections to one PostgreSQL database.

    `url` is `postgresql+psycopg://…`; `direct_url` goes past a connection pooler, if `url` goes through one.
    """

    def __init__(self, url: str, *, direct_url: str | None = None, pool_size: int = 4, application_name: str) -> None:
        self._direct_url = direct_url or url
        self._application_name = application_name
        connect_args = {**CONNECTION, "prepare_threshold": None, "application_name": application_name}
        # A pooler hands one session to many clients, and refuses options when it connects; where there is none, the
        # bounds are the session's, which saves a round trip in every transaction.
        self._pooled = direct_url is not None
        if not self._pooled:
            connect_args["options"] = _FOR_THE_SESSION
        self._engine = create_async_engine(
            make_url(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=_POOL_SECONDS,
            hide_parameters=True,
            connect_args=connect_args,
        )
        sqlalchemy.event.listen(self._engine.sync_engine, "checkout", _refuse_dead)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that the end of the block commits and an exception rolls back.

        A statement may take 10 s. A violated constraint is an IntegrityError, for the caller to name.

        Raises:
            Unavailable: PostgreSQL cannot be reached, shuts down or is full, or the transaction lost against
                another one. Whether it was committed is unknown if the commit itself was cut off.
            DeadlineExceeded: a statement took too long.
        """
        try:
            async with self._engine.begin() as connection:
                if self._pooled:
                    await connection.execute(_FOR_THE_TRANSACTION)
                yield connection
        except (DBAPIError, sqlalchemy.exc.TimeoutError) as error:
            converted = converted_error(error)
            if converted is None:
                raise
            raise converted from error

    async def ping(self) -> bool:
        """Whether the database answers within two seconds."""
        try:
            async with asyncio.timeout(_PING_SECONDS), self._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (DBAPIError, sqlalchemy.exc.TimeoutError, TimeoutError):
            return False
        return True

    async def listen(self, channel: str, on_payload: Callable[[str], None], on_connect: Callable[[], None]) -> None:
        """Receive the notifications of `channel`, for ever, on a connection of its own.

        `on_connect` is called whenever the connection has been made, the first time too: what was notified
        before is lost, so look at the tables.
        """
        backoff = Backoff(initial=0.1, maximum=5.0)
        while True:
            try:
                async with await self._connect_directly() as connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    backoff.reset()
                    on_connect()
                    await _receive(connection, on_payload)
            except (psycopg.Error, OSError, TimeoutError) as error:
                delay = backoff.next_delay()
                _log.warning("listening to %s failed, next try in %.1f s: %s", channel, delay, _first_line(error))
                await asyncio.sleep(delay)

    async def _connect_directly(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        conninfo = make_url(self._direct_url).set(drivername="postgresql").render_as_string(hide_password=False)
        return await psycopg.AsyncConnection.connect(
            conninfo,
            autocommit=True,
            prepare_threshold=None,
            application_name=f"{self._application_name} listener",
            **CONNECTION,
        )

    async def dispose(self) -> None:
        """Close the pool."""
        await self._engine.dispose()


async def _receive(connection: psycopg.AsyncConnection[tuple[object, ...]], on_payload: Callable[[str], None]) -> None:
    while True:
        async for notification in connection.notifies(timeout=_LISTEN_TRIAL_SECONDS):
            on_payload(notification.payload)
        async with asyncio.timeout(_CONNECT_SECONDS):
            await connection.execute("SELECT 1")


# PostgreSQL's SQLSTATEs, by class and by code.
_LOST = ("08", "53", "57P01", "57P02", "57P03", "25P03", "25P04", "25006")
_CONFLICTS = ("40001", "40P01", "55P03")
_CANCELED = "57014"


def _refuse_dead(connection: Any, record: object, proxy: object) -> None:
    """Have the pool replace a connection that the server has closed; unlike a ping, this costs no round trip."""
    # Between transactions a server says nothing, unless that it closes the connection.
    poll = select.poll()
    poll.register(connection.driver_connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise sqlalchemy.exc.DisconnectionError


def converted_error(error: DBAPIError | sqlalchemy.exc.TimeoutError) -> SisError | None:
    """What the failure of a transaction means to a caller; None if it is a fault of this program."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return Unavailable("all connections to the database are busy; try again", retry_after=1.0)
    state = getattr(error.orig, "sqlstate", None) or ""
    if state.startswith(_CONFLICTS):
        return Unavailable("the change lost against another one; try again", retry_after=0.1)
    if state == _CANCELED:
        return DeadlineExceeded("the database did not answer in time; try again")
    lost = state.startswith(_LOST) or error.connection_invalidated
    if lost or (not state and isinstance(error.orig, psycopg.OperationalError | psycopg.InterfaceError)):
        _log.warning("the database does not answer: %s", _first_line(error.orig))
        return Unavailable("the database does not answer; try again", retry_after=1.0)
    return None


def _first_line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
