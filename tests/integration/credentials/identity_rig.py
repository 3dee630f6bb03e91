"""Agents' identities in a database of a test's own, with the OpenBao that all tests share."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import services.credentials
from services.credentials.identities import Identities
from services.credentials.tables import SCHEMA
from services.credentials.vault import Vault
from services.runtime.database import Database
from services.runtime.migrations import migrate
from sis.stack.postgres import Postgres
from tests.integration.credentials.agent_side import AgentSide
from tests.support.openbao import OpenBaoServer

LIFE = timedelta(hours=1)
"""Of an agent's certificate."""

_numbers = itertools.count(1)


class IdentityRig:
    """The identities, and an agent's name of the test's own."""

    def __init__(self, url: str, database: Database, vault: Vault, openbao: OpenBaoServer) -> None:
        self.url = url
        self.database = database
        self.vault = vault
        self.openbao = openbao
        self.identities = Identities(database, vault, life=LIFE)
        self.name = f"web-{next(_numbers)}"

    async def pair(self, group: str = "g") -> str:
        """A code for the agent."""
        code, _ = await self.identities.pair(self.name, group, "alice")
        return code

    async def enrolled(self) -> AgentSide:
        """The agent, with a code of its own."""
        side = AgentSide()
        await self.identities.enrol(side.enrolment(await self.pair()))
        return side

    async def execute(self, statement: str, **values: Any) -> list[Any]:
        async with self.database.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    async def certificates(self) -> dict[str, bool]:
        """Whether each of the agent's certificates is revoked."""
        rows = await self.execute(
            "SELECT serial, revoked_at IS NOT NULL FROM credentials.certificates WHERE agent = :name", name=self.name
        )
        return dict(map(tuple, rows))

    async def sealing_key(self) -> bytes:
        rows = await self.execute("SELECT sealing_key FROM credentials.agents WHERE name = :name", name=self.name)
        return bytes(rows[0][0])

    async def dump(self) -> str:
        """Everything that the database says of identities."""
        tables = ("agents", "certificates", "pairings")
        return "\n".join(
            [
                str(row[0])
                for table in tables
                for row in await self.execute(f"SELECT to_jsonb(t) FROM credentials.{table} t")
            ]
        )


@pytest.fixture(scope="session")
def identity_template(postgres: Postgres) -> str:
    """A database with the tables of the credential service; for cloning, so nobody stays connected to it."""
    name = "identity_template"
    postgres.create_database(name)
    migrate(postgres.url(name), Path(services.credentials.__file__).parent / "migrations", SCHEMA)
    return name


@pytest.fixture
def identity_url(postgres: Postgres, identity_template: str) -> Iterator[str]:
    name = f"identities_{next(_numbers)}"
    postgres.create_database(name, template=identity_template)
    try:
        yield postgres.url(name)
    finally:
        postgres.drop_database(name)


@pytest.fixture
async def rig(identity_url: str, vault: Vault, openbao: OpenBaoServer) -> AsyncIterator[IdentityRig]:
    database = Database(identity_url, application_name="test", pool_size=8)
    yield IdentityRig(identity_url, database, vault, openbao)
    await database.dispose()
