from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Endpoint, ServiceSettings, Sha256Hex


class ThingSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="SIS_THING_")

    listen: Endpoint
    admin_token_sha256: Sha256Hex
    slots: int = 8


COMPLETE = {
    "SIS_THING_TLS_CA": "/tls/ca.pem",
    "SIS_THING_IDENTITY": "/identity",
    "SIS_THING_HOST_NAMES": "queue.example.com, 10.0.0.1",
    "SIS_THING_JOIN_ENDPOINT": "credentials:7403",
    "SIS_THING_JOIN_TOKEN_FILE": "/join.token",
    "SIS_THING_LISTEN": "[::1]:0",
    "SIS_THING_ADMIN_TOKEN_SHA256": "ab" * 32,
}


def load(monkeypatch: pytest.MonkeyPatch, **changes: str) -> ThingSettings:
    for name, value in {**COMPLETE, **changes}.items():
        monkeypatch.setenv(name, value)
    return ThingSettings.load()


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, SIS_THING_SLOTS="3")
    assert settings.listen == "[::1]:0"
    assert settings.slots == 3
    assert (settings.tls_ca, settings.identity) == (Path("/tls/ca.pem"), Path("/identity"))
    assert settings.host_names == ("queue.example.com", "10.0.0.1")


def test_every_problem_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(monkeypatch, SIS_THING_LISTEN="nowhere", SIS_THING_SLOTS="many")
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert "error: SIS_THING_LISTEN: give host:port, with a port from 0 to 65535" in lines
    assert len(lines) == 2
    assert lines[1].startswith("error: SIS_THING_SLOTS: ")


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ThingSettings.load()
    assert "error: SIS_THING_TLS_CA is not set" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("value", ["host", ":1", "host:", "host:65536", "host:-1", "host:x", "host:²"])
def test_a_wrong_endpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit):
        load(monkeypatch, SIS_THING_LISTEN=value)
    assert "SIS_THING_LISTEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value",
    ["queue:7402", "[::1]:7402", "ipv4:10.0.0.1:7402", "ipv4:10.0.0.1:7402,10.0.0.2:7402", "ipv6:[::1]:1,[fe80::2]:2"],
)
def test_replicas_are_a_target(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert load(monkeypatch, SIS_THING_JOIN_ENDPOINT=value).join_endpoint == value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("credentials", "give host:port"),
        ("ipv4:", "give host:port"),
        ("ipv4:10.0.0.1:7402,", "give host:port"),
        ("ipv4:10.0.0.1:7402,10.0.0.2", "give host:port"),
        ("ipv4:queue-1:7402,queue-2:7402", "'queue-1' is no address of ipv4; give a name alone"),
        ("ipv6:10.0.0.1:7402", "'10.0.0.1' is no address of ipv6"),
    ],
)
def test_what_is_no_target_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, problem: str
) -> None:
    with pytest.raises(SystemExit):
        load(monkeypatch, SIS_THING_JOIN_ENDPOINT=value)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: SIS_THING_JOIN_ENDPOINT: ")
    assert problem in line


def test_what_the_environment_lacks_comes_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounted = tmp_path / "..data"  # as Kubernetes mounts a Secret, to change all of it at once
    mounted.mkdir()
    for name, value in {"SIS_THING_ADMIN_TOKEN_SHA256": "cd" * 32 + "\n", "SIS_THING_SLOTS": "5", "other": "x"}.items():
        (mounted / name).write_text(value)
        (tmp_path / name).symlink_to(Path("..data") / name)
    monkeypatch.setenv("SIS_SECRETS", str(tmp_path))
    for name, value in {**COMPLETE, "SIS_THING_SLOTS": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SIS_THING_ADMIN_TOKEN_SHA256")
    settings = ThingSettings.load()
    assert settings.admin_token_sha256 == "cd" * 32
    assert settings.slots == 3, "the environment goes before the files"


def test_a_directory_of_secrets_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(monkeypatch, SIS_SECRETS=str(tmp_path / "none"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"error: SIS_SECRETS: {tmp_path}/none is no directory; name that of the files with secrets\n"
    )
