"""PostgreSQL: transactions and notifications; its failures as errors that callers understand.

Fit for PgBouncer in transaction mode: no prepared statements, settings for one transaction only. What needs a
session (LISTEN, migrations) goes to the direct URL.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import psycopg
import sqlalchemy
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from services.runtime import dependencies, faults, metrics
from services.runtime.backoff import Backoff
from services.runtime.dependencies import POSTGRESQL, Dependency, Trouble
from services.runtime.errors import DeadlineExceeded, SisError, Unavailable
from services.runtime.postgres_connection import CONNECT_SECONDS, Connection, parameters
from services.runtime.postgres_failures import PARTIAL, Cause, cause_of, trouble
from services.runtime.schema import Revision
from services.runtime.tracing import Attribute

TITLE: Final = "PostgreSQL"
_POOL_SECONDS = 5.0
_LOOK_SECONDS = 2.0

# How long a connection that listens may be silent before it is tried.
_LISTEN_TRIAL_SECONDS = 15.0

# For so long a failure that need not befall every transaction counts as lasting: that a look at PostgreSQL succeeds
# proves nothing.
_PARTIAL_SECONDS = 10.0
_LASTING: Final = PARTIAL | {Cause.PERMISSION_DENIED}

# They tell less than why no connection can be made, or why those that there are do not end, and come between.
_COME_BETWEEN: Final = frozenset({Cause.CONNECTION_LOST, Cause.BUSY})

# A statement ends in time, and a process that is stopped in the middle of a transaction gives its locks back. Times
# come in UTC: two of another zone would be compared by its clocks, which are set twice a year.
_BOUNDS = {"statement_timeout": "10s", "idle_in_transaction_session_timeout": "30s", "timezone": "UTC"}
_FOR_THE_SESSION = " ".join(f"-c {name}={value}" for name, value in _BOUNDS.items())
_FOR_THE_TRANSACTION = text("SELECT " + ", ".join(f"set_config('{n}', '{v}', true)" for n, v in _BOUNDS.items()))
_CONNECTED = text("""
    SELECT DISTINCT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'sis-%' AND application_name NOT LIKE '% recovery'
    ORDER BY application_name LIMIT 10
