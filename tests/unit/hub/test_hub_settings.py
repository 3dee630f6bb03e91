"""The environment of a hub."""

from __future__ import annotations

import pytest

from services.sis_agent.hub.main import HubSettings

SOUND = {
    "NAME": "hub-1",
    "DATABASE_URL": "postgresql+psycopg://localhost/sis",
    "AGENT_LISTEN": "0.0.0.0:8443",
    "LISTEN": "0.0.0.0:8444",
    "ENROLMENT_LISTEN": "0.0.0.0:8445",
    "QUEUE_ENDPOINT": "queue:7443",
    "CREDENTIALS_ENDPOINT": "credentials:7444",
    "ADMIN_TOKEN_SHA256": "0" * 64,
    "TLS_CA": "ca.pem",
    "IDENTITY": "identity",
    "JOIN_ENDPOINT": "credentials:7445",
    "JOIN_TOKEN_FILE": "token",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in SOUND.items():
        monkeypatch.setenv(f"SIS_HUB_{name}", value)
    return monkeypatch


def test_agent_endpoints_are_optional(environment: pytest.MonkeyPatch) -> None:
    assert HubSettings.load().agent_endpoints == ()
    environment.setenv("SIS_HUB_AGENT_ENDPOINTS", "hub.example:8443, :9443 , [::1]:8443")
    assert HubSettings.load().agent_endpoints == ("hub.example:8443", ":9443", "[::1]:8443")


@pytest.mark.parametrize("value", ["hub.example", "hub.example:", "hub.example:0", "hub:65536", "hub:8443,other"])
def test_agent_endpoints_that_cannot_be_are_refused(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    environment.setenv("SIS_HUB_AGENT_ENDPOINTS", value)
    with pytest.raises(SystemExit):
        HubSettings.load()
    assert "SIS_HUB_AGENT_ENDPOINTS" in capsys.readouterr().err
