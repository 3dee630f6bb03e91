"""A restore that was killed while it moved what it had made, and one that is not to be killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sis.private_files import write_private
from sis.stack import Options, StackError, down, restore, up
from sis.stack.backup_directory import FILES, MANIFEST
from sis.stack.layout import Layout

# In the order in which they are moved.
PLACES = [*(name for name in FILES if not name.startswith("vault/")), "vault/keys.json", "postgres/PG_VERSION"]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Whoever starts or restores a stack sets it."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.parametrize("moved", range(len(PLACES) + 1))
def test_no_stack_starts_on_half_of_it_and_the_next_restore_finishes_it(tmp_path: Path, moved: int) -> None:
    layout = Layout(tmp_path / "data")
    building = Layout(layout.restoring)
    for number, name in enumerate(PLACES):
        write_private((layout if number < moved else building).data / name, name.encode())
    write_private(layout.restored, b"a backup")
    with pytest.raises(StackError, match="a restore was interrupted"):
        up(Options(layout.data))
    said: list[str] = []
    restore(layout.data, tmp_path / "of no account", said.append)
    assert said == ["restored: a backup; start it with `sis up`"]
    assert [(layout.data / name).read_bytes() for name in PLACES] == [name.encode() for name in PLACES]
    assert not layout.restoring.exists()


@contextmanager
def _under_way(layout: Layout, source: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A restore, in a process of its own, that reads its backup's manifest for as long as the block lasts."""
    program = "import sys; from pathlib import Path; from sis.stack import restore; restore(*map(Path, sys.argv[1:]))"
    source.mkdir()
    os.mkfifo(source / MANIFEST)
    with subprocess.Popen([sys.executable, "-c", program, layout.data, source], stderr=subprocess.DEVNULL) as child:
        try:
            descriptor = _written_to(source / MANIFEST, child)
            try:
                yield child
            finally:
                os.close(descriptor)
            child.wait(20)
        finally:
            child.kill()


def _written_to(fifo: Path, reader: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 20
    while reader.poll() is None and time.monotonic() < deadline:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO, "nobody reads it yet"
            time.sleep(0.02)
    raise AssertionError("the restore has not come to its manifest")


def test_a_restore_that_is_under_way_is_left_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    with _under_way(layout, tmp_path / "backup") as restoring:
        told = rf"^a restore is under way \(PID {restoring.pid}\); wait for it$"
        with pytest.raises(StackError, match=told):
            down(layout.data)
        for detach in (True, False):
            with pytest.raises(StackError, match=told):
                up(Options(layout.data, detach=detach))
        with pytest.raises(StackError, match=told):
            restore(layout.data, tmp_path / "another")
        assert restoring.poll() is None
        assert not layout.log("up").exists(), "nothing was begun"
    assert restoring.returncode == 1, "it came to its own end: what it read is no manifest"
    said: list[str] = []
    assert down(layout.data, said.append) == 0
    assert said == [f"no stack is up in {layout.data}"]
