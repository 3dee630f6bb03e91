"""What the tables of every service have in common."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sqlalchemy import CheckConstraint, DateTime, MetaData

Time: Final = DateTime(timezone=True)


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
