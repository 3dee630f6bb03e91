"""Where this process's cgroups are mounted, and where those of payloads can be made."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

from services.sis_agent.agent.linux import mounts
from services.sis_agent.agent.linux.mounts import Mount


@functools.cache
def own_cgroup() -> Path | None:
    """The directory of this process's cgroup (v2), where that hierarchy is mounted."""
    return _own("", "cgroup2")


@functools.cache
def own_pids_cgroup() -> Path | None:
    """That of the v1 hierarchy which has the `pids` controller, where there is one."""
    return _own("pids", "cgroup")


@functools.cache
def payload_home() -> Path | None:
    """Where the cgroups (v2) of payloads are made: in this process's own one. Where a service manager has put the agent
    into a subgroup of the cgroup that it has delegated (systemd: Delegate=, DelegateSubgroup=), in the delegated one:
    no process is in that, so it can hand controllers down."""
    own = own_cgroup()
    if own is None or not _delegated(own.parent):
        return own
    with contextlib.suppress(OSError):  # without it, payloads are limited in another way
        (own.parent / "cgroup.subtree_control").write_bytes(b"+pids")
    return own.parent


def _delegated(directory: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(directory, name) == b"1"
    return False


def _own(controller: str, kind: str) -> Path | None:
    """The directory of this process's cgroup in the hierarchy with this controller ("" for that of v2)."""
    path = _path(controller)
    if path is None:
        return None
    for mount in _mounts():
        if mount.file_system != kind or (controller and controller not in mount.options):
            continue
        # A container may have mounted a part of the hierarchy only.
        if mount.root == "/" or path == mount.root or path.startswith(f"{mount.root}/"):
            return Path(mount.point + path.removeprefix("" if mount.root == "/" else mount.root).rstrip("/"))
    return None


def _path(controller: str) -> str | None:
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return None


def _mounts() -> list[Mount]:
    try:
        return mounts.read()
    except OSError:
        return []


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
