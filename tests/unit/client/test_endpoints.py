from __future__ import annotations

import json
from pathlib import Path

import pytest

from sis.client import ConfigurationError
from sis.client.endpoints import data_directory, find


def stack(directory: Path, **changes: str) -> Path:
    """The files that `sis up` leaves in its data directory."""
    directory.mkdir(exist_ok=True)
    (directory / "ca.pem").write_bytes(b"PEM")
    (directory / "admin.token").write_text("the-token\n")
    content = {
        "queue_endpoint": "127.0.0.1:1",
        "hub_endpoint": "127.0.0.1:2",
        "credentials_endpoint": "127.0.0.1:3",
        "enrolment_endpoint": "127.0.0.1:4",
        "ca": str(directory / "ca.pem"),
        "token": str(directory / "admin.token"),
    }
    (directory / "stack.json").write_text(json.dumps({**content, **changes}))
    return directory


def test_the_local_stack(tmp_path: Path) -> None:
    found = find(stack(tmp_path), {})
    assert (found.queue, found.hub, found.credentials) == ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    assert found.enrolment == "127.0.0.1:4"
    assert (found.token, found.ca) == ("the-token", b"PEM")


def test_a_token_is_not_shown(tmp_path: Path) -> None:
    assert "the-token" not in repr(find(stack(tmp_path), {}))


def test_sis_data_names_the_local_stack(tmp_path: Path) -> None:
    assert find(None, {"SIS_DATA": str(stack(tmp_path))}).queue == "127.0.0.1:1"


def test_the_default_is_in_the_home() -> None:
    assert data_directory(None, {}) == Path.home() / ".local/share/sis"


def remote(directory: Path) -> dict[str, str]:
    return {
        "SIS_QUEUE_ENDPOINT": "queue.example:443",
        "SIS_TOKEN_FILE": str(directory / "admin.token"),
        "SIS_CA": str(directory / "ca.pem"),
        "SIS_DATA": str(directory),
    }


def test_the_environment_names_a_remote_suite(tmp_path: Path) -> None:
    found = find(None, remote(stack(tmp_path)))
    assert (found.queue, found.hub, found.enrolment, found.ca) == ("queue.example:443", "", "", b"PEM")


def test_a_given_directory_comes_first(tmp_path: Path) -> None:
    assert find(stack(tmp_path), remote(tmp_path)).queue == "127.0.0.1:1"


def test_no_stack_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sis up --detach"):
        find(tmp_path / "nowhere", {})


@pytest.mark.parametrize("content", ["", "[]", "{}", "\xff"])
def test_a_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "stack.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigurationError, match="damaged"):
        find(tmp_path, {})


def test_a_remote_suite_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SIS_TOKEN_FILE"):
        find(None, {"SIS_QUEUE_ENDPOINT": "queue.example:443"})


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    environment = remote(stack(tmp_path))
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(ConfigurationError, match=r"ca\.pem, named by SIS_CA, cannot be read"):
        find(None, environment)


def test_a_token_file_that_holds_none(tmp_path: Path) -> None:
    stack(tmp_path)
    (tmp_path / "admin.token").write_text("two\nlines")
    with pytest.raises(ConfigurationError, match="does not hold a token"):
        find(tmp_path, {})
