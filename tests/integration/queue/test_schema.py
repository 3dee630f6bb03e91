"""The migrations, `tables.metadata` and the enums are one thing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from enum import StrEnum

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Text, make_url, text

from services.queue import listing
from services.queue.frames import StopKind
from services.queue.listing import JobFilter
from services.queue.model import LogVerdict, WaitReason
from services.queue.states import Status, StopState
from services.queue.tables import SCHEMA, JobType, metadata

ENUMS: dict[tuple[str, str], type[StrEnum]] = {
    ("jobs", "type"): JobType,
    ("jobs", "status"): Status,
    ("jobs", "stop_state"): StopState,
    ("jobs", "wait_reason"): WaitReason,
    ("attempts", "stop_wish"): StopKind,
    ("attempts", "stop_begun"): StopKind,
    ("attempts", "verdict"): LogVerdict,
    ("history", "from_status"): Status,
    ("history", "to_status"): Status,
    ("removals", "status"): Status,
}


@pytest.fixture
def connection(queue_database_url: str):  # type: ignore[no-untyped-def]
    engine = sqlalchemy.create_engine(make_url(queue_database_url), poolclass=sqlalchemy.NullPool)
    with engine.connect() as found:
        yield found
    engine.dispose()


def test_the_migrations_leave_the_tables_that_the_code_works_with(connection: sqlalchemy.Connection) -> None:
    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": True,
            "include_name": lambda name, kind, parents: kind != "schema" or name == SCHEMA,
            "include_object": lambda thing, name, kind, reflected, other: name != "alembic_version",
            "compare_server_default": True,
            "compare_type": True,
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # expressions of indexes are compared as text, below
        assert compare_metadata(context, metadata) == []


def test_the_indexes_are_those_of_the_tables(connection: sqlalchemy.Connection) -> None:
    """The comparison above leaves out expressions and conditions; PostgreSQL spells both out."""
    scratch = "scratch"
    query = text(
        "SELECT indexname, replace(indexdef, 'scratch.', 'queue.') AS definition FROM pg_indexes"
        " WHERE schemaname = :schema AND tablename <> 'alembic_version'"
    )
    connection.execute(text(f"CREATE SCHEMA {scratch}"))
    mapped = connection.execution_options(schema_translate_map={SCHEMA: scratch})
    metadata.create_all(mapped)
    found = [set(connection.execute(query, {"schema": schema})) for schema in (SCHEMA, scratch)]
    assert len(found[0]) > 10 and found[0] == found[1]
    connection.rollback()


def test_every_column_that_holds_an_enum_is_held_to_it(connection: sqlalchemy.Connection) -> None:
    found = connection.execute(
        text("""
            SELECT c.conrelid::regclass::text AS of, a.attname AS name, pg_get_constraintdef(c.oid) AS definition
            FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
            WHERE c.contype = 'c' AND c.connamespace = 'queue'::regnamespace AND cardinality(c.conkey) = 1
        """)
    ).all()
    checked = {(r.of.removeprefix("queue."), r.name): set(re.findall(r"'(\w+)'", r.definition)) for r in found}
    assert checked.pop(("jobs", "site_kind")) == {"group", "agent"}
    assert checked == {column: {member.value for member in kind} for column, kind in ENUMS.items()}


def test_no_column_that_could_hold_an_enum_was_forgotten() -> None:
    words = re.compile("status|state|type|verdict|stop_wish|stop_begun|wait_reason")
    could = {
        (table.name, column.name)
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, Text) and words.search(column.name)
    }
    assert could - {("jobs", "status_message")} == set(ENUMS)


def test_free_text_is_found_by_its_index(connection: sqlalchemy.Connection) -> None:
    query = sqlalchemy.select(metadata.tables["queue.jobs"].c.job_id).where(*listing.matching(JobFilter(text="needle")))
    compiled = query.compile(dialect=connection.dialect)
    connection.execute(text("SET enable_seqscan = off"))
    connection.execute(text("DROP INDEX queue.jobs_list"))  # which serves as well while the table is empty
    plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {compiled}", compiled.params).scalars())
    connection.rollback()
    connection.rollback()
    assert "jobs_text" in plan, plan


def _migrate(url: str) -> subprocess.Popen[str]:
    settings = {
        "DATABASE_URL": url, "LISTEN": "127.0.0.1:0", "INTERNAL_LISTEN": "127.0.0.1:0", "TLS_CA": "/dev/null",
        "IDENTITY": "/dev/null", "JOIN_ENDPOINT": "127.0.0.1:0", "JOIN_TOKEN_FILE": "/dev/null",
        "ADMIN_TOKEN_SHA256": "0" * 64,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "services.queue.main", "migrate"],
        env={**os.environ, **{f"SIS_QUEUE_{name}": value for name, value in settings.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_migrating_at_once_and_again_is_safe(database_url: str) -> None:
    running = [_migrate(database_url) for _ in range(3)]
    told = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], told
    again = _migrate(database_url)
    told = [again.communicate(timeout=60)[0]]
    assert again.returncode == 0, told
    engine = sqlalchemy.create_engine(make_url(database_url), poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM queue.alembic_version")).scalar_one() == 1
        assert connection.execute(text("SELECT count(*) FROM queue.jobs")).scalar_one() == 0
    engine.dispose()


def test_the_space_of_the_log_is_used_again_soon(connection: sqlalchemy.Connection) -> None:
    """Of its rows, and of their bodies, which are elsewhere."""
    query = text(
        "SELECT c.reloptions, t.reloptions FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid"
        " WHERE c.oid = 'queue.log'::regclass"
    )
    assert connection.execute(query).one() == (["autovacuum_vacuum_scale_factor=0.05"],) * 2
