"""The migrations, `tables.metadata` and the enums are one thing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import make_url, text

from services.credentials.kinds import Kind
from services.credentials.tables import SCHEMA, State, metadata
from tests.integration.credentials.keysafe import keysafe_template, keysafe_url

__all__ = ["keysafe_template", "keysafe_url"]  # fixtures

ENUMS: dict[tuple[str, str], type[StrEnum]] = {("credentials", "kind"): Kind, ("credentials", "state"): State}


@pytest.fixture
def connection(keysafe_url: str) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(make_url(keysafe_url), poolclass=sqlalchemy.NullPool)
    with engine.connect() as found:
        yield found
    engine.dispose()


def test_the_migrations_leave_the_tables_that_the_code_works_with(connection: sqlalchemy.Connection) -> None:
    def ours(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "schema" or name == SCHEMA

    def known(thing: object, name: str | None, *_: Any) -> bool:
        return name != "alembic_version"

    options = {
        "include_schemas": True,
        "include_name": ours,
        "include_object": known,
        "compare_server_default": True,
        "compare_type": True,
    }
    context = MigrationContext.configure(connection, opts=options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # expressions of indexes are compared as text, below
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize(
    "query",
    [
        "SELECT indexname, replace(indexdef, 'scratch.', 'credentials.') FROM pg_indexes"
        " WHERE schemaname = :schema AND tablename <> 'alembic_version'",
        "SELECT conname, replace(pg_get_constraintdef(oid), 'scratch.', 'credentials.') FROM pg_constraint"
        " WHERE connamespace = CAST(:schema AS regnamespace) AND conname NOT LIKE 'alembic%'",
    ],
)
def test_indexes_and_constraints_are_those_of_the_tables(connection: sqlalchemy.Connection, query: str) -> None:
    """The comparison above leaves out expressions and conditions; PostgreSQL spells both out."""
    connection.execute(text("CREATE SCHEMA scratch"))
    metadata.create_all(connection.execution_options(schema_translate_map={SCHEMA: "scratch"}))
    found = [set(connection.execute(text(query), {"schema": schema})) for schema in (SCHEMA, "scratch")]
    assert len(found[0]) > 10 and found[0] == found[1]
    connection.rollback()


def test_every_column_that_holds_an_enum_is_held_to_it(connection: sqlalchemy.Connection) -> None:
    found = connection.execute(
        text("""
            SELECT c.conrelid::regclass::text AS of, a.attname AS name, pg_get_constraintdef(c.oid) AS definition
            FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
            WHERE c.contype = 'c' AND c.connamespace = 'credentials'::regnamespace AND cardinality(c.conkey) = 1
        """)
    ).all()
    checked = {(r.of.removeprefix("credentials."), r.name): set(re.findall(r"'(\w+)'", r.definition)) for r in found}
    assert checked == {column: {member.value for member in kind} for column, kind in ENUMS.items()}


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("state = 'DELETING' OR state = 'ABANDONED' AND deleted_at IS NULL", "credentials_leaving"),
        ("intent IS NOT NULL AND intent_at < now()", "credentials_intent"),
        ("expires_at IS NOT NULL AND expires_at <= now()", "credentials_expiry"),
        ("name = 'a' AND state IN ('PENDING', 'READY', 'VALUE_MISSING', 'DELETING')", "credentials_"),
        ("for_one_job AND job_id IS NOT NULL", "credentials_job"),
        ("state = 'VALUE_MISSING'", "credentials_watched"),
    ],
)
def test_what_is_looked_for_again_and_again_has_an_index(
    connection: sqlalchemy.Connection, query: str, index: str
) -> None:
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    plan = "\n".join(connection.execute(text(f"EXPLAIN SELECT * FROM credentials.credentials WHERE {query}")).scalars())
    connection.rollback()
    assert f"Scan using {index}" in plan or f"Scan on {index}" in plan, plan
