"""A machine to break: the root file system as it is, with a layer in memory that takes every change, and processes,
mounts, control groups and network of its own. What is run on it does not touch the real one. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_DEADLINE = 60.0

# Has a control group removed that the machine would leave; empty it is once the last zombie is reaped.
_OUTSIDE = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/changes /mnt/work /mnt/root /mnt/groups
mount -t cgroup2 cgroup2 /mnt/groups
group=/mnt/groups/$GROUP
mkdir "$group"
sh -c 'echo $$ > "$0/cgroup.procs"
    exec unshare --pid --fork --kill-child --mount --cgroup --uts --ipc --net sh -c "$INSIDE"' "$group" || :
tries=0
while grep -q "populated 1" "$group/cgroup.events" && [ $tries -lt 200 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
find "$group" -depth -type d -exec rmdir {} +
"""

# Until /proc is mounted, it is the outside's.
_INSIDE = """
set -eu
read -r pid rest < /proc/self/stat
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/changes,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for directory in run tmp dev; do
    mount -t tmpfs -o mode=755 tmpfs $directory
done
chmod 1777 tmp
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir -p dev/shm "./$SHARED"
mount --bind "$SHARED" "./$SHARED"
printf '[Unit]\\nDefaultDependencies=no\\n' > etc/systemd/system/nothing.target
trap '' CHLD
exec env -i PATH="$PATH" container=sis unshare --root=/mnt/root sh -c 'echo "$0"; exec $1' "$pid" "$INIT"
"""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Init(StrEnum):
    """What runs as process 1. Debian's packages `systemd` and `util-linux` are needed for the first."""

    SYSTEMD = "/lib/systemd/systemd --system --unit=nothing.target --log-target=null --show-status=no"
    NONE = "sleep infinity"
    """Nothing that starts services; orphans are reaped by the kernel."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that runs."""

    pid: int
    """Of its process 1, as the real machine calls it."""

    @property
    def enter(self) -> list[str]:
        """What is put before a command to have it run there."""
        # The root as seen from outside: `--wd=/` would be the real one.
        return ["nsenter", "--target", str(self.pid), "--all", "--root", f"--wd={self.path('/')}", "--"]

    def path(self, path: str) -> Path:
        """Where the real machine finds a file of this one."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command there."""
        return subprocess.run(
            [*self.enter, *command],
            # As a payload there has it: Debian's rpm, for one, has its database in the home of who calls it.
            env={"PATH": _PATH, "HOME": "/root"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )

    def run(self, *command: str) -> str:
        """The standard output of a command that must succeed."""
        ended = self.attempt(*command)
        assert ended.returncode == 0, f"{command}: exit code {ended.returncode}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def processes(self, *arguments: str) -> list[str]:
        """The process ids, as the machine calls them, of those that have these arguments one after another."""
        line = b"".join(each.encode() + b"\0" for each in arguments)
        found = []
        for process in self.path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                found += [process.parent.name] if line in process.read_bytes() else []
        return found


def require(**programs: str) -> None:
    """Fails, in words, where programs are missing; each is given with the Debian package that has it."""
    missing = sorted({package for program, package in programs.items() if not shutil.which(program)})
    assert not missing, f"this test needs Debian packages: apt-get install {' '.join(missing)}"


@contextmanager
def started(init: Init, shared: Path) -> Iterator[Machine]:
    """A machine, for as long as the block runs. It has `shared`, a directory, in common with the real one."""
    if init is Init.SYSTEMD:
        assert Path(init.split()[0]).exists(), "this test needs Debian packages: apt-get install systemd"
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _OUTSIDE],
        env={
            "PATH": _PATH,
            "GROUP": f"sis-test-{os.getpid()}-{time.monotonic_ns()}",
            "INSIDE": _INSIDE,
            "INIT": init,
            "SHARED": str(shared),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    if not first:
        raise AssertionError(f"no machine can be made here: {process.communicate(timeout=_DEADLINE)[1]}")
    machine = Machine(int(first))
    try:
        if init is Init.SYSTEMD:
            _wait_for_systemd(machine)
        yield machine
    finally:
        os.kill(machine.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=_DEADLINE)
    assert process.returncode == 0, errors


def _wait_for_systemd(machine: Machine) -> None:
    end = time.monotonic() + _DEADLINE
    while (state := machine.attempt("systemctl", "is-system-running").stdout.strip()) not in ("running", "degraded"):
        assert time.monotonic() < end, f"systemd does not come up: {state}"
        time.sleep(0.05)
