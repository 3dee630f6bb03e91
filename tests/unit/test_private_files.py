"""A private file is its owner's alone, and there whole or as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sis.private_files import make_private, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_with_the_directories_that_are_missing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "a" / "b" / "secret"
    umask = os.umask(0)
    try:
        write_private(path, b"one")
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"one"
    assert [mode(each) for each in (path, *path.parents[:3])] == [0o600, 0o700, 0o700, 0o755]


def test_it_is_replaced_whatever_an_interrupted_write_has_left(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"one")
    path.chmod(0o644)
    (tmp_path / ".secret.new").write_bytes(b"half")
    write_private(path, b"two")
    assert (path.read_bytes(), mode(path)) == (b"two", 0o600)
    write_private(path, b"three", mode=0o644)
    assert (path.read_bytes(), mode(path)) == (b"three", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, b"one")
    (tmp_path / ".secret.new").mkdir()
    with pytest.raises(OSError, match="irectory"):
        write_private(path, b"two")
    assert path.read_bytes() == b"one"


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    make_private(tmp_path)
    assert mode(tmp_path) == 0o750
