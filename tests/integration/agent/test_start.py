"""`sis-agent` where it cannot serve: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agent_process import write_identity
from tests.support.certificates import CertificateAuthority

_AGENT = (sys.executable, "-P", "-m", "services.sis_agent.agent.main")


def run(state: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_AGENT, *arguments],
        env={**os.environ, "SIS_AGENT_STATE": str(state)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_start_by_mistake_makes_no_state_directory(tmp_path: Path) -> None:
    done = run(tmp_path / "state")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: there is no identity in {tmp_path}/state/identity: have `sis agents pair")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/state"])
def test_a_state_directory_that_cannot_be_used(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    done = run(tmp_path / below)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/{below}/agent.lock: Not a directory; name another with SIS_AGENT_STATE\n"


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "ca.pem", "identity.json"])
def test_an_identity_with_a_damaged_file(tmp_path: Path, name: str) -> None:
    """It is said at once, by the name of the file, and with what to do."""
    state = tmp_path / "state"
    write_identity(state, CertificateAuthority(tmp_path / "tls"))
    file = state / "identity" / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    for content in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        file.write_bytes(content)
        done = run(state)
        assert done.returncode == 1
        assert name in done.stderr
        assert done.stderr.startswith(f"error: {state}/identity/")
        assert done.stderr.endswith(": enrol again\n")


@pytest.mark.parametrize("name", ["journal", "attempts", "packages"])
def test_a_state_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    state = tmp_path / "state"
    write_identity(state, CertificateAuthority(tmp_path / "tls"))
    (state / name).symlink_to(tmp_path / "state" / name)
    done = run(state)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {state}/{name}: ")
    assert done.stderr.endswith("; name another with SIS_AGENT_STATE\n")
    assert "Traceback" not in done.stderr


def test_an_enrolment_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # Well-formed: whose it is nobody asks before there is a place for what comes of it.
    code = f"sis1-aaaaaaaa-{'a' * 32}-{'a' * 32}"
    done = run(tmp_path / "file", "enrol", "--hub", "127.0.0.1:1", "--code", "-", stdin=code)
    assert done.returncode == 1
    assert done.stderr.endswith(": Not a directory; name another with --state or SIS_AGENT_STATE\n")
    assert done.stderr.startswith(f"error: {tmp_path}/file/")


def test_a_code_is_asked_for_at_a_terminal_and_not_shown(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [*_AGENT, "enrol", "--hub", "127.0.0.1:1", "--code", "-", "--state", str(tmp_path)]
    # A session of its own: else the question would go to the terminal of whoever runs the tests.
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        shown = ""
        while "Pairing code: " not in shown:
            shown += os.read(master, 1024).decode()
        os.write(master, b"sis1-hush\n")
        assert process.wait(20) == 2
        shown += os.read(master, 1024).decode()
    os.close(master)
    assert "this is no pairing code" in shown
    assert "hush" not in shown
