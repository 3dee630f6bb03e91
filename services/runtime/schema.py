"""What the tables of every service have in common."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from sqlalchemy import CheckConstraint, DateTime, MetaData

Time: Final = DateTime(timezone=True)


@dataclass(frozen=True, slots=True)
class Revision:
    """How far a schema has been migrated. Numbers are compared as texts."""

    schema: str
    number: str


def newest_revision(schema: str, migrations: Path) -> Revision:
    """The one that the code beside the scripts in `migrations/versions` (`v0004_….py`) needs."""
    names = [path.name for path in (migrations / "versions").glob("v[0-9]*_*.py")]
    return Revision(schema, max(name[1:5] for name in names if not is_post(name)))


def is_post(name: str) -> bool:
    """Whether a migration, by the name of its file, is of the phase after an upgrade (see `migrations`)."""
    return name[5:11] == "_post_"


def metadata_of(schema: str) -> MetaData:
    """For the tables of a schema, whose constraints are named as PostgreSQL does it."""
    return MetaData(
        schema=schema,
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "ck": "%(table_name)s_%(constraint_name)s",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
        },
    )


def one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    """The CHECK constraint that holds a column to an enum."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(v.value) for v in values)})", name=f"{column}_known")
