"""The kernel's table of mounts."""

from __future__ import annotations

import pytest

from services.sis_agent.agent.linux import mounts
from services.sis_agent.agent.linux.mounts import Mount

TABLE = (
    rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
31 22 0:27 / /dev/shm rw,nosuid shared:4 master:2 - tmpfs tmpfs rw,inode64
40 22 8:1 /srv/a\040share /state/7.1/work/m\134t\011x\012y rw - ext4 /dev/sda1 rw
41 40 0:50 / /state/7.1/work/caf\303\251 rw unbindable - nfs4 nas:/a\040-\040b rw,vers=4.2
42 40 0:51 / /state/7.1/w - -/inner rw - fuse.sshfs  rw
43 22 0:52 / /state/7.10/work rw - tmpfs none rw
""".replace(b"/w - -/", rb"/w\040-\040-/")
    + b"44 22 0:53 / /state/\x85\x1c\xff rw - tmpfs none rw\n"
)


def test_points_are_read_as_they_are() -> None:
    read = mounts.parse(TABLE)
    assert read[0] == Mount("/", "/", "ext4", ("rw", "errors=remount-ro"))
    assert [mount.point for mount in read[1:]] == [
        "/dev/shm",
        "/state/7.1/work/m\\t\tx\ny",
        "/state/7.1/work/caf\u00e9",
        "/state/7.1/w - -/inner",
        "/state/7.10/work",
        "/state/\udc85\x1c\udcff",
    ]
    assert read[2].root == "/srv/a share"
    assert [mount.file_system for mount in read] == ["ext4", "tmpfs", "ext4", "nfs4", "fuse.sshfs", "tmpfs", "tmpfs"]
    assert mounts.parse(b"") == []


def test_an_escaped_backslash_begins_no_escape() -> None:
    (mount,) = mounts.parse(rb"1 1 0:1 / /a\134040b rw - tmpfs none rw")
    assert mount.point == "/a\\040b"


@pytest.mark.parametrize("line", [b"x", b"1 1 0:1 / /a rw shared:1", b"1 1 0:1 / /a rw -"])
def test_another_table_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        mounts.parse(line)


def test_what_lies_below_a_path_is_found_and_nothing_beside_it() -> None:
    found = mounts.below("/state/7.1", mounts.parse(TABLE))
    assert [mount.file_system for mount in found] == ["ext4", "nfs4", "fuse.sshfs"]
    assert len(mounts.below("/state/7.10/work", mounts.parse(TABLE))) == 1
    assert mounts.below("/state/7", mounts.parse(TABLE)) == []


def test_the_outermost_are_those_that_no_other_holds() -> None:
    points = ["/t/b/c", "/t/a", "/t/b", "/t/b", "/t/b-c/d", "/t/a/x/y"]
    found = mounts.outermost(Mount("/", point, "tmpfs", ()) for point in points)
    assert sorted(found) == ["/t/a", "/t/b", "/t/b-c/d"]


def test_the_own_table_can_be_read() -> None:
    assert any(mount.file_system == "proc" for mount in mounts.read())
