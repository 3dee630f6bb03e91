"""Schema migrations by Alembic. Apart from `database`, as only `migrate` needs Alembic, which is slow to import."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
import alembic.context
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.runtime.database import converted_error
from services.runtime.postgres_connection import parameters

_MIGRATION_SECONDS = 120


def migrate(url: str, script_location: Path, schema: str) -> None:
    """Bring `schema` to the newest revision of the Alembic scripts at `script_location`, in one transaction.

    `url` must not lead through a pooler. Safe to repeat and to run several times at once: later ones wait.

    Raises:
        Unavailable: PostgreSQL cannot be reached.
    """
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", poolclass=sqlalchemy.NullPool, connect_args=parameters(url, f"{schema} migration")
    )
    config = alembic.config.Config()
    config.set_main_option("script_location", str(script_location).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            connection.execute(text(f"SELECT set_config('statement_timeout', '{_MIGRATION_SECONDS}s', true)"))
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"migrate {schema}"})
            connection.execute(sqlalchemy.schema.CreateSchema(schema, if_not_exists=True))
            config.attributes.update(connection=connection, schema=schema)
            alembic.command.upgrade(config, "head")
    except DBAPIError as error:
        converted = converted_error(error)
        if converted is None:
            raise
        raise converted from error
    finally:
        engine.dispose()


def run_migrations() -> None:
    """The whole of a service's `migrations/env.py`: runs its scripts on the connection of `migrate`."""
    attributes = alembic.context.config.attributes
    alembic.context.configure(connection=attributes["connection"], version_table_schema=attributes["schema"])
    with alembic.context.begin_transaction():
        alembic.context.run_migrations()
