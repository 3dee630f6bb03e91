"""The forms in which PostgreSQL's address may be given, and what is no address."""

from __future__ import annotations

import pytest

from services.runtime.postgres_url import parameters

PRIMARY = {"target_session_attrs": "read-write"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://sis@h1:5433/db", {"user": "sis", "host": "h1", "port": "5433", "dbname": "db"}),
        ("postgresql://sis:p%40s@[::1]:5432/db", {"password": "p@s", "host": "::1", "port": "5432"}),
        ("postgresql+psycopg://sis@/db?host=h1:5432&host=h2:5433", {"host": "h1,h2", "port": "5432,5433"}),
        ("postgresql+psycopg://sis@h1:5432,h2:5433/db", {"host": "h1,h2", "port": "5432,5433"}),
        ("postgresql://sis@/db?host=h1,h2&port=5432,5433", {"host": "h1,h2", "port": "5432,5433"}),
        ("postgresql://sis@/db?host=h1&host=h2:5433", {"host": "h1,h2", "port": ",5433"}),
        ("postgresql://sis@/db?host=%2Ftmp%2Fa&host=/tmp/b", {"host": "/tmp/a,/tmp/b"}),
        ("postgresql://sis@/db?host=[::1]:5432&host=h2:5433", {"host": "::1,h2", "port": "5432,5433"}),
        ("postgresql://sis@/db?host=::1", {"host": "::1"}),
        ("postgresql://sis@h/db?sslmode=verify-full&connect_timeout=3", {"sslmode": "verify-full"}),
    ],
)
def test_forms(url: str, expected: dict[str, str]) -> None:
    found = parameters(url)
    assert {name: found[name] for name in expected} == expected
    assert found.items() >= PRIMARY.items()


def test_the_url_has_the_last_word() -> None:
    assert parameters("postgresql://h/db?target_session_attrs=any")["target_session_attrs"] == "any"


@pytest.mark.parametrize(
    "url",
    [
        "h1:5432/db",
        "mysql://sis@h/db",
        "postgresql://sis:s3cret@h/db?nosuch=1",
        "postgresql://sis:s3cret@h:port/db?host=h:1:2&host=b",
        "postgresql://sis:s%3@h/db",
        "postgresql://sis@/db?host=h1:5432&host=a:b",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        parameters(url)
    assert "s3cret" not in str(caught.value)
