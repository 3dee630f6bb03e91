"""Who an agent is: resume secrets, copies, revoked certificates."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import psycopg
import pytest
import sqlalchemy
from sqlalchemy import text

from services.runtime.channels import grpc_error
from services.runtime.database import Database
from services.runtime.dependencies import Trouble
from services.runtime.errors import SisError, Unavailable
from services.runtime.tls import TlsFiles
from services.sis_agent.hub import chains, recovery, revocations, store
from services.sis_agent.hub.certificates import AgentCertificate
from services.sis_agent.hub.errors import AgentRevoked
from services.sis_agent.hub.sessions import Sessions
from services.sis_agent.hub.store import Revocation
from sis.agent.v1 import agent_admin_service_pb2 as admin
from sis.agent.v1 import agent_service_pb2 as pb
from sis.stack.postgres import Postgres
from tests.integration.hub.agent_client import AgentClient, hello
from tests.integration.hub.conftest import LATE_SECONDS, Bench, database_away, hub_in_process


@pytest.fixture
def tls(bench: Bench) -> TlsFiles:
    """The identity of one enrolment of a1."""
    return bench.where.authority.agent("g", "a1")


def kept(files: TlsFiles) -> tuple[bytes, bytes]:
    return files.certificate.read_bytes(), files.key.read_bytes()


def restore(files: TlsFiles, content: tuple[bytes, bytes]) -> None:
    files.certificate.write_bytes(content[0])
    files.key.write_bytes(content[1])


def reason(error: SisError | None) -> str:
    return error.reason if error is not None else ""


async def agent(bench: Bench) -> admin.Agent:
    """As people see it."""
    stub = await bench.admin()
    return (await stub.GetAgent(admin.GetAgentRequest(name="a1"), timeout=5)).agent


async def stored(bench: Bench, query: str, holds: Callable[[object], object]) -> None:
    """Wait until the single value that a query gives is right."""
    conninfo = sqlalchemy.make_url(bench.where.database_url).set(drivername="postgresql").render_as_string(False)
    async with (
        asyncio.timeout(10),
        await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection,
    ):
        while True:
            row = await (await connection.execute(query.encode())).fetchone()
            if row is not None and holds(row[0]):
                return
            await asyncio.sleep(0.02)


async def quarantine(bench: Bench, tls: TlsFiles) -> tuple[AgentClient, bytes]:
    """Two programs with one identity come by turns until that is noticed: the one with an open stream, and the last
    secret that it was offered."""
    one = await bench.agent(tls=tls)
    copied = await one.hello()
    two = await bench.agent(tls=tls)
    of_two = await two.hello(resume_secret=copied)
    one = await bench.agent(tls=tls)
    of_one = await one.hello(resume_secret=copied)
    one = await bench.agent(tls=tls)
    of_one = await one.hello(resume_secret=of_one)
    two = await bench.agent(tls=tls)
    assert reason(await two.refused(of_two)) == "AGENT_QUARANTINED"
    return one, of_one


async def test_every_welcome_offers_another_secret(bench: Bench, tls: TlsFiles) -> None:
    shown = b""
    seen = set()
    for _ in range(4):
        client = await bench.agent(tls=tls)
        shown = await client.hello(resume_secret=shown)
        assert len(shown) == 32
        seen.add(shown)
    assert len(seen) == 4


async def test_two_lost_welcomes_in_a_row_are_no_copy(bench: Bench, tls: TlsFiles) -> None:
    for _ in range(3):
        client = await bench.agent(tls=tls)
        offered = await client.hello()
    for _ in range(3):
        client = await bench.agent(tls=tls)
        later = await client.hello(resume_secret=offered)
    client = await bench.agent(tls=tls)
    await client.hello(resume_secret=later)
    assert not client.ended


async def test_a_queue_that_opens_no_session_is_a_lost_welcome(bench: Bench, tls: TlsFiles) -> None:
    client = await bench.agent(tls=tls)
    offered = await client.hello()
    for _ in range(2):
        bench.queue.failures["OpenSession"].extend([Unavailable("not now")] * 4)
        client = await bench.agent(tls=tls)
        assert isinstance(await client.refused(offered), Unavailable)
    client = await bench.agent(tls=tls)
    await client.hello(resume_secret=offered)


async def test_a_copy_is_quarantined_with_what_it_was_copied_from(bench: Bench, tls: TlsFiles) -> None:
    open_one, offered = await quarantine(bench, tls)
    assert reason(await open_one.end()) == "AGENT_QUARANTINED"
    for secret in (offered, b"", bytes(32)):
        client = await bench.agent(tls=tls)
        assert reason(await client.refused(secret)) == "AGENT_QUARANTINED"
    await stored(bench, "SELECT online FROM agents.agents", lambda online: not online)
    assert (await agent(bench)).HasField("quarantine_time")


async def test_enrolling_again_ends_a_quarantine_for_the_new_key_alone(bench: Bench, tls: TlsFiles) -> None:
    await quarantine(bench, tls)
    old = kept(tls)
    client = await bench.agent()
    offered = await client.hello()
    await stored(bench, "SELECT online FROM agents.agents", bool)
    found = await agent(bench)
    assert found.online
    assert not found.HasField("quarantine_time")
    new = kept(tls)
    restore(tls, old)
    copy = await bench.agent(tls=tls)
    assert reason(await copy.refused()) == "AGENT_QUARANTINED"
    assert not client.ended
    restore(tls, new)
    client = await bench.agent(tls=tls)
    await client.hello(resume_secret=offered)


async def test_a_registry_that_went_back_in_time_takes_its_agents_for_no_copies(bench: Bench, tls: TlsFiles) -> None:
    stolen = kept(tls)
    client = await bench.agent()
    early = await client.hello()
    client = await bench.agent(tls=tls)
    late = await client.hello(resume_secret=early)
    now = kept(tls)
    database = Database(bench.where.database_url, application_name="test")
    # As it was when the backup was made: of what was offered since it knows nothing.
    async with database.begin() as connection:
        await connection.execute(text("UPDATE agents.chains SET shown_sha256 = :x, offered_sha256 = '{}'"), {"x": b"x"})
    assert (await recovery.recover(database)).endswith(": 1")
    await database.dispose()

    restore(tls, stolen)
    thief = await bench.agent(tls=tls)
    assert reason(await thief.refused()) == "AGENT_REVOKED"
    restore(tls, now)
    client = await bench.agent(tls=tls)
    offered = await client.hello(resume_secret=late)
    # From here on a copy is noticed as ever.
    client = await bench.agent(tls=tls)
    await client.hello(resume_secret=offered)
    copy = await bench.agent(tls=tls)
    assert reason(await copy.refused(early)) == "AGENT_QUARANTINED"
    # And a quarantine is not forgiven by another restore.
    database = Database(bench.where.database_url, application_name="test")
    assert (await recovery.recover(database)).endswith(": 0")
    await database.dispose()
    client = await bench.agent(tls=tls)
    assert reason(await client.refused(offered)) == "AGENT_QUARANTINED"


async def test_a_key_that_was_replaced_does_not_come_back(bench: Bench, tls: TlsFiles) -> None:
    """Even if nobody has told the hub yet that its certificate was revoked."""
    client = await bench.agent(tls=tls)
    offered = await client.hello()
    old = kept(tls)
    enrolled = await bench.agent()
    await enrolled.hello()
    restore(tls, old)
    client = await bench.agent(tls=tls)
    assert reason(await client.refused(offered)) == "AGENT_REVOKED"
    assert not enrolled.ended


async def test_a_key_that_was_certified_earlier_does_not_replace_a_later_one(bench: Bench, tls: TlsFiles) -> None:
    """It was stolen before its agent ever connected with it, and nobody has told the hub that it was revoked."""
    stolen = kept(tls)
    client = await bench.agent()
    offered = await client.hello()
    new = kept(tls)
    restore(tls, stolen)
    thief = await bench.agent(tls=tls)
    assert reason(await thief.refused()) == "AGENT_REVOKED"
    assert not client.ended
    restore(tls, new)
    client = await bench.agent(tls=tls)
    await client.hello(resume_secret=offered)


async def test_of_two_keys_that_were_certified_at_once_the_first_stays(hub_database_url: str) -> None:
    database = Database(hub_database_url, application_name="test")
    found, now = chains.Chains(database, Sessions()), datetime.now(UTC)
    first, second = (AgentCertificate("1", bytes([number] * 32), now, now) for number in range(2))
    await found.resume("a1", first, b"")
    with pytest.raises(AgentRevoked):
        await found.resume("a1", second, b"")
    await found.resume("a1", first, b"")
    await found.resume("a2", second, b"")
    await database.dispose()


async def test_a_new_key_may_show_the_secret_of_the_old_one(bench: Bench, tls: TlsFiles) -> None:
    client = await bench.agent(tls=tls)
    offered = await client.hello()
    tls = bench.where.authority.agent("g", "a1")
    for _ in range(3):
        client = await bench.agent(tls=tls)
        await client.hello(resume_secret=offered)


async def test_a_hello_that_comes_late_does_not_condemn_its_agent(
    bench: Bench, tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was held up on its way while the agent went elsewhere; the end of its call comes before its judgement."""
    held, ended = asyncio.Event(), asyncio.Event()

    async def hold(seconds: float) -> None:
        assert seconds == LATE_SECONDS
        held.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(chains, "asyncio", SimpleNamespace(sleep=hold))
    client = await bench.agent(tls=tls)
    first = await client.hello()
    client = await bench.agent(tls=tls)
    second = await client.hello(resume_secret=first)
    late = await bench.agent(tls=tls)
    await late.call.write(pb.ConnectRequest(hello=hello(), resume_secret=b""))
    await asyncio.wait_for(held.wait(), 10)
    late.call.cancel()
    await asyncio.wait_for(ended.wait(), 10)
    client = await bench.agent(tls=tls)
    await client.hello(resume_secret=second)


