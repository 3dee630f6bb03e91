"""Alembic's entry: `services.runtime.migrations.migrate` runs the scripts."""

from services.runtime.migrations import run_migrations

run_migrations()
