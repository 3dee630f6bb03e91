"""The private directory of an attempt, and a payload that plays with it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.removal import remove_tree
from services.sis_agent.agent.recording import outputs
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision import private_directory, stage
from services.sis_agent.agent.supervision.private_directory import OUTPUT, PrivateDirectory, name_of
from services.sis_agent.agent.supervision.run_as import Account
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from sis.packages.values import File


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


def test_files_of_inputs_have_safe_names_that_never_collide(attempt: str, tmp_path: Path) -> None:
    made = stage.make(attempt, tmp_path, tmp_path, None).private
    made.write("db.password", b"secret")
    names = ["a.json", "a.json", "a.json", "2-a.json", "output", "db.password", "..", "-x $(id)\u00e9", "\u00e9" * 255]
    paths = [made.write_input(File(name, str(number).encode())) for number, name in enumerate(names)]
    assert [path.name for path in paths[:-1]] == [
        *("a.json", "2-a.json", "3-a.json", "2-2-a.json", "2-output", "2-db.password", "2-..", "-x___id__"),
    ]
    assert paths[-1].name == "_" * 255
    assert [path.read_text() for path in paths] == [str(number) for number in range(len(names))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o400}
    assert {path.parent for path in paths} == {made.path}
    assert not (made.inside(OUTPUT)).read_bytes()
    made.remove()
    assert not made.path.exists()


def test_without_a_file_system_in_memory_it_is_beside(
    attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_directory, "memory_file_systems", lambda: (tmp_path / "gone",))
    made = PrivateDirectory.make(attempt, tmp_path, None)
    assert made.path == tmp_path / "private"
    assert not made.in_memory
    stage.remove_leftovers(attempt, tmp_path)
    assert not made.path.exists()
    stage.remove_leftovers(attempt, tmp_path)


def test_a_name_that_is_taken_fails_the_start_and_nothing_goes_to_disk(
    attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever could make the directory first would otherwise decide where secrets lie."""
    memory = [tmp_path / "first", tmp_path / "second"]
    for parent in memory:
        parent.mkdir()
    monkeypatch.setattr(private_directory, "memory_file_systems", lambda: tuple(memory))
    made = PrivateDirectory.make(attempt, tmp_path, None)
    assert made.in_memory
    with pytest.raises(FileExistsError, match=re.escape(f"{made.path} was there before")):
        PrivateDirectory.make(attempt, tmp_path, None)
    assert list(memory[1].iterdir()) == []
    assert not (tmp_path / "private").exists()


def test_no_name_tells_another_one_before_that_is_made(attempt: str) -> None:
    token = f"{attempt}.0123456789abcdef"
    names = [name_of(token, "private"), name_of(token, "shared")]
    assert names == [name_of(token, "private"), name_of(token, "shared")]
    assert len({name.rpartition(".")[2] for name in names}) == 2
    for name in names:
        assert name.startswith(f"sis-{attempt}.")
        assert "0123456789abcdef" not in name


def test_the_one_of_another_account_is_never_where_it_could_fill_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run, shared, own = Path("/run"), Path("/dev/shm"), Path("/run/user/1")
    other = Account("other", 1, 1, (), "/", "/bin/sh")
    for found, expected in {
        (run, shared, own): (shared,),
        (run, own): (run, own),
        (shared,): (shared,),
        (): (),
    }.items():
        monkeypatch.setattr(private_directory, "memory_file_systems", lambda found=found: found)
        assert private_directory.places(None) == found
        assert private_directory.places(other) == expected


def test_it_is_known_whether_secrets_lie_on_disk(attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, on_disk in (((), True), ((tmp_path / "memory",), False)):
        monkeypatch.setattr(private_directory, "memory_file_systems", lambda memory=memory: memory)
        (tmp_path / "memory").mkdir(exist_ok=True)
        made = stage.make(attempt, tmp_path, tmp_path, None)
        assert not made.secrets_on_disk
        made.private.write("db.password", b"content")
        assert made.secrets_on_disk == on_disk
        made.remove_private()


def test_what_is_taken_up_by_nobody_is_removed_when_its_supervisor_is_dead(attempt: str, tmp_path: Path) -> None:
    own = processes.read(os.getpid())
    assert own is not None
    directories = [tmp_path / "living", tmp_path / "dead"]
    made = []
    for directory, ticks in zip(directories, (own.start_ticks, own.start_ticks + 1), strict=True):
        directory.mkdir()
        token = f"{attempt}.{directory.name}"
        SupervisorIdentity(own.pid, ticks, processes.boot_id(), token).write(directory)
        made.append(stage.make(token, directory, tmp_path, None))
    for directory in (*directories, tmp_path):
        stage.remove_abandoned(directory)
    assert [each.private.path.exists() for each in made] == [True, False]
    made[0].remove_private()


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
    assert outputs.read_outputs(made.inside(OUTPUT), Masker()).values == {}
    made.remove()
    assert (treasure / OUTPUT).exists()
    assert not made.path.is_symlink()
    # Nothing of what was secret is left, wherever it is.
    assert list(moved.iterdir()) == []
    remove_tree(moved)


def test_another_name_of_a_file_is_not_read(tmp_path: Path) -> None:
    """A payload may be able to name what it cannot read."""
    (tmp_path / "treasure").write_text("password=hunter22\n")
    os.link(tmp_path / "treasure", tmp_path / "output")
    found = outputs.read_outputs(tmp_path / "output", Masker())
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