async def test_a_quarantine_reaches_the_other_hubs(quick_bench: Bench) -> None:
    bench, tls = quick_bench, quick_bench.where.authority.agent("g", "a1")
    hub = await bench.process("hub-2")
    client = await bench.agent(tls=tls, hub=hub.endpoints)
    offered = await client.hello()
    client = await bench.agent(tls=tls, hub=hub.endpoints)
    await client.hello(resume_secret=offered)
    # Of a silent one, that process would let go before long.
    beating = asyncio.create_task(client.live(0.1))
    copy = await bench.agent(tls=tls)
    assert reason(await copy.refused()) == "AGENT_QUARANTINED"
    assert reason(await client.end()) == "AGENT_QUARANTINED"
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it beats until it hears of the end
        await beating


async def test_a_key_in_quarantine_fetches_no_packages(bench: Bench, tls: TlsFiles) -> None:
    await quarantine(bench, tls)
    bench.queue.archives["ab" * 32] = [b"a package"]
    client = await bench.agent(tls=tls)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in client.stub.FetchPackage(pb.FetchPackageRequest(digest="ab" * 32), timeout=5):
            pass
    assert grpc_error(caught.value).reason == "AGENT_QUARANTINED"
    assert not bench.queue.archive_requests


async def test_an_agent_with_a_stream_fetches_packages_without_the_registry(
    bench: Bench, tls: TlsFiles, postgres: Postgres
) -> None:
    client = await bench.agent(tls=tls)
    await client.hello()
    bench.queue.archives["ab" * 32] = [b"a package"]
    fetch = pb.FetchPackageRequest(digest="ab" * 32)
    with database_away(bench, postgres):
        assert [part.chunk async for part in client.stub.FetchPackage(fetch, timeout=5)] == [b"a package"]


