"""Schema migrations by Alembic. Apart from `database`, as only `migrate` needs Alembic, which is slow to import.

They come in two phases. Most run before the first process of a new release starts, while all others are of the release
before, which must get on with them: they expand. What that release could not bear is a migration of the phase after
(`v<NNNN>_post_<what>.py`): it runs when none of its processes is left, by `migrate post`, or at the latest with the
migrations of the next release.
"""

from __future__ import annotations

import logging
from pathlib import Path

import alembic.command
import alembic.config
import alembic.context
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.runtime.database import converted_error
from services.runtime.errors import FailedPrecondition
from services.runtime.postgres_connection import parameters
from services.runtime.schema import is_post

_MIGRATION_SECONDS = 120

_log = logging.getLogger("migrations")


def migrate(url: str, script_location: Path, schema: str, *, post: bool = False) -> None:
    """Bring `schema` to what the release with the Alembic scripts at `script_location` needs, in one transaction; with
    `post` to the newest of all revisions. A schema that is newer already stays as it is.

    `url` must not lead through a pooler. Safe to repeat and to run several times at once: later ones wait.

    Raises:
        Unavailable: PostgreSQL cannot be reached.
        FailedPrecondition: the database cannot hold every text.
    """
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", poolclass=sqlalchemy.NullPool, connect_args=parameters(url, f"{schema} migration")
    )
    config = alembic.config.Config()
    config.set_main_option("script_location", str(script_location).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            connection.execute(text(f"SELECT set_config('statement_timeout', '{_MIGRATION_SECONDS}s', true)"))
            _check_encoding(connection)
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"migrate {schema}"})
            connection.execute(sqlalchemy.schema.CreateSchema(schema, if_not_exists=True))
            config.attributes.update(connection=connection, schema=schema)
            revisions = list(ScriptDirectory.from_config(config).walk_revisions())
            wanted = next(each for each in revisions if post or not is_post(Path(each.path).name))
            passed = {each.revision for each in revisions[revisions.index(wanted) :]}
            current = _current(connection, schema)
            if current is None or current in passed:
                alembic.command.upgrade(config, wanted.revision)
            else:
                _log.info("schema %s is at revision %s already, newer than %s", schema, current, wanted.revision)
    except DBAPIError as error:
        converted = converted_error(error)
        if converted is None:
            raise
        raise converted from error
    finally:
        engine.dispose()


def _check_encoding(connection: sqlalchemy.Connection) -> None:
    name, encoding = connection.execute(text("SELECT current_database(), current_setting('server_encoding')")).one()
    if encoding != "UTF8":
        raise FailedPrecondition(
            f"database {name} is in {encoding}, which cannot hold every text: make one with ENCODING 'UTF8'",
            subject=name,
            condition="NOT_UTF8",
        )


def _current(connection: sqlalchemy.Connection, schema: str) -> str | None:
    """The revision at which a schema is; None for one that was never migrated."""
    return MigrationContext.configure(connection, opts={"version_table_schema": schema}).get_current_revision()


def run_migrations() -> None:
    """The whole of a service's `migrations/env.py`: runs its scripts on the connection of `migrate`."""
    attributes = alembic.context.config.attributes
    alembic.context.configure(connection=attributes["connection"], version_table_schema=attributes["schema"])
    with alembic.context.begin_transaction():
        alembic.context.run_migrations()
