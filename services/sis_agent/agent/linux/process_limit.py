"""How many processes and threads a payload may have at once, so that none can take the machine down by forking.

Held by the `pids` controller where one can be had: that of the payload's own cgroup (v2), or one of a hierarchy of its
own (v1), which the supervisor joins before it starts anything. Else, for every account but root, by RLIMIT_NPROC, which
counts all that the account runs. Root without a controller cannot be limited.
"""

from __future__ import annotations

import resource
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.cgroup_mounts import own_pids_cgroup

PROCESS_LIMIT: Final = 4_096
"""Where nobody says otherwise."""
_LAG_SECONDS: Final = 1.0
_OWN: Final = 2
"""Beside the payload, the run-as executor may be in its cgroup, and in one of v1 the supervisor is. Where they are not,
the payload may have as many more."""


@dataclass(frozen=True, slots=True)
class PidsCgroup:
    """A directory of the `pids` controller, v1 or v2."""

    directory: Path

    @classmethod
    def create(cls, limit: int) -> Self | None:
        """Make one of v1 for so many processes of a payload; None where that is not possible."""
        home = own_pids_cgroup()
        if home is None:
            return None
        cgroup = cls(home / f"sis-{secrets.token_hex(8)}")
        try:
            cgroup.directory.mkdir()
        except OSError:
            return None
        if not cgroup.limit(limit + _OWN):
            cgroup.remove()
            return None
        return cgroup

    def limit(self, count: int) -> bool:
        """Let no more than so many be in it; whether that is possible."""
        try:
            (self.directory / "pids.max").write_bytes(b"%d" % count)
        except OSError:
            return False
        return True

    def enter(self) -> None:
        """Move the calling process into it. Raises OSError."""
        (self.directory / "cgroup.procs").write_bytes(b"0")

    @property
    def refusals(self) -> int:
        """How often a fork was refused in it: at its own limit, or at that of one above it."""
        try:
            lines = (self.directory / "pids.events").read_bytes().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith(b"max "))

    def remove(self) -> None:
        """Remove it, if nothing is in it. Repeatable."""
        deadline = time.monotonic() + _LAG_SECONDS
        while True:
            try:
                self.directory.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                # The kernel may reap a process before it takes it out.
                if time.monotonic() > deadline:
                    return
            else:
                return
            time.sleep(0.002)


class ProcessLimit:
    """The limit of one payload."""

    def __init__(self, limit: int, cgroup: PidsCgroup | None) -> None:
        """At most `limit` processes and threads, 0 for any number; `cgroup` is the one that holds it to that."""
        self._limit = limit
        self._cgroup = cgroup

    @classmethod
    def of(cls, limit: int, tree_directory: str, pids_cgroup: PidsCgroup | None) -> Self:
        """The limit, by the best of the means that there are: the payload's own cgroup ("" for none) where that counts
        processes, the one that the supervisor has joined, or none."""
        if limit and tree_directory and (own := PidsCgroup(Path(tree_directory))).limit(limit + _OWN):
            return cls(limit, own)
        return cls(limit, pids_cgroup)

    def of_account(self, uid: int) -> int:
        """How many processes this account may run where no cgroup counts them; 0 for any number."""
        return self._limit if self._cgroup is None and uid != 0 else 0

    def reached(self, uid: int) -> str:
        """What is to be said once the payload of this account was, or is, at its limit; "" before."""
        if self._cgroup is not None:
            limits = f"its limit of {self._limit:,} processes, or that of a cgroup above its own"
            said = f"has reached {limits}" if self._cgroup.refusals else ""
        elif (limit := self.of_account(uid)) and processes.has_threads(uid, limit):
            said = f"runs as {processes.account_name(uid)}, which has reached the limit of {limit:,} processes"
        else:
            said = ""
        return said and f"The payload {said}; it can start no more (SIS_AGENT_PROCESS_LIMIT)"


def limit_account(count: int) -> None:
    """Have the calling process, and what it becomes, start no more once its account runs so many. Raises OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    known = [limit for limit in (soft, hard, count) if limit != resource.RLIM_INFINITY]
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (min(known), min(known)))
    except ValueError as error:
        raise OSError(str(error)) from None
