"""Credentials and leases in a database of a test's own, with the OpenBao that all tests share."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sqlalchemy import make_url, text

import services.credentials
from services.credentials import credentials, store
from services.credentials.convert.leases import leased_secret
from services.credentials.credentials import CreateCredential, ReplaceCredential
from services.credentials.kinds import Kind, Secret
from services.credentials.leases import Answer, LeaseRequest, Leasing, Refusal, Use
from services.credentials.reconciler import Limits, Reconciler
from services.credentials.store import Credential
from services.credentials.tables import SCHEMA, State
from services.credentials.values import Values
from services.credentials.vault import Vault
from services.runtime import faults, sealing
from services.runtime.database import Database
from services.runtime.migrations import migrate
from services.runtime.sealing import LeaseBinding
from sis.credentials.v1 import lease_pb2
from sis.stack.postgres import Postgres
from tests.support.openbao import OpenBaoServer

SECRET = b"correct horse battery staple"
AT_ONCE = Limits(interrupted=timedelta(0), attended=timedelta(0), missing=timedelta(0), scan=timedelta(0))
"""A reconciler with these does everything with each sweep."""

_numbers = itertools.count(1)


class Cut(BaseException):
    """The process is gone."""


class Agent:
    """An agent that is enrolled, with the key that opens its leases."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = X25519PrivateKey.generate()

    @property
    def sealing_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()


