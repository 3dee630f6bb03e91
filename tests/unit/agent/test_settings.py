"""The agent's environment is read strictly, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.sis_agent.agent.settings import AgentSettings, default_state
from services.sis_agent.hub import convert
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as dispatch

GOOD = {
    "STATE": "/var/lib/sis",
    "HUB_ENDPOINTS": "one:1, [::1]:2,",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(f"SIS_AGENT_{name}", value)
    return monkeypatch


def test_lists_and_pairs_are_separated_by_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SIS_AGENT_LABELS", "rack=12, note=a=b ,empty=")
    settings = AgentSettings.load()
    assert settings.hub_endpoints == ("one:1", "[::1]:2")
    assert settings.labels == {"rack": "12", "note": "a=b", "empty": ""}
    assert (settings.slots, settings.cache_bytes, settings.process_limit) == (8, 2 << 30, 4_096)


def test_nothing_has_to_be_given(environment: pytest.MonkeyPatch) -> None:
    for name in GOOD:
        environment.delenv(f"SIS_AGENT_{name}")
    settings = AgentSettings.load()
    assert settings.state == default_state()
    assert settings.identity == settings.state / "identity"
    assert settings.hub_endpoints == ()
    environment.setenv("SIS_AGENT_HUB_ENDPOINTS", "")
    assert AgentSettings.load().hub_endpoints == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLOTS", "0"),
        ("PROCESS_LIMIT", "15"),
        ("PROCESS_LIMIT", "-1"),
        ("PROCESS_LIMIT", "4194305"),
        ("SLOTS", "1001"),
        ("SLOTS", "many"),
        ("HUB_ENDPOINTS", "one:1,nowhere"),
        ("LABELS", "rack"),
        ("LABELS", "=12"),
        ("LABELS", ",".join(f"name-{number}=x" for number in range(33))),
        ("LABELS", f"{'n' * 64}=x"),
        ("LABELS", f"name={'x' * 201}"),
        ("LABELS", "na\tme=x"),
        ("LABELS", "name=x\x1b[1mx"),
        ("LABELS", "name=\udcff"),
    ],
)
def test_what_is_wrong_is_named(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    environment.setenv(f"SIS_AGENT_{name}", value)
    with pytest.raises(SystemExit) as ended:
        AgentSettings.load()
    assert ended.value.code == 2
    assert f"error: SIS_AGENT_{name}" in capsys.readouterr().err


def test_as_many_and_as_long_labels_are_taken_as_the_hub_takes(environment: pytest.MonkeyPatch) -> None:
    """Of more, the agent heard only from the hub, which never let it come online."""
    labels = {f"{number:n>63}": "x" * 200 for number in range(32)}
    environment.setenv("SIS_AGENT_LABELS", ",".join(f"{name}={value}" for name, value in labels.items()))
    hello = dispatch.AgentHello(journal_id="x", slots=1, labels=AgentSettings.load().labels)
    assert convert.hello(stream.ConnectRequest(hello=hello))[0].labels == labels


def test_a_relative_state_directory_is_the_same_wherever_a_payload_is_started(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SIS_AGENT_STATE", "agent-1")
    assert AgentSettings.load().state == Path.cwd() / "agent-1"
