"""What a backup keeps, and what a restore takes from it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sis.stack.backup_directory import copy_private


def test_a_copy_is_on_disk_and_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_ino), fsync(number)))
    source, target = tmp_path / "source", tmp_path / "join" / "queue"
    source.write_bytes(b"secret")
    source.chmod(0o644)
    copy_private(source, target)
    assert target.read_bytes() == b"secret"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (target, target.parent)] == [0o600, 0o700]
    assert {target.stat().st_ino, target.parent.stat().st_ino} <= set(synced)
