"""The shipped package `files.push`, run on files of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import resource
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sis.packages import shipped
from sis.packages.values import File, Given
from tests.integration.packages.operation_runner import Runner

CONTENT = File("motd", b"Welcome\0\xff\n")
SHA256 = hashlib.sha256(CONTENT.content).hexdigest()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of the machine, beside what the operations themselves need."""
    directory = tmp_path / "site"
    directory.mkdir()
    return directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def told(run: Runner, **inputs: Given) -> list[tuple[str, str | None, str | None]]:
    """What check says that push would change."""
    ended = run("files.push", "check", **inputs)
    assert (ended.exit_code, ended.stderr) == (0, "")
    found = [(each["name"], each["from"], each["to"]) for each in json.loads(ended.outputs["differences"])]
    assert ended.outputs == {
        "would_change": "true" if found else "false",
        "differences": ended.outputs["differences"],
        "sha256": SHA256,
    }
    return found


def test_a_file_is_pushed_once(run: Runner, site: Path) -> None:
    path = site / "mo td"
    assert told(run, content=CONTENT, path=str(path)) == [("content", None, SHA256)]
    assert names(site) == []
    ended = run("files.push", "push", content=CONTENT, path=str(path))
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.outputs == {"changed": "true", "sha256": SHA256}
    assert ended.progress[-1] == "100 done"
    assert (path.read_bytes(), mode(path), names(site)) == (CONTENT.content, 0o644, ["mo td"])
    before = path.stat()
    ended = run("files.push", "push", content=CONTENT, path=str(path), backup="true", mode="644")
    assert ended.outputs == {"changed": "false", "sha256": SHA256}
    assert path.stat() == before
    assert told(run, content=CONTENT, path=str(path)) == []


def test_what_is_not_asked_for_stays(run: Runner, site: Path) -> None:
    path = site / "motd"
    path.write_bytes(b"former")
    path.chmod(0o640)
    asked = {"content": CONTENT, "path": str(path), "backup": "true"}
    assert told(run, **asked) == [("content", hashlib.sha256(b"former").hexdigest(), SHA256)]
    assert names(site) == ["motd"]
    ended = run("files.push", "push", **asked)
    assert (ended.exit_code, ended.outputs["changed"]) == (0, "true")
    backup = Path(ended.outputs["backup"])
    assert names(site) == ["motd", backup.name]
    assert (path.read_bytes(), backup.read_bytes()) == (CONTENT.content, b"former")
    assert (mode(path), mode(backup)) == (0o640, 0o640)


def test_a_mode_alone_is_a_difference(run: Runner, site: Path) -> None:
    path = site / "motd"
    path.write_bytes(CONTENT.content)
    path.chmod(0o600)
    asked = {"content": CONTENT, "path": str(path), "mode": "4750", "backup": "true"}
    assert told(run, **asked) == [("mode", "0600", "4750")]
    assert mode(path) == 0o600
    ended = run("files.push", "push", **asked)
    assert ended.outputs == {"changed": "true", "sha256": SHA256}
    assert (mode(path), names(site)) == (0o4750, ["motd"])


def test_directories_are_made_where_that_is_wanted(run: Runner, site: Path) -> None:
    path = site / "a" / "b" / "motd"
    for operation in ("push", "check"):
        ended = run("files.push", operation, content=CONTENT, path=str(path))
        assert (ended.exit_code, ended.outputs) == (1, {})
        assert ended.stderr == f"there is no directory {path.parent}: make it, or set create_directories\n"
    asked = {"content": CONTENT, "path": str(path), "create_directories": "true"}
    assert told(run, **asked, mode="600") == [("content", None, SHA256), ("mode", None, "0600")]
    assert names(site) == []
    assert run("files.push", "push", **asked).outputs["changed"] == "true"
    assert (path.read_bytes(), mode(path.parent), mode(site / "a")) == (CONTENT.content, 0o755, 0o755)


def test_a_file_is_removed_once(run: Runner, site: Path) -> None:
    path = site / "motd"
    path.write_bytes(b"former")
    assert run("files.push", "remove", path=str(path)).outputs == {"changed": "true"}
    assert names(site) == []
    assert run("files.push", "remove", path=str(path)).outputs == {"changed": "false"}
    assert run("files.push", "remove", path=str(path / "below")).outputs == {"changed": "false"}


@pytest.mark.parametrize("operation", ["push", "check", "remove"])
def test_only_a_plain_file_is_replaced_or_removed(run: Runner, site: Path, operation: str) -> None:
    (site / "file").write_bytes(b"former")
    (site / "link").symlink_to("file")
    (site / "nowhere").symlink_to("nothing")
    (site / "directory").mkdir()
    os.mkfifo(site / "pipe")
    there = names(site)
    for name, words in {
        "link": "is a symbolic link",
        "nowhere": "is a symbolic link",
        "directory": "is a directory",
        "pipe": "is a device, a pipe or a socket",
        "file/below": "Not a directory",
        "directory/../file": 'has "." or ".." in it',
    }.items():
        content = {} if operation == "remove" else {"content": CONTENT}
        ended = run("files.push", operation, path=str(site / name), **content)
        assert (ended.exit_code, ended.outputs, ended.stdout) == (1, {}, "")
        assert words in ended.stderr
    assert names(site) == there
    assert (site / "file").read_bytes() == b"former"


