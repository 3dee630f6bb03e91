"""Alembic's entry: `services.runtime.database.migrate` runs the scripts."""

from services.runtime.database import run_migrations

run_migrations()
