"""The commands of docs/operations/backup.md for a PostgreSQL and a Vault of one's own, as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from sqlalchemy import make_url

from services.credentials.vault_errors import VaultError
from services.queue import packages
from services.queue.model import Actor
from services.runtime.database import Database
from sis.credentials.v1 import credential_pb2, credential_service_pb2, credential_service_pb2_grpc
from sis.packages import archive, shipped
from sis.stack import postgres
from tests.integration.queue.rig import Rig
from tests.support.credentials_server import BEARER, CredentialsServer
from tests.support.openbao import OpenBaoServer, until

PAGE = Path(__file__).parents[2] / "docs" / "operations" / "backup.md"


def block(name: str) -> str:
    """The commands below `<!-- name -->`."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"{PAGE} has no block {name}"
    return found.group(1)


class Site:
    """A PostgreSQL and a Vault, and the environments of the suite's services on them."""

    def __init__(self, directory: Path, backup: Path) -> None:
        self._stack = ExitStack()
        self._backup = backup
        self.directory = directory
        directory.mkdir()
        self.server = self._stack.enter_context(postgres.running(directory, {"fsync": "off"}))
        self.server.create_database()
        # What unseals it is with people, as where it matters; prepared, it is initialised and unsealed.
        self.vault = self._stack.enter_context(OpenBaoServer(directory))

    def close(self) -> None:
        self._stack.close()

    def credentials(self) -> CredentialsServer:
        return CredentialsServer(self.server.url(), self.vault, self.directory)

    def environment(self) -> Mapping[str, str]:
        """That of an operator's shell, and of the services."""
        url = make_url(self.server.url())
        found = dict(self.credentials().environment())
        own = {
            "DATABASE_URL": self.server.url(), "LISTEN": "127.0.0.1:0", "INTERNAL_LISTEN": "127.0.0.1:0",
            "AGENT_LISTEN": "127.0.0.1:0", "ENROLMENT_LISTEN": "127.0.0.1:0", "QUEUE_ENDPOINT": "127.0.0.1:1",
            "CREDENTIALS_ENDPOINT": "127.0.0.1:1", "NAME": "hub-1", "TLS_CA": "/dev/null", "IDENTITY": "/dev/null",
            "JOIN_ENDPOINT": "127.0.0.1:1", "JOIN_TOKEN_FILE": "/dev/null", "ADMIN_TOKEN_SHA256": "0" * 64,
        }  # fmt: skip
        for prefix in ("QUEUE", "HUB"):
            found |= {f"SIS_{prefix}_{key}": value for key, value in own.items()}
        programs = [self.server.client("psql").arguments[0], self.vault.server.command().arguments[0], sys.executable]
        return {
            **found,
            "PATH": os.pathsep.join([*(str(Path(program).parent) for program in programs), os.environ["PATH"]]),
            "DATABASE": f"postgresql://{url.username}@/{url.database}?host={url.query['host']}",
            "BACKUP": str(self._backup),
            "BAO_ADDR": self.vault.address,
            "BAO_CACERT": str(self.vault.server.ca),
            "BAO_TOKEN": str(self.vault.keys["root_token"]),
        }

    def run(self, commands: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", commands], env=self.environment(), cwd=self.directory,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def must(self, commands: str) -> str:
        done = self.run(commands)
        assert done.returncode == 0, f"{commands}{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    """That which is lost, and that which takes its place."""
    with ExitStack() as stack:
        found = []
        for name in ("first", "second"):
            found.append(Site(tmp_path / name, tmp_path / "backup"))
            stack.callback(found[-1].close)
        yield found[0], found[1]


def opened(vault: OpenBaoServer) -> bool:
    """Whether a Vault that has just taken over a snapshot is unsealed, after another try with the keys of the former
    one: for a moment it is busy with that."""
    try:
        for key in vault.keys["unseal_keys"]:
            vault.root("PUT", "sys/unseal", {"key": key})
    except VaultError:
        return False
    return vault.server.ready()


def secure(server: CredentialsServer) -> grpc.Channel:
    trusted = grpc.ssl_channel_credentials(server.ca.read_bytes())
    return grpc.secure_channel(f"127.0.0.1:{server.ports[0]}", trusted)


async def jobs(site: Site, statuses: list[str]) -> None:
    """Assert that the queue has one job, in turn in these statuses, of which only a waiting one can be claimed."""
    database = Database(site.server.url(), application_name="test")
    try:
        rig = Rig(database, "g")
        await rig.hello()
        assert list((await rig.statuses([1])).values()) == statuses
        assert len(await rig.claim()) == statuses.count("WAITING")
    finally:
        await database.dispose()


async def stock(site: Site) -> None:
    """One job that waits."""
    database = Database(site.server.url(), application_name="test")
    try:
        content = archive.pack(shipped() / "core.shell")
        upload = packages.Upload(archive.digest(content), len(content))
        upload.add(content)
        await packages.push(database, upload, Actor("alice"))
        assert await Rig(database, "g").create() == 1
    finally:
        await database.dispose()


@pytest.mark.timeout(500)
def test_the_commands_bring_everything_to_another_place(sites: tuple[Site, Site]) -> None:
    first, second = sites
    migrate = block("recover").replace(" recover", " migrate")
    first.must(migrate)
    asyncio.run(stock(first))
    name, secret = "kept", os.urandom(12).hex().encode()
    request = credential_service_pb2.CreateCredentialRequest(
        name=name, kind=credential_pb2.CREDENTIAL_KIND_TOKEN, value=credential_pb2.SecretValue(secret=secret)
    )
    with first.credentials() as server, secure(server) as channel:
        stub = credential_service_pb2_grpc.CredentialServiceStub(channel)
        stub.CreateCredential(request, metadata=BEARER, timeout=30)
        first.must(block("backup"))
        # It is connected to the database, so nothing is put right there.
        done = first.run(block("recover"))
        assert done.returncode == 1
        assert "the database is in use by sis-credentials" in done.stderr
    first.close()

    kept = {path.name: path.read_bytes() for path in first.vault.output.iterdir()}
    second.must(block("restore"))
    for file, content in kept.items():
        (second.vault.output / file).write_bytes(content)
    second.vault.server.keys.write_bytes(first.vault.server.keys.read_bytes())
    until(lambda: opened(second.vault), "an unsealed Vault", 90)
    said = second.must(block("recover"))
    assert "held for somebody to activate or cancel, since they may have run after the backup: 1" in said
    asyncio.run(jobs(second, ["DEFERRED"]))
    with second.credentials() as server, secure(server) as channel:
        stub = credential_service_pb2_grpc.CredentialServiceStub(channel)
        (found,) = stub.ListCredentials(
            credential_service_pb2.ListCredentialsRequest(), metadata=BEARER, timeout=30
        ).credentials
        assert (found.name, found.state) == (name, credential_pb2.CREDENTIAL_STATE_READY)
        # And new ones can be stored: its login and its policy are there.
        request.name = "new"
        stub.CreateCredential(request, metadata=BEARER, timeout=30)
    stored = second.vault.root("LIST", "sis-kv/metadata/credentials")["data"]["keys"]
    values = [second.vault.root("GET", f"sis-kv/data/credentials/{key}")["data"]["data"] for key in stored]
    assert [secret.decode() in str(value) or b64encode(secret).decode() in str(value) for value in values] == [True] * 2


def test_a_damaged_backup_is_not_restored(sites: tuple[Site, Site]) -> None:
    first, second = sites
    first.must(block("backup"))
    dump = first.directory.parent / "backup" / "postgresql.dump"
    content = dump.read_bytes()
    dump.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = second.run(block("restore"))
    assert done.returncode != 0
    assert "postgresql.dump: FAILED" in done.stdout
    assert second.vault.server.ready()
