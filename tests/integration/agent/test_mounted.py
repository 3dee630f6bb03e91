"""What a payload has mounted in its directories, and left there. Everything is in a mount namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.sis_agent.agent.supervision import private_directory

pytestmark = pytest.mark.root

FORGET = """
import logging, os, sys
from pathlib import Path
from services.sis_agent.agent.attempts import AttemptDirectories, AttemptKey
logging.basicConfig(format="%(message)s")
if len(sys.argv) > 2:
    os.setresuid(65534, 65534, 65534)
AttemptDirectories(Path(sys.argv[1])).remove(AttemptKey(7, 1))
"""
LEFTOVERS = """
import logging, sys
from pathlib import Path
from services.sis_agent.agent.supervision import private_directory, stage
logging.basicConfig(format="%(message)s")
private_directory.memory_file_systems = lambda: (Path(sys.argv[1]),)
stage.remove_leftovers("7.1.token", Path(sys.argv[1]))
"""
CACHE = """
import logging, sys
from pathlib import Path
from services.sis_agent.agent.package_cache import PackageCache
logging.basicConfig(format="%(message)s")
PackageCache(Path(sys.argv[1]), None, 1)
"""


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """What must not be lost."""
    directory = tmp_path / "share"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_text("of others")
    (directory / "sub" / "file").write_text("of others")
    return directory


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    directory = tmp_path / "attempts" / "7.1"
    (directory / "work" / "mnt").mkdir(parents=True)
    (directory / "work" / "file").touch()
    return directory


def whole(share: Path) -> bool:
    return [path.read_text() for path in (share / "file", share / "sub" / "file")] == ["of others"] * 2


def mounted(script: str, code: str, *arguments: object, working: Path, last: str = "true") -> str:
    """Runs a script that mounts, then the code, then another script; returns what they said."""
    shell = f'set -e\ncd "$0"\n{script}\n"$@"\n{last}'
    command = ["unshare", "--mount", "sh", "-c", shell, working, sys.executable, "-c", code, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "script",
    [
        "mount --bind $SHARE mnt",
        "mount --bind $SHARE .",
        "touch target; mount --bind $SHARE/file target",
        "mkdir 'a b\tc\\040d'; mount --bind $SHARE 'a b\tc\\040d'",
        "mkdir -p deep/er; mount --bind $SHARE deep/er; mv deep elsewhere; ln -s $SHARE deep",
        "for _ in 1 2; do mount --bind $SHARE mnt; done; mount -t tmpfs t mnt; mkdir mnt/x; mount --bind $SHARE mnt/x",
        "mkdir mnt/x; mount --bind $SHARE mnt/x; mount -t tmpfs none mnt",
        "mkdir one two; for each in one two mnt; do mount --bind $SHARE $each; done",
    ],
)
def test_what_is_mounted_in_a_working_directory_is_not_removed_with_it(attempt: Path, share: Path, script: str) -> None:
    assert mounted(f"SHARE={share}\n{script}", FORGET, attempt.parent, working=attempt / "work") == ""
    assert whole(share)
    assert not attempt.exists()


def test_what_is_mounted_elsewhere_stays_so(attempt: Path, share: Path) -> None:
    """Where mounts are shared, as they are on most machines, what is unmounted here would be so there as well."""
    script = f"""
mount --make-rshared /
mount -t tmpfs none {share}/sub
echo 'of others' > {share}/sub/only-here
mount --rbind {share} mnt
test -e mnt/sub/only-here
"""
    said = mounted(script, FORGET, attempt.parent, working=attempt / "work", last=f"cat {share}/sub/only-here")
    assert said == "of others\n"
    assert whole(share)
    assert not attempt.exists()


def test_what_may_not_be_unmounted_is_kept_and_told_once(attempt: Path, share: Path) -> None:
    for path in (attempt.parent, attempt, *attempt.rglob("*"), share, *share.rglob("*")):
        path.chmod(0o777)
    # The directories above are closed to others.
    script = f"mount --bind {attempt.parent} /mnt; mount --bind {share} /mnt/7.1/work/mnt"
    said = mounted(script, FORGET, "/mnt", "nobody", working=attempt / "work")
    expected = "/mnt/7.1 is kept: '/mnt/7.1/work/mnt' is mounted and cannot be unmounted: Operation not permitted\n"
    assert said == expected
    assert whole(share)
    assert (attempt / "work" / "file").exists()


def test_what_is_mounted_in_the_directories_outside_is_not_removed_with_them(tmp_path: Path, share: Path) -> None:
    private = tmp_path / private_directory.name_of("7.1.token", "private")
    beside = tmp_path / "private"
    for path in (private, beside):
        (path / "mnt").mkdir(parents=True)
    script = f"for each in {private} {beside}; do mount --bind {share} $each/mnt; done"
    assert mounted(script, LEFTOVERS, tmp_path, working=tmp_path) == ""
    assert whole(share)
    assert not private.exists()
    assert not beside.exists()


def test_what_is_mounted_in_a_package_that_was_never_finished_is_not_removed_with_it(
    tmp_path: Path, share: Path
) -> None:
    unpacked = tmp_path / "packages" / "0.unpacked"
    (unpacked / "mnt").mkdir(parents=True)
    assert mounted(f"mount --bind {share} {unpacked}/mnt", CACHE, unpacked.parent, working=tmp_path) == ""
    assert whole(share)
    assert not unpacked.exists()
