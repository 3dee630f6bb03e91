"""Files of exports: whole under their names, or not there."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path

import pytest

from services.queue.export_files import ExportFile


def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    file = ExportFile(tmp_path)
    file.write(b'{"a": 1}\n')
    (part,) = tmp_path.iterdir()
    assert part.suffix == ".part"
    file.write(b'{"a": 2}\n')
    name = file.finish(3, 17)
    (found,) = tmp_path.iterdir()
    assert found.name == name and name.startswith("jobs-3-17-") and name.endswith(".ndjson.gz")
    assert gzip.decompress(found.read_bytes()) == b'{"a": 1}\n{"a": 2}\n'
    assert stat.S_IMODE(found.stat().st_mode) == 0o600


def test_two_files_of_the_same_jobs_are_two(tmp_path: Path) -> None:
    for _ in range(2):
        file = ExportFile(tmp_path)
        file.finish(1, 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_discarded_leaves_nothing_also_twice(tmp_path: Path) -> None:
    file = ExportFile(tmp_path)
    file.write(b"x\n")
    file.discard()
    file.discard()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed"):
        file.finish(1, 1)
    assert list(tmp_path.iterdir()) == []
