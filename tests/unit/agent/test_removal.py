"""Trees that do not want to be removed, and an account that is not root."""

from __future__ import annotations

import os
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.sis_agent.agent.attempts import AttemptDirectories, AttemptKey
from services.sis_agent.agent.linux.removal import remove_tree
from services.sis_agent.agent.supervision.private_directory import PrivateDirectory

NOBODY = 65534
KEY = AttemptKey(7, 1)


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that every account can get to and use."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


def as_nobody(act: Callable[[], object]) -> None:
    """Do it in a fork, and where this process is root, as an account that is nothing of the kind."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def grown(top: Path) -> None:
    """A tree of which nothing can be changed, and whose innermost part cannot even be seen."""
    inner = top / "go" / "pkg" / "mod"
    inner.mkdir(parents=True)
    (inner / "file").write_text("content")
    (inner / "link").symlink_to("/etc")
    for path, mode in ((inner / "file", 0o400), (inner, 0), (inner.parent, 0o500), (top / "go", 0o500), (top, 0o500)):
        path.chmod(mode)


def test_what_is_read_only_is_removed_too(root: Path) -> None:
    def forget() -> None:
        directories = AttemptDirectories(root / "attempts")
        grown(directories.path(KEY) / "work")
        directories.remove(KEY)
        assert list(directories) == []

    as_nobody(forget)


def test_credentials_in_a_directory_that_was_closed_are_gone(root: Path) -> None:
    """Also where that is somewhere else by now."""

    def close(*, moved: bool) -> None:
        made = PrivateDirectory._make(root / "private", None, in_memory=False)
        path = made.path
        made.write("token", b"secret")
        if moved:
            path = made.path.rename(root / "moved")
        path.chmod(0o500)
        made.remove()
        assert not made.path.exists()
        assert not moved or list(path.iterdir()) == []

    as_nobody(lambda: close(moved=False))
    as_nobody(lambda: close(moved=True))


@pytest.mark.root
def test_what_belongs_to_others_remains_and_is_told_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = root / "tree"
    for name in ("a", "b"):
        (tree / "own" / name).mkdir(parents=True)
        (tree / "own" / name / "file").touch()
    for path in (tree, tree / "own"):
        os.chown(path, NOBODY, NOBODY)

    def remain() -> None:
        remove_tree(tree)
        (said,) = [record.getMessage() for record in caplog.records]
        start = f"{tree} cannot be removed whole; one of what remains is '{tree}/own/"
        assert said.startswith(start)
        assert said.removeprefix(start) in ("a/file': Permission denied", "b/file': Permission denied")

    as_nobody(remain)
    assert len(list(tree.rglob("file"))) == 2


def test_a_link_is_removed_and_never_followed(root: Path) -> None:
    treasure = root / "treasure"
    treasure.mkdir()
    (treasure / "file").touch()
    treasure.chmod(0o500)
    (root / "tree").mkdir()
    (root / "tree" / "link").symlink_to(treasure)
    (root / "link").symlink_to(treasure)
    remove_tree(root / "tree")
    remove_tree(root / "link")
    assert [path.name for path in root.iterdir()] == ["treasure"]
    assert stat.S_IMODE(treasure.stat().st_mode) == 0o500
    assert (treasure / "file").exists()


def test_no_tree_is_too_deep(root: Path) -> None:
    """Deeper than a path can be long, than a stack can be high and than files can be open."""
    held = os.open(root, os.O_PATH)
    for number in range(3_000):
        name = "top" if number == 0 else "deep"
        os.mkdir(name, dir_fd=held)
        inner = os.open(name, os.O_PATH, dir_fd=held)
        os.close(held)
        held = inner
    os.close(held)
    remove_tree(root / "top")
    assert list(root.iterdir()) == []


def test_a_file_and_nothing_at_all_are_removed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "file").touch()
    for _ in range(2):
        remove_tree(root / "file")
    remove_tree(root / "no" / "such" / "file")
    assert list(root.iterdir()) == []
    assert caplog.records == []