async def test_another_hub_knows_the_chain(bench: Bench, tls: TlsFiles) -> None:
    client = await bench.agent(tls=tls)
    offered = await client.hello()
    hub = await bench.process("hub-2")
    client = await bench.agent(tls=tls, hub=hub.endpoints)
    offered = await client.hello(resume_secret=offered)
    client = await bench.agent(tls=tls)
    await client.hello(resume_secret=offered)


async def test_hellos_of_one_agent_wait_for_each_other(hub_database_url: str) -> None:
    """The first ones too, for which there is nothing to lock yet."""
    database = Database(hub_database_url, application_name="test")
    found = chains.Chains(database, Sessions())
    certificate = AgentCertificate("1", bytes(32), datetime.now(UTC), datetime.now(UTC))
    offers = await asyncio.gather(*(found.resume("a1", certificate, b"") for _ in range(chains.OFFERS)))
    for _ in range(3):
        offers = await asyncio.gather(*(found.resume("a1", certificate, offers[1]) for _ in range(chains.OFFERS)))
    assert len(set(offers)) == chains.OFFERS
    await database.dispose()


async def test_a_revocation_closes_the_stream_at_once_and_refuses_new_ones(bench: Bench, tls: TlsFiles) -> None:
    client, other = await bench.agent(tls=tls), await bench.agent("a2")
    offered = await client.hello()
    await other.hello()
    bench.queue.archives["ab" * 32] = [b"a package"]
    fetch = pb.FetchPackageRequest(digest="ab" * 32)
    assert [part.chunk async for part in client.stub.FetchPackage(fetch, timeout=5)] == [b"a package"]
    bench.credentials.revoke("a1", tls)
    assert reason(await client.end()) == "AGENT_REVOKED"
    again = await bench.agent(tls=tls)
    assert reason(await again.refused(offered)) == "AGENT_REVOKED"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in again.stub.FetchPackage(fetch, timeout=5):
            pass
    assert grpc_error(caught.value).reason == "AGENT_REVOKED"
    assert not other.ended
    enrolled = await bench.agent()
    await enrolled.hello()


