"""What is asked of retention is what the environment says, or it is refused in words."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from services.queue.main import QueueSettings
from services.queue.retention import Rules

COMPLETE = {
    "TLS_CA": "/ca.pem",
    "IDENTITY": "/identity",
    "JOIN_ENDPOINT": "credentials:7403",
    "JOIN_TOKEN_FILE": "/join.token",
    "LISTEN": "127.0.0.1:0",
    "INTERNAL_LISTEN": "127.0.0.1:0",
    "DATABASE_URL": "postgresql+psycopg://sis@db/sis",
    "ADMIN_TOKEN_SHA256": "ab" * 32,
}


def load(monkeypatch: pytest.MonkeyPatch, **changes: str) -> QueueSettings:
    for name, value in {**COMPLETE, **changes}.items():
        monkeypatch.setenv(f"SIS_QUEUE_{name}", value)
    return QueueSettings.load()


def test_everything_is_kept_unless_something_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch).retention is None


def test_an_age_in_days_and_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(monkeypatch, RETENTION_AGE="0.5", RETENTION_COUNT="1000", RETENTION_EXPORT="/exports")
    assert found.retention == Rules(timedelta(hours=12), 1000) and found.retention_export == Path("/exports")
    monkeypatch.delenv("SIS_QUEUE_RETENTION_AGE")
    assert load(monkeypatch).retention == Rules(None, 1000)


def test_an_empty_directory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, RETENTION_EXPORT="").retention_export is None
    assert load(monkeypatch, RETENTION_EXPORT="", RETENTION_AGE="1").retention_export is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("RETENTION_AGE", value) for value in ("0", "-1", "nan", "inf", "36501", "long")),
        *(("RETENTION_COUNT", value) for value in ("0", "-1", "1.5", "many")),
    ],
)
def test_what_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    with pytest.raises(SystemExit):
        load(monkeypatch, **{name: value})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: SIS_QUEUE_{name}: ")


def test_an_export_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(monkeypatch, RETENTION_EXPORT="/exports")
    assert capsys.readouterr().err == (
        "error: SIS_QUEUE_RETENTION_EXPORT: nothing is deleted;"
        " set SIS_QUEUE_RETENTION_AGE or SIS_QUEUE_RETENTION_COUNT too\n"
    )
