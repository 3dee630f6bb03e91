"""The private directory of an attempt, and a payload that plays with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from services.sis_agent.agent import outputs, private_directory, stage
from services.sis_agent.agent.private_directory import OUTPUT, PrivateDirectory, remove_all


@pytest.fixture
def attempt(tmp_path: Path) -> str:
    return f"test.{os.getpid()}.{abs(hash(tmp_path)):x}"


def test_it_is_private_and_in_memory_where_that_can_be_had(attempt: str, tmp_path: Path) -> None:
    made = PrivateDirectory.make(attempt, tmp_path, None)
    memory = private_directory.memory_file_systems()
    assert made.path.parent == (memory[0] if memory else tmp_path)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    path = made.write("secret", b"content")
    assert path.read_bytes() == made.inside("secret").read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        made.write("secret")
    made.remove()
    assert not made.path.exists()


def test_without_a_file_system_in_memory_it_is_beside(
    attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_directory, "memory_file_systems", lambda: (tmp_path / "gone",))
    made = PrivateDirectory.make(attempt, tmp_path, None)
    assert made.path == tmp_path / "private"
    stage.remove_leftovers(attempt, tmp_path)
    assert not made.path.exists()
    stage.remove_leftovers(attempt, tmp_path)


def test_what_takes_its_place_is_neither_read_nor_followed(attempt: str, tmp_path: Path) -> None:
    """As its owner, which may be another account, can do."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / OUTPUT).write_text("password=hunter22\n")
    made = PrivateDirectory.make(attempt, tmp_path, None)
    made.write("secret", b"content")
    moved = made.path.with_name(f"{made.path.name}.moved")
    made.path.rename(moved)
    made.path.symlink_to(treasure)
    assert outputs.read_outputs(made.inside(OUTPUT)).values == {}
    made.remove()
    assert (treasure / OUTPUT).exists()
    assert not made.path.is_symlink()
    # Nothing of what was secret is left, wherever it is.
    assert list(moved.iterdir()) == []
    remove_all(str(moved))


def test_another_name_of_a_file_is_not_read(tmp_path: Path) -> None:
    """A payload may be able to name what it cannot read."""
    (tmp_path / "treasure").write_text("password=hunter22\n")
    os.link(tmp_path / "treasure", tmp_path / "output")
    found = outputs.read_outputs(tmp_path / "output")
    assert found.values == {}
    assert found.problems == ("the file named by SIS_OUTPUT cannot be read: it is a file that has another name, too",)


def test_whatever_was_put_there_is_removed(attempt: str, tmp_path: Path) -> None:
    made = PrivateDirectory.make(attempt, tmp_path, None)
    deep = made.path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "link").symlink_to(tmp_path)
    os.mkfifo(deep / "pipe")
    (tmp_path / "keep").touch()
    made.remove()
    assert not made.path.exists()
    assert (tmp_path / "keep").exists()