def test_a_directory_may_be_reached_by_a_link(run: Runner, site: Path) -> None:
    (site / "real").mkdir()
    (site / "link").symlink_to("real")
    assert run("files.push", "push", content=CONTENT, path=str(site / "link" / "motd")).outputs["changed"] == "true"
    assert (site / "real" / "motd").read_bytes() == CONTENT.content


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"owner": "no-such-user"}, "there is no user no-such-user on this machine"),
        ({"group": "4294967295"}, "there is no group 4294967295 on this machine"),
    ],
)
def test_accounts_that_are_not_there(run: Runner, site: Path, values: dict[str, str], words: str) -> None:
    for operation in ("push", "check"):
        ended = run("files.push", operation, content=CONTENT, path=str(site / "motd"), **values)
        assert (ended.exit_code, ended.stderr, names(site)) == (1, words + "\n", [])


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """No file grows beyond this size, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failure_leaves_everything_as_it_was(run: Runner, site: Path) -> None:
    path = site / "motd"
    path.write_bytes(b"former" * 100_000)
    before = path.stat()
    with longest_file(200_000):
        ended = run("files.push", "push", content=CONTENT, path=str(path), backup="true")
    assert (ended.exit_code, ended.stderr) == (1, f"{path}: File too large\n")
    assert (names(site), path.stat().st_ino) == (["motd"], before.st_ino)
    long = site / "a" / "b" / ("c" * 256)
    ended = run("files.push", "push", content=CONTENT, path=str(long), create_directories="true")
    assert (ended.exit_code, ended.stderr) == (1, f"{long}: File name too long\n")
    assert names(site) == ["motd"]


def test_a_stop_leaves_everything_as_it_was(site: Path, tmp_path: Path) -> None:
    path = site / "motd"
    path.write_bytes(b"former")
    (tmp_path / "content").write_bytes(CONTENT.content)

    # The signal waits from the beginning.
    launcher = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM});"
        "os.kill(os.getpid(), signal.SIGTERM); os.execv(sys.executable, [sys.executable, '-B', *sys.argv[1:]])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", launcher, shipped() / "files.push" / "files.py", "push"],
        env={
            "SIS_OUTPUT": "/dev/null",
            "SIS_PROGRESS": "/dev/null",
            "SIS_PARAM_CONTENT": str(tmp_path / "content"),
            "SIS_PARAM_PATH": str(path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "stopped\n")
    assert (names(site), path.read_bytes()) == (["motd"], b"former")


@pytest.mark.root
def test_owner_and_group(run: Runner, site: Path) -> None:
    path = site / "motd"
    asked = {"content": CONTENT, "path": str(path), "owner": "nobody", "group": "12345"}
    nobody = pwd.getpwnam("nobody").pw_uid
    assert run("files.push", "push", **asked, mode="2750").outputs["changed"] == "true"
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (nobody, 12345, 0o2750)
    assert run("files.push", "push", **asked).outputs["changed"] == "false"
    asked["owner"], asked["group"] = "12346", "12347"
    assert told(run, **asked) == [("owner", "nobody", "12346"), ("group", "12345", "12347")]
    assert run("files.push", "push", **asked).outputs["changed"] == "true"
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (12346, 12347, 0o2750)
    ended = run("files.push", "push", content=File("x", b"other"), path=str(path), backup="true")
    # The former program lends nobody its group any more.
    for each, bits in ((path, 0o2750), (Path(ended.outputs["backup"]), 0o750)):
        assert (each.stat().st_uid, each.stat().st_gid, mode(each)) == (12346, 12347, bits)


@pytest.fixture
def small_disk(site: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", site], check=True, timeout=60)
    yield site
    subprocess.run(["umount", site], check=True, timeout=60)


@pytest.mark.root
def test_a_full_disk(run: Runner, small_disk: Path) -> None:
    path = small_disk / "a" / "motd"
    large = File("large", bytes(100_000))
    ended = run("files.push", "push", content=large, path=str(path), create_directories="true")
    assert (ended.exit_code, ended.stderr) == (1, f"{path}: No space left on device\n")
    assert names(small_disk) == []


@pytest.mark.root
def test_an_access_list_stays_with_its_file(run: Runner, small_disk: Path) -> None:
    """And what the directory would give to new files is for new files alone."""
    # u::rw-, u:12345:r--, g::---, m::r--, o::---, in the form of the kernel.
    entries = ((1, 6, -1), (2, 4, 12345), (4, 0, -1), (16, 4, -1), (32, 0, -1))
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    listed, plain = small_disk / "listed", small_disk / "plain"
    for path in (listed, plain):
        path.write_bytes(b"former")
        path.chmod(0o640)
    os.setxattr(listed, "system.posix_acl_access", access)
    os.setxattr(small_disk, "system.posix_acl_default", access)
    for path in (listed, plain):
        ended = run("files.push", "push", content=CONTENT, path=str(path), backup="true")
        assert ended.exit_code == 0
        for each in (path, Path(ended.outputs["backup"])):
            assert mode(each) == 0o640
            assert ("system.posix_acl_access" in os.listxattr(each)) == (path is listed)
    assert os.getxattr(listed, "system.posix_acl_access") == access


@pytest.mark.root
def test_a_file_that_cannot_be_replaced(run: Runner, site: Path) -> None:
    """One that is a mount point: all is ready when the last step fails."""
    path = site / "motd"
    path.write_bytes(b"former")
    subprocess.run(["mount", "--bind", path, path], check=True, timeout=60)
    try:
        ended = run("files.push", "push", content=CONTENT, path=str(path), backup="true")
    finally:
        subprocess.run(["umount", path], check=True, timeout=60)
    assert (ended.exit_code, ended.stderr) == (1, f"{path}: Device or resource busy\n")
    assert (names(site), path.read_bytes()) == (["motd"], b"former")