async def test_a_revocation_is_known_to_a_hub_that_starts_without_the_credential_service(
    bench: Bench, tls: TlsFiles
) -> None:
    client = await bench.agent(tls=tls)
    await client.hello()
    bench.credentials.revoke("a1", tls)
    await client.end()
    await stored(bench, "SELECT count(*) FROM agents.revocations", lambda count: count == 1)
    await bench.stop_credentials()
    hub = await bench.process("hub-2")
    client = await bench.agent(tls=tls, hub=hub.endpoints)
    assert reason(await client.refused()) == "AGENT_REVOKED"
    other = await bench.agent("a2", hub=hub.endpoints)
    await other.hello()


async def test_a_hub_is_not_healthy_before_it_knows_who_was_revoked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it hears of the credential service meanwhile is true."""
    opened = asyncio.Event()
    read = store.revocations

    async def held(*arguments: Any) -> Sequence[Revocation]:
        await opened.wait()
        return await read(*arguments)

    monkeypatch.setattr(store, "revocations", held)
    monkeypatch.setattr(revocations, "_LOAD_SECONDS", 0.1)
    async with hub_in_process(bench.where.of_hub("hub-2")) as (hub, endpoints):
        of = {each.name: each for each in hub.dependencies}
        assert await of["postgresql"].look() == Trouble("STARTING", "who was revoked is not read yet")
        assert "does not know yet" in str(await (await bench.agent("a2", hub=endpoints)).refused())
        await bench.credentials.watched(2)
        async with asyncio.timeout(10):
            while await of["credentials"].look() is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        opened.set()
        async with asyncio.timeout(10):
            while await of["postgresql"].look() is not None:
                pass
        await (await bench.agent("a2", hub=endpoints)).hello()


async def test_what_was_revoked_while_the_credential_service_was_away_is_heard_of_later(
    bench: Bench, tls: TlsFiles
) -> None:
    client = await bench.agent(tls=tls)
    await client.hello()
    await bench.stop_credentials()
    bench.credentials.revoke("a1", tls)
    await bench.start_credentials()
    assert reason(await client.end()) == "AGENT_REVOKED"


async def test_a_stream_whose_certificate_has_expired_ends_with_a_later_one_of_its_agent(
    bench: Bench, tls: TlsFiles
) -> None:
    client, other = await bench.agent(tls=tls), await bench.agent("a2")
    await client.hello()
    await other.hello()
    for session in bench.parts._sessions:
        session.certificate = replace(session.certificate, not_after=datetime.now(UTC) - timedelta(seconds=1))
    bench.credentials.revoke("a1", bench.where.authority.agent("g", "a1"))
    assert reason(await client.end()) == "AGENT_REVOKED"
    assert not other.ended


async def test_revocations_are_written_when_the_registry_is_back(
    bench: Bench, tls: TlsFiles, postgres: Postgres
) -> None:
    client = await bench.agent(tls=tls)
    await client.hello()
    with database_away(bench, postgres):
        bench.credentials.revoke("a1", tls)
        assert reason(await client.end()) == "AGENT_REVOKED"
        await bench.logged.until("revocations cannot be written")
    await stored(bench, "SELECT count(*) FROM agents.revocations", lambda count: count == 1)
