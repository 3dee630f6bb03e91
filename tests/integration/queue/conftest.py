"""Databases of the queue, and what fills them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.queue import packages
from services.queue.model import Actor
from services.runtime.database import Database
from sis.packages import archive, shipped
from sis.queue.v1 import dispatch_service_pb2_grpc
from sis.stack import postgres as embedded
from tests.integration.queue.api import Api
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig
from tests.support.certificates import CertificateAuthority
from tests.support.queue_server import QueueServer

_numbers = itertools.count(1)


SECRETIVE = """
name: test.secretive
version: 1.0.0
operations:
  use:
    command: ["true"]
    inputs:
      phrase: {type: string, sensitive: true, required: true}
      spare: {type: string, sensitive: true}
      plain: {type: string, default: nothing}
    credentials:
      database: {description: of the application, required: true, kinds: [username-password, token], delivery: file}
      other: {delivery: stdin}
      admin: {kinds: [ssh-key]}
      run_as: {required: true}
"""
"""A package that wants every kind of credential."""


async def _stock(url: str, scratch: Path) -> None:
    (scratch / "package.yaml").write_text(SECRETIVE)
    database = Database(url, application_name="test")
    for directory in (shipped() / "core.shell", shipped() / "linux.facts", scratch):
        content = archive.pack(directory)
        upload = packages.Upload(archive.digest(content), len(content))
        upload.add(content)
        await packages.push(database, upload, Actor("alice", "10.0.0.1"))
    await database.dispose()


def _clone(postgres: embedded.Postgres, template: str) -> Iterator[str]:
    name = f"queue_{next(_numbers)}"
    postgres.create_database(name, template=template)
    try:
        yield postgres.url(name)
    finally:
        postgres.drop_database(name)


@pytest.fixture(scope="session")
def stocked_template(postgres: embedded.Postgres, queue_template: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with the shipped packages and SECRETIVE in it; for cloning, so nobody stays connected to it."""
    name = "queue_stocked"
    postgres.create_database(name, template=queue_template)
    asyncio.run(_stock(postgres.url(name), tmp_path_factory.mktemp("secretive")))
    return name


@pytest.fixture
def own_url(postgres: embedded.Postgres, stocked_template: str) -> Iterator[str]:
    yield from _clone(postgres, stocked_template)


@pytest.fixture(scope="module")
def shared_url(postgres: embedded.Postgres, stocked_template: str) -> Iterator[str]:
    yield from _clone(postgres, stocked_template)


@pytest.fixture
async def database(own_url: str) -> AsyncIterator[Database]:
    """A database of the test's own, with the shipped packages in it."""
    found = Database(own_url, application_name="test", pool_size=10)
    yield found
    await found.dispose()


@pytest.fixture
async def shared_database(shared_url: str) -> AsyncIterator[Database]:
    """A database that the tests of a module share, each with agents and jobs of its own."""
    found = Database(shared_url, application_name="test", pool_size=10)
    yield found
    await found.dispose()


@pytest.fixture
def rig(shared_database: Database) -> Rig:
    """People and agents of the test's own, in a group of its own, in the module's database."""
    return Rig(shared_database, f"g{next(_numbers)}")


@pytest.fixture
def own_rig(database: Database) -> Rig:
    """As `rig`, with the database to itself."""
    return Rig(database, f"g{next(_numbers)}")


@pytest.fixture
async def clock(shared_database: Database) -> Clock:
    """The time of the module's database, which only goes on."""
    return await Clock.install(shared_database)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="package")
def served_url(postgres: embedded.Postgres, stocked_template: str) -> Iterator[str]:
    yield from _clone(postgres, stocked_template)


@pytest.fixture(scope="package")
def server(
    served_url: str, authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QueueServer]:
    """A queue for the tests of its API; do not stop it. None of their calls may end with a fault."""
    with QueueServer(served_url, authority, Path(tmp_path_factory.mktemp("queue"))) as found:
        yield found
        assert [line for line in found.log() if "fault" in line] == []


@pytest.fixture
async def served(served_url: str) -> AsyncIterator[Rig]:
    """People and agents of the test's own in the database of the server."""
    database = Database(served_url, application_name="test", pool_size=4)
    yield Rig(database, f"g{next(_numbers)}")
    await database.dispose()


@pytest.fixture
async def api(server: QueueServer) -> AsyncIterator[Api]:
    """The server as people see it, with the administrator's token."""
    async with server.public() as channel:
        yield Api(channel)


@pytest.fixture
async def hub(server: QueueServer) -> AsyncIterator[dispatch_service_pb2_grpc.DispatchServiceAsyncStub]:
    """The server as hubs see it."""
    async with server.internal() as channel:
        yield dispatch_service_pb2_grpc.DispatchServiceStub(channel)  # type: ignore[misc]
