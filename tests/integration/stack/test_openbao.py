"""The embedded server: it unseals itself, survives kill -9, dies with its parent, and refuses to lose what it keeps."""

from __future__ import annotations

import shutil
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sis.stack import processes
from sis.stack.errors import StackError
from sis.stack.openbao import OpenBao
from sis.stack.ports import Reservations
from sis.stack.processes import Child
from tests.support.openbao import OpenBaoServer, until
from tests.support.stopping import stop

SECRET = {"data": {"secret": "kept"}}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    """A server with something in it."""
    with OpenBaoServer(Path(tmp_path_factory.mktemp("with a space")), auto_unseal=True) as server:
        server.root("POST", "sis-kv/data/credentials/a", SECRET)
        yield server


@pytest.fixture
def server(used: OpenBaoServer) -> Iterator[OpenBaoServer]:
    """That server, which is started again after the test."""
    yield used
    used.stop()
    used.server.initialise()
    used.start()
    until(used.server.ready, "a server that works")


def kept(server: OpenBaoServer) -> None:
    assert server.root("GET", "sis-kv/data/credentials/a")["data"]["data"] == SECRET["data"]


def test_what_is_in_it_survives_kill_9_and_it_unseals_itself(server: OpenBaoServer) -> None:
    server.kill()
    assert not server.server.ready()
    with pytest.raises(StackError, match="does not answer"):
        server.server.expect_answer()
    server.stop()
    server.start()
    until(server.server.ready, "a server that works")
    kept(server)


def test_it_goes_on_at_other_ports(server: OpenBaoServer) -> None:
    server.stop()
    former = server.server
    with Reservations() as ports:
        server.server = replace(former, port=ports.take(0), cluster_port=ports.take(0))
        server.server.initialise()
        server.start()
        until(server.server.ready, "a server that works")
        kept(server)
        server.stop()
    server.server = former


def test_a_sealed_one_is_open_again_after_a_restart(server: OpenBaoServer) -> None:
    server.seal()
    server.server.expect_answer()
    assert not server.server.ready()
    server.stop()
    server.start()
    until(server.server.ready, "a server that works")
    kept(server)


def test_only_its_owner_may_read_its_files(used: OpenBaoServer) -> None:
    directory = used.server.directory
    for path in (directory, *directory.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    command = used.server.command()
    assert (used.keys["root_token"] in str(command)) is False


def test_its_certificate_is_good_for_the_strictest(used: OpenBaoServer) -> None:
    context = ssl.create_default_context(cafile=used.server.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in ("127.0.0.1", "localhost"):
        with (
            socket.create_connection(("127.0.0.1", used.server.port), 5) as raw,
            context.wrap_socket(raw, server_hostname=host) as connection,
        ):
            assert connection.version() == "TLSv1.3"


def test_a_certificate_without_its_key_is_made_anew(server: OpenBaoServer) -> None:
    server.stop()
    before = server.server.ca.read_bytes()
    server.server.initialise()
    assert server.server.ca.read_bytes() == before
    server.server.ca.with_name("certificate.key").unlink()
    server.server.initialise()
    assert server.server.ca.read_bytes() != before
    server.start()
    until(server.server.ready, "a server that works")


def test_it_is_not_started_without_the_key_that_opens_its_storage(server: OpenBaoServer) -> None:
    server.stop()
    key = server.server.directory / "unseal.key"
    aside = key.rename(key.with_name("aside"))
    with pytest.raises(StackError, match=r"unseal\.key is gone, .*: put it back"):
        server.server.initialise()
    aside.rename(key)
    server.server.initialise()
    server.start()
    until(server.server.ready, "a server that works")
    kept(server)


def test_without_its_administrators_keys_nothing_is_thrown_away(server: OpenBaoServer) -> None:
    server.stop()
    keys = server.server.keys
    aside = keys.rename(keys.with_name("aside"))
    server.server.initialise()
    server.start()
    until(server.server.ready, "a server that works")
    aside.rename(keys)
    kept(server)


@pytest.mark.parametrize("content", [b"{}\n", b"", b"{", b'{"initialising": "another storage"}\n', None])
def test_when_the_keys_file_was_destroyed_nothing_is_thrown_away(server: OpenBaoServer, content: bytes | None) -> None:
    server.stop()
    keys = server.server.keys
    aside = keys.rename(keys.with_name("aside"))
    if content is None:
        keys.mkdir()
    else:
        keys.write_bytes(content)
    server.server.initialise()
    server.start()
    until(server.server.ready, "a server that works")
    if content is None:
        keys.rmdir()
    else:
        keys.unlink()
    aside.rename(keys)
    kept(server)


def test_a_storage_from_before_it_had_a_name_is_kept(server: OpenBaoServer) -> None:
    server.stop()
    (server.server.directory / "storage" / "id").unlink()
    server.server.initialise()
    server.start()
    until(server.server.ready, "a server that works")
    kept(server)


def test_a_server_that_lost_its_parent_is_ended_before_another_starts(server: OpenBaoServer) -> None:
    left = server.server.survivors()
    assert len(left) == 1
    assert stop(left[0].pid)  # one that does not even hear that it should end
    settling = subprocess.run(
        [sys.executable, "-P", "-c", _SETTLE, str(server.server.directory), str(server.server.log)],
        timeout=60,
        check=False,
    )
    assert settling.returncode == 0
    assert server.server.survivors() == []


_SETTLE = """
import sys
from pathlib import Path
from sis.stack import openbao
openbao.STOP_SECONDS = 0.5
openbao.OpenBao(Path(sys.argv[1]), 1, 2, Path(sys.argv[2])).settle()
"""


def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.support.openbao import OpenBaoServer\n"
        "with OpenBaoServer(Path(sys.argv[1]), auto_unseal=True, prepared=False) as server:\n"
        "    print(server.server.port, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        server = OpenBao(tmp_path / "vault", port, 0, tmp_path / "openbao.log")
        left = server.survivors()
        assert len(left) == 1
        parent.kill()
    assert processes.wait_gone(left, 10) == []


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with Reservations() as ports:
        server = OpenBao(tmp_path / "vault", ports.take(0), ports.take(0), tmp_path / "openbao.log")
        server.initialise()
        shutil.rmtree(tmp_path / "vault" / "storage")
        (tmp_path / "vault" / "storage").touch()
        child = Child(server.command())
        assert child.wait(20) not in (None, 0)
        child.close()
        with pytest.raises(StackError, match=r"does not answer at https://127\.0\.0\.1:\d+; see .*openbao\.log: .+"):
            server.expect_answer()