class KeySafe:
    """The operations, as one person calls them."""

    def __init__(self, url: str, database: Database, vault: Vault, openbao: OpenBaoServer) -> None:
        self.url = url
        self.database = database
        self.vault = vault
        self.openbao = openbao
        self.values = Values(vault)
        self.leasing = Leasing(database, self.values, leased_secret)
        self.reconciler = Reconciler(database, self.values, AT_ONCE)

    # --- credentials ---

    def creation(self, name: str = "web", secret: bytes = SECRET, **changes: Any) -> CreateCredential:
        """Of a token, unless changed."""
        fields: dict[str, Any] = {
            "kind": Kind.TOKEN,
            "username": "",
            "domain": "",
            "description": "",
            "value": Secret(secret),
            "for_one_job": False,
            "request_id": "",
            "fingerprint": name.encode(),
        }
        return CreateCredential(name=name, **{**fields, **changes})

    async def create(
        self, name: str = "web", secret: bytes = SECRET, *, by: str = "alice", **changes: Any
    ) -> Credential:
        command = self.creation(name, secret, **changes)
        return await credentials.create(self.database, self.values, command, by)

    async def replace(self, name: str = "web", secret: bytes = b"another secret", **changes: Any) -> Credential:
        fields: dict[str, Any] = {"username": None, "domain": None, "description": None, "version": 0}
        command = ReplaceCredential(name=name, value=Secret(secret), **{**fields, **changes})
        return await credentials.replace(self.database, self.values, command, "bob")

    async def delete(self, name: str = "web") -> None:
        await credentials.delete(self.database, self.values, name)

    async def get(self, name: str = "web") -> Credential:
        return await credentials.get(self.database, name)

    async def bind(self, name: str, job_id: int) -> Credential:
        return await credentials.bind(self.database, name, job_id)

    async def all(self) -> list[Credential]:
        """Every row, of the deleted too."""
        ids = await self.execute("SELECT credential_id FROM credentials.credentials ORDER BY created_at")
        async with self.database.begin() as connection:
            return [found for row in ids if (found := await store.get(connection, row[0])) is not None]

    async def secret(self, credential: Credential) -> bytes | None:
        """The value that counts for a credential."""
        stored = await self.values.get(credential.credential_id, credential.vault_version)
        return None if stored is None else stored.value.secret

    async def agree(self) -> None:
        """Whoever is READY has a value, who is gone has none, and nothing is under way."""
        kept = await self.values.ids()
        for credential in await self.all():
            assert credential.intent is None
            if credential.state is State.READY:
                assert await self.secret(credential) is not None
            else:
                assert credential.state in (State.DELETED, State.ABANDONED)
                assert credential.credential_id not in kept

    async def sweep(self) -> None:
        while await self.reconciler.sweep():
            pass

    # --- leases ---

    async def enrol(self, name: str = "") -> Agent:
        agent = Agent(name or f"agent-{next(_numbers)}")
        await self.execute(
            "INSERT INTO credentials.agents (name, agent_group, public_key, sealing_key, generation, enrolled_at,"
            " pairer, pairing_id) VALUES (:name, 'g', '', :key, 1, now(), 'alice', '')",
            name=agent.name,
            key=agent.sealing_key,
        )
        return agent

    async def revoke(self, agent: Agent) -> None:
        await self.execute("UPDATE credentials.agents SET revoked_at = now() WHERE name = :name", name=agent.name)

    @staticmethod
    def request(agent: Agent, *names: str, job_id: int = 1, attempt: int = 1, **uses: str) -> LeaseRequest:
        """For these credentials as credential.<name>, and for others by their refs."""
        wanted = {f"credential.{name}": name for name in names} | uses
        return LeaseRequest(
            job_id, attempt, agent.name, "alice", tuple(Use(ref, name, None) for ref, name in wanted.items())
        )

    async def take(self, *requests: LeaseRequest) -> list[Answer]:
        return await self.leasing.take(requests)

    async def leases(
        self, agent: Agent, *names: str, job_id: int = 1, attempt: int = 1
    ) -> list[lease_pb2.LeasedSecret]:
        """Take, and open as the agent does."""
        (answer,) = await self.take(self.request(agent, *names, job_id=job_id, attempt=attempt))
        return self.opened(agent, answer, job_id, attempt)

    @staticmethod
    def opened(agent: Agent, answer: Answer, job_id: int = 1, attempt: int = 1) -> list[lease_pb2.LeasedSecret]:
        assert not isinstance(answer, Refusal), answer
        return [
            lease_pb2.LeasedSecret.FromString(
                sealing.unseal(
                    lease.ciphertext,
                    agent.key,
                    LeaseBinding(job_id, attempt, agent.name, str(lease.lease_id), lease.ref),
                )
            )
            for lease in answer
        ]

    async def refusal(self, request: LeaseRequest) -> Refusal:
        (answer,) = await self.take(request)
        assert isinstance(answer, Refusal)
        return answer

    # --- the database ---

    async def execute(self, statement: str, **values: Any) -> list[Any]:
        async with self.database.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def connection(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False))

    async def put_late(self, credential_id: UUID, secret: bytes, after: int) -> int:
        """A write that somebody began before he was given up."""
        return await self.values.put(credential_id, Secret(secret), uuid4(), after)


@pytest.fixture(scope="session")
def keysafe_template(postgres: Postgres) -> str:
    """A database with the tables of the credential service; for cloning, so nobody stays connected to it."""
    name = "keysafe_template"
    postgres.create_database(name)
    migrate(postgres.url(name), Path(services.credentials.__file__).parent / "migrations", SCHEMA)
    return name


@pytest.fixture
def keysafe_url(postgres: Postgres, keysafe_template: str) -> Iterator[str]:
    name = f"keysafe_{next(_numbers)}"
    postgres.create_database(name, template=keysafe_template)
    try:
        yield postgres.url(name)
    finally:
        postgres.drop_database(name)


@pytest.fixture
async def safe(keysafe_url: str, vault: Vault, openbao: OpenBaoServer) -> AsyncIterator[KeySafe]:
    database = Database(keysafe_url, application_name="test", pool_size=10)
    yield KeySafe(keysafe_url, database, vault, openbao)
    await database.dispose()


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has whoever passes the fault point of this name end there, as a process does that is killed; "" has nobody."""

    def at(name: str) -> None:
        def point(passed: str) -> None:
            if passed == name:
                raise Cut

        monkeypatch.setattr(faults, "point", point)

    return at