""")
_TAKES_NO_WRITES = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'"

_AFTER_COMMIT: Final = "sis.after_commit"

_log = logging.getLogger("database")


class Database:
    """A pool of connections to one PostgreSQL database.

    `url` is as `postgres_url` takes it; `direct_url` goes past a connection pooler, if `url` goes through one.
    """

    def __init__(
        self,
        url: str,
        *,
        direct_url: str | None = None,
        pool_size: int = 4,
        application_name: str,
        revision: Revision | None = None,
    ) -> None:
        """`revision` is what the schema of this process must have been migrated to at the least."""
        self._direct_url = direct_url or url
        self._application_name = application_name
        self._revision = revision
        self._failed: Cause | None = None
        """Why the last transaction that failed for PostgreSQL's sake did, until one tells that it serves again."""
        self._failed_at = 0.0
        self._current_since: float | None = None
        """When the schema was first seen to be at the revision."""
        connect_args = {
            **parameters(url, application_name),
            "prepare_threshold": None,
            "async_creator_fn": Connection.connect,
        }
        # A pooler hands one session to many clients, and refuses options when it connects; where there is none, the
        # bounds are the session's, which saves a round trip in every transaction.
        self._pooled = direct_url is not None
        if not self._pooled:
            connect_args["options"] = f"{connect_args.get('options', '')} {_FOR_THE_SESSION}".strip()
        self._engine = create_async_engine(
            "postgresql+psycopg://",
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=_POOL_SECONDS,
            hide_parameters=True,
            connect_args=connect_args,
        )
        sqlalchemy.event.listen(self._engine.sync_engine, "checkout", _refuse_dead)
        sqlalchemy.event.listen(self._engine.sync_engine, "handle_error", _leave_read_only)

    @property
    def dependency(self) -> Dependency:
        """PostgreSQL, for the health of the process."""
        return Dependency(POSTGRESQL, TITLE, self.trouble)

    @asynccontextmanager
    async def begin(self, point: str = "") -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that the end of the block commits and an exception rolls back.

        A statement may take 10 s. A violated constraint is an IntegrityError, for the caller to name. `point` is what
        `faults` calls the commit.

        Raises:
            Unavailable: PostgreSQL cannot be reached, shuts down or is full, and the metadata have the cause
                (`postgres_failures`); or the transaction lost against another one. Whether it was committed is unknown
                if the commit itself was cut off.
            DeadlineExceeded: a statement took too long.
        """
        began = time.monotonic()
        acts: list[Callable[[], object]] = []
        failed = metrics.NONE
        try:
            async with self._engine.begin() as connection:
                connection.info[_AFTER_COMMIT] = acts
                if self._pooled:
                    await connection.execute(_FOR_THE_TRANSACTION)
                yield connection
                if point:
                    faults.point(f"{point}.committing")
            if point:
                faults.point(f"{point}.committed")
        except (DBAPIError, psycopg.Error, sqlalchemy.exc.TimeoutError) as error:
            converted = converted_error(error)
            if converted is None and await self._was_outdated(began, error):
                converted = _unavailable(Cause.SCHEMA_TOO_OLD)
            if converted is None:
                if isinstance(error, psycopg.Error):  # of a COPY, which SQLAlchemy does not know
                    raise DBAPIError("COPY", None, error, hide_parameters=True) from error
                raise
            self._note(converted, error)
            failed = metrics.failure(converted.metadata.get("cause", converted.reason))
            raise converted from error
        finally:
            metrics.TRANSACTION.record(time.monotonic() - began, {Attribute.TRANSACTION: point or "other", **failed})
        for act in acts:
            try:
                act()
            except Exception:
                # It is committed, and whoever waits must hear so.
                _log.exception("what was to be done after a commit has failed")

    async def connected(self) -> list[str]:
        """Which servers of the suite are connected to the database, by their application names; ten at the most."""
        async with self.begin() as connection:
            return list((await connection.execute(_CONNECTED)).scalars())

    async def trouble(self) -> Trouble | None:
        """Why no transaction can be made now, or not every one; None if all is well.

        It takes as long as to connect does, five seconds for each host of the URL; then two seconds, and as long again
        as an answer to a cancelled statement takes. Raises what is a fault of this program.
        """
        began = time.monotonic()
        clock = asyncio.get_running_loop().time
        pool: Any = self._engine.pool
        full = pool.checkedout() >= pool.size()
        connected = False
        try:
            # To connect is not cut short: the next look would begin with the first host again, which may have vanished.
            async with asyncio.timeout(_LOOK_SECONDS if full else None) as patience, self.begin() as connection:
                connected = True
                patience.reschedule(clock() + _LOOK_SECONDS)
                if (await connection.execute(text(_TAKES_NO_WRITES))).scalar():
                    # It was demoted, or the next look would be at the same server again.
                    await connection.invalidate()
                    raise psycopg.errors.ReadOnlySqlTransaction("session is read-only")
                outdated = self._revision is not None and not await _is_at(connection, self._revision)
                if outdated:
                    self._current_since = None
                elif self._current_since is None:
                    self._current_since = time.monotonic()
        except TimeoutError:
            return trouble(Cause.NO_ANSWER) if connected else self._busy()
        except SisError as error:
            cause = Cause(error.metadata.get("cause", Cause.NO_ANSWER))
            return self._busy() if cause is Cause.BUSY else trouble(cause)
        except DBAPIError as error:
            if _misses(error):
                return trouble(Cause.SCHEMA_TOO_OLD)
            if _state(error).startswith(_DAMAGED):
                return trouble(Cause.STORAGE_FAILED)
            raise
        if outdated:
            return trouble(Cause.SCHEMA_TOO_OLD)
        if self._failed is None:
            return None
        if self._failed in _LASTING and began - self._failed_at < _PARTIAL_SECONDS:
            return replace(trouble(self._failed), stops=False)
        if self._failed_at < began:
            _log.info("PostgreSQL serves again")
            self._failed = None
        return None

    def _busy(self) -> Trouble:
        """The trouble while all connections are in use: what they wait for, where it is known."""
        if self._failed is None:
            return trouble(Cause.BUSY)
        return replace(trouble(self._failed), stops=self._failed not in _LASTING)

    def _note(self, converted: SisError, error: BaseException) -> None:
        """Log what is wrong with PostgreSQL when it begins and when it becomes another thing."""
        if "cause" in converted.metadata:
            cause = Cause(converted.metadata["cause"])
            if cause is not self._failed and not (cause in _COME_BETWEEN and self._failed is not None):
                _log.warning(
                    "%s",
                    converted.message,
                    extra={"cause": str(cause), "told": _first_line(getattr(error, "orig", None) or error)},
                )
                self._failed = cause
            self._failed_at = time.monotonic()

    async def _was_outdated(self, began: float, error: BaseException) -> bool:
        """Whether a statement that PostgreSQL did not understand was meant for a newer schema than there was when its
        transaction began."""
        if self._revision is None or not _misses(error):
            return False
        try:
            async with self._engine.begin() as connection:
                current = await _is_at(connection, self._revision)
        except (DBAPIError, sqlalchemy.exc.TimeoutError) as another:
            return _misses(another) or converted_error(another) is not None
        if current and self._current_since is None:
            self._current_since = time.monotonic()
        return not current or self._current_since is None or began < self._current_since

    async def listen(self, channel: str, on_payload: Callable[[str], None], on_connect: Callable[[], None]) -> None:
        """Receive the notifications of `channel`, for ever, on a connection of its own.

        `on_connect` is called whenever the connection has been made, the first time too: what was notified
        before is lost, so look at the tables.
        """
        backoff = Backoff(initial=0.1, maximum=5.0)
        complaints = dependencies.Complaints(_log, f"nothing is heard of {channel}, which is looked at now and then")
        while True:
            try:
                async with await self._connect_directly() as connection:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    backoff.reset()
                    complaints.over()
                    on_connect()
                    await _receive(connection, on_payload)
            except (psycopg.Error, OSError, TimeoutError) as error:
                found = converted_error(error) if isinstance(error, psycopg.Error) else None
                complaints.note(found or Unavailable(_first_line(error)))
                await asyncio.sleep(backoff.next_delay())

    async def _connect_directly(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        return await psycopg.AsyncConnection.connect(
            autocommit=True,
            prepare_threshold=None,
            **parameters(self._direct_url, f"{self._application_name} listener"),
        )

    async def dispose(self) -> None:
        """Close the pool."""
        await self._engine.dispose()


def after_commit(connection: AsyncConnection, act: Callable[[], object]) -> None:
    """Have something done once the transaction of `Database.begin` is committed, and only then. What it raises is
    logged."""
    connection.info[_AFTER_COMMIT].append(act)


async def _receive(connection: psycopg.AsyncConnection[tuple[object, ...]], on_payload: Callable[[str], None]) -> None:
    while True:
        async for notification in connection.notifies(timeout=_LISTEN_TRIAL_SECONDS):
            on_payload(notification.payload)
        async with asyncio.timeout(CONNECT_SECONDS):
            answer = await (await connection.execute(_TAKES_NO_WRITES)).fetchone()
        if answer is None or answer[0]:
            # It was demoted: what is new is told elsewhere.
            raise psycopg.errors.ReadOnlySqlTransaction("session is read-only")


def _refuse_dead(connection: Any, record: object, proxy: object) -> None:
    """Have the pool replace a connection that the server has closed; unlike a ping, this costs no round trip."""
    # Between transactions a server says nothing, unless that it closes the connection.
    poll = select.poll()
    poll.register(connection.driver_connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise sqlalchemy.exc.DisconnectionError


def _leave_read_only(context: Any) -> None:
    """Have the pool give up all connections to a server that has become a standby."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


