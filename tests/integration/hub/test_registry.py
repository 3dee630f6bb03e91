"""The registry of agents, through AgentAdminService and beneath it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import sqlalchemy

from services.runtime.channels import grpc_error
from services.runtime.database import Database
from services.runtime.errors import Unavailable
from services.sis_agent.hub import registry
from services.sis_agent.hub.errors import AgentNotFound
from services.sis_agent.hub.registry import Changes, ListAgents
from services.sis_agent.hub.store import Beat, Opened
from services.sis_agent.hub.tables import SCHEMA, metadata
from sis.agent.v1 import agent_admin_service_pb2 as admin
from sis.stack.postgres import Postgres
from tests.integration.hub.agent_client import assignment
from tests.integration.hub.conftest import Bench, database_away


@pytest.fixture
async def database(hub_database_url: str) -> AsyncIterator[Database]:
    found = Database(hub_database_url, application_name="test")
    yield found
    await found.dispose()


def opened(name: str = "a1", epoch: int = 1, **fields: Any) -> Opened:
    values: dict[str, Any] = {
        "agent_group": "g",
        "hub": "h",
        "version": "1",
        "platform": "linux",
        "hostname": "host",
        "slots": 4,
        "draining": False,
        "labels": {},
        "attempts": [],
    }
    return Opened(name=name, epoch=epoch, **values | fields)


async def record(
    database: Database, *sessions: Opened, beats: list[Beat] | None = None, closed: dict[str, int] | None = None
) -> None:
    changes = Changes({s.name: s for s in sessions}, {b.name: b for b in beats or []}, closed or {})
    async with database.begin() as connection:
        await registry.record(connection, changes)


async def get(database: Database, name: str = "a1") -> registry.Agent:
    async with database.begin() as connection:
        return await registry.get_agent(connection, name)


def test_the_tables_are_what_the_migrations_make(hub_database_url: str) -> None:
    def shape(engine: sqlalchemy.Engine) -> dict[str, Any]:
        inspector = sqlalchemy.inspect(engine)
        found: dict[str, Any] = {}
        for table in sorted(set(inspector.get_table_names(schema=SCHEMA)) - {"alembic_version"}):
            columns = [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table, schema=SCHEMA)]
            indexes = [(i["name"], i["column_names"]) for i in inspector.get_indexes(table, schema=SCHEMA)]
            found[table] = columns, indexes, inspector.get_pk_constraint(table, schema=SCHEMA)
        return found

    engine = sqlalchemy.create_engine(hub_database_url, poolclass=sqlalchemy.NullPool)
    migrated = shape(engine)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.schema.DropSchema(SCHEMA, cascade=True))
        connection.execute(sqlalchemy.schema.CreateSchema(SCHEMA))
        metadata.create_all(connection)
    assert shape(engine) == migrated
    engine.dispose()


async def test_a_session_that_opened_is_online_with_all_that_it_said(database: Database) -> None:
    await record(database, opened(labels={"site": "x"}, attempts=[(1, 2)], draining=True))
    found = await get(database)
    assert found.online and found.draining
    assert (found.agent_group, found.hub, found.version, found.platform) == ("g", "h", "1", "linux")
    assert (found.hostname, found.slots, found.labels) == ("host", 4, {"site": "x"})
    assert found.attempts == [(1, 2)]
    assert found.first_seen_at == found.connected_at == found.last_seen_at


async def test_a_later_session_keeps_the_first_time(database: Database) -> None:
    await record(database, opened())
    first = await get(database)
    await record(database, opened(epoch=2, hub="h2", version="2"))
    found = await get(database)
    assert (found.hub, found.version) == ("h2", "2")
    assert found.first_seen_at == first.first_seen_at
    assert found.connected_at > first.connected_at


async def test_the_end_of_an_older_session_does_not_take_a_newer_one_offline(database: Database) -> None:
    await record(database, opened(epoch=2), closed={"a1": 1})
    assert (await get(database)).online
    await record(database, closed={"a1": 2})
    assert not (await get(database)).online


async def test_what_an_older_session_says_late_has_no_effect(database: Database) -> None:
    await record(database, opened(epoch=2, hub="new"))
    before = await get(database)
    await record(database, opened(epoch=1, hub="old"), beats=[Beat("a1", 1, True, [(9, 9)])])
    assert await get(database) == before


async def test_beats_are_written_in_one_statement_for_all(database: Database) -> None:
    await record(database, *(opened(f"a{n}") for n in range(50)))
    before = await get(database, "a7")
    await record(database, beats=[Beat(f"a{n}", 1, n == 7, [(n + 1, 1)]) for n in range(60)])
    found = await get(database, "a7")
    assert found.draining and found.attempts == [(8, 1)]
    assert found.last_seen_at > before.last_seen_at
    with pytest.raises(AgentNotFound):
        await get(database, "a55")


async def test_an_agent_that_no_hub_has_heard_for_long_is_offline(database: Database) -> None:
    await record(database, opened())
    async with database.begin() as connection:
        await connection.execute(
            sqlalchemy.text("UPDATE agents.agents SET last_seen_at = now() - interval '31 seconds'")
        )
    assert not (await get(database)).online
    await record(database, beats=[Beat("a1", 1, False, [])])
    assert (await get(database)).online


async def test_pages(database: Database) -> None:
    await record(database, *(opened(f"a{n}", agent_group="g" if n % 2 else "h") for n in range(10)))
    async with database.begin() as connection:
        first, more = await registry.list_agents(connection, ListAgents(4))
        assert [a.name for a in first] == ["a0", "a1", "a2", "a3"] and more
        last, more = await registry.list_agents(connection, ListAgents(4, after="a7"))
        assert [a.name for a in last] == ["a8", "a9"] and not more
        group, more = await registry.list_agents(connection, ListAgents(5, agent_group="g"))
        assert [a.name for a in group] == ["a1", "a3", "a5", "a7", "a9"] and not more


async def seen(bench: Bench, name: str, holds: Callable[[admin.Agent], object]) -> admin.Agent:
    """Ask until something holds; the registry is written a little later."""
    stub = await bench.admin()
    while True:
        try:
            agent = (await stub.GetAgent(admin.GetAgentRequest(name=name), timeout=5)).agent
        except grpc.aio.AioRpcError as error:
            assert grpc_error(error).reason == "AGENT_NOT_FOUND"
        else:
            if holds(agent):
                return agent


async def test_an_agent_is_shown_while_it_is_connected_and_after(quick_bench: Bench) -> None:
    agent = await quick_bench.agent("a1", "berlin")
    await agent.hello(slots=3, labels={"site": "x"})
    found = await seen(quick_bench, "a1", lambda a: a.online)
    assert (found.group, found.hub, found.slots, dict(found.labels)) == ("berlin", "hub-1", 3, {"site": "x"})
    assert found.last_seen_time.ToMilliseconds() >= found.connect_time.ToMilliseconds() > 0
    quick_bench.queue.put(assignment(1))
    await agent.until(lambda: agent.assignments)
    await agent.beat([(1, 1)], 2)
    found = await seen(quick_bench, "a1", lambda a: a.attempts)
    assert (found.attempts[0].job_id, found.attempts[0].number) == (1, 1)
    agent.call.cancel()
    await seen(quick_bench, "a1", lambda a: not a.online)


async def test_the_list_is_paged(bench: Bench) -> None:
    for name in ("c", "a", "b"):
        agent = await bench.agent(name)
        await agent.hello()
        await seen(bench, name, lambda a: a.online)
    stub = await bench.admin()
    request = admin.ListAgentsRequest(page_size=2, group="g")
    first = await stub.ListAgents(request, timeout=5)
    assert [a.name for a in first.agents] == ["a", "b"]
    request.page_token = first.next_page_token
    second = await stub.ListAgents(request, timeout=5)
    assert [a.name for a in second.agents] == ["c"]
    assert not second.next_page_token
    request.group = "h"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListAgents(request, timeout=5)
    assert grpc_error(caught.value).reason == "INVALID_TOKEN"


async def test_an_agent_that_moves_to_another_hub_stays_online(bench: Bench) -> None:
    hub = await bench.process("hub-2")
    agent = await bench.agent(hub=hub.endpoints)
    await agent.hello()
    await seen(bench, "a1", lambda a: a.hub == "hub-2")
    moved = await bench.agent()
    await moved.hello()
    await seen(bench, "a1", lambda a: a.hub == "hub-1" and a.online)
    bench.queue.wake()
    await agent.end()  # the queue has told the other hub that its session is stale
    assert await hub.terminate() == 0
    found = await seen(bench, "a1", lambda _: True)
    assert found.online
    assert found.hub == "hub-1"


async def test_dispatch_goes_on_without_the_registry(bench: Bench, postgres: Postgres) -> None:
    """Its database is away for a while; what happened meanwhile is written when it is back. Until then nobody is
    welcomed, since a copy of an agent could not be told from it."""
    agent = await bench.agent()
    await agent.hello()
    await seen(bench, "a1", lambda a: a.online)
    with database_away(bench, postgres):
        bench.queue.put(assignment(1))
        await agent.until(lambda: agent.assignments)
        await agent.call.done_writing()
        await bench.logged.until("registry of agents cannot be written")
        other = await bench.agent("a2")
        assert isinstance(await other.refused(), Unavailable)
    await seen(bench, "a1", lambda a: not a.online)
