"""One real PostgreSQL a session, and databases of it for the tests that want one."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sis.stack import postgres as embedded

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Postgres]:
    """A server that the tests share: make databases in it, do not stop it. It ends with the session,
    however that ends. No test cuts the power, so it need not wait for the disk."""
    with embedded.running(tmp_path_factory.mktemp("postgres"), {"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: embedded.Postgres) -> str:
    """The address of the server's own database, `postgres`."""
    return postgres.url("postgres")


@pytest.fixture
def database_url(postgres: embedded.Postgres) -> Iterator[str]:
    """The address of an empty database of the test's own."""
    yield from _database(postgres, "template1")


@pytest.fixture
def queue_database_url(postgres: embedded.Postgres, queue_template: str) -> Iterator[str]:
    """The address of a database of the test's own in which the queue's migrations have been run."""
    yield from _database(postgres, queue_template)


@pytest.fixture(scope="session")
def queue_template(postgres: embedded.Postgres) -> str:
    """A database in which the queue's migrations have been run; for cloning, so nobody stays connected to
    it."""
    return _migrated(postgres, "services.queue.main", "SIS_QUEUE_", "queue_template")


def _database(postgres: embedded.Postgres, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    postgres.create_database(name, template=template)
    try:
        yield postgres.url(name)
    finally:
        postgres.drop_database(name)


def _migrated(postgres: embedded.Postgres, module: str, prefix: str, name: str) -> str:
    postgres.create_database(name)
    settings = {
        "DATABASE_URL": postgres.url(name),
        "LISTEN": "127.0.0.1:0",
        "INTERNAL_LISTEN": "127.0.0.1:0",
        "TLS_CA": "/dev/null",
        "IDENTITY": "/dev/null",
        "JOIN_ENDPOINT": "127.0.0.1:0",
        "JOIN_TOKEN_FILE": "/dev/null",
        "ADMIN_TOKEN_SHA256": secrets.token_hex(32),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, "migrate"],
        env={**os.environ, **{prefix + key: value for key, value in settings.items()}},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{module} migrate failed:\n{done.stdout}{done.stderr}"
    return name