_CONFLICTS: Final = ("40001", "40P01", "55P03")
_CANCELED: Final = "57014"
# Exceptions of data, violated constraints, limits that a value exceeds; none where the driver refuses a value itself.
_OF_DATA: Final = ("22", "23", "54", "")
_READ_ONLY: Final = "25006"
# An undefined table, column, function or schema.
_MISSING: Final = ("42P01", "42703", "42883", "3F000")
# Damaged data, a damaged index, or something else that PostgreSQL finds impossible.
_DAMAGED: Final = "XX"


def converted_error(error: DBAPIError | psycopg.Error | sqlalchemy.exc.TimeoutError) -> SisError | None:
    """What the failure of a transaction means to a caller; None if it is a fault of this program."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return _unavailable(Cause.BUSY)
    original = error.orig if isinstance(error, DBAPIError) else error
    state = _state(error)
    if state.startswith(_CONFLICTS):
        return Unavailable("the change lost against another one; try again", retry_after=0.1)
    if state == _CANCELED:
        return DeadlineExceeded("the database did not answer in time; try again")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    lost = lost or (not state and isinstance(original, psycopg.OperationalError | psycopg.InterfaceError))
    cause = cause_of(state, str(original), lost=lost)
    return None if cause is None else _unavailable(cause)


def is_of_data(error: DBAPIError) -> bool:
    """Whether it is what was to be stored that PostgreSQL, or its driver, refused; not that it could not store it."""
    return _state(error)[:2] in _OF_DATA


def _unavailable(cause: Cause) -> Unavailable:
    return dependencies.unavailable(POSTGRESQL, TITLE, trouble(cause))


def _misses(error: BaseException) -> bool:
    return _state(error) in _MISSING


def _state(error: BaseException) -> str:
    """The SQLSTATE; "" for none."""
    return getattr(getattr(error, "orig", None) or error, "sqlstate", None) or ""


async def _is_at(connection: AsyncConnection, revision: Revision) -> bool:
    statement = f'SELECT max(version_num) FROM "{revision.schema}".alembic_version'  # noqa: S608  (a constant's)
    found = await connection.execute(text(statement))
    return (found.scalar() or "") >= revision.number


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
