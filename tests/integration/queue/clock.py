"""Time under the control of a test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Self

from sqlalchemy import text

from services.runtime.database import Database

START = datetime(2030, 1, 1, tzinfo=UTC)
STEP = timedelta(seconds=30)
"""A sweeper that looks less often than this begins to watch anew."""


class Clock:
    """Stands in for `queue.now()` in one database; it stands still unless it is moved."""

    def __init__(self, database: Database, now: datetime) -> None:
        self._database = database
        self.now = now

    @classmethod
    async def install(cls, database: Database) -> Self:
        """Replace `queue.now()`; where that was done before, go on from there."""
        async with database.begin() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS queue.test_clock (at timestamptz NOT NULL)"))
            found = (await connection.execute(text("SELECT at FROM queue.test_clock"))).scalar()
            if found is None:
                await connection.execute(text("INSERT INTO queue.test_clock VALUES (:at)"), {"at": START})
                await connection.execute(
                    text(
                        "CREATE OR REPLACE FUNCTION queue.now() RETURNS timestamptz LANGUAGE sql VOLATILE"
                        " AS 'SELECT at FROM queue.test_clock'"
                    )
                )
        return cls(database, found or START)

    async def advance(self, seconds: float) -> None:
        """Move on at once."""
        self.now += timedelta(seconds=seconds)
        async with self._database.begin() as connection:
            await connection.execute(text("UPDATE queue.test_clock SET at = :at"), {"at": self.now})

    async def elapse(self, seconds: float, *meanwhile: Callable[[], Awaitable[object]]) -> None:
        """Move on in steps of at most STEP, doing these things after each."""
        until = self.now + timedelta(seconds=seconds)
        while self.now < until:
            await self.advance(min(until - self.now, STEP).total_seconds())
            for act in meanwhile:
                await act()
