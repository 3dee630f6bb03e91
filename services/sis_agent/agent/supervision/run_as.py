"""Run As on the agent's own host: finds the account of a credential, and has a process become it for good.

It takes root. `no_new_privs` is not set: the account may do what it may after a login, sudo among it. Its password is
not asked for, as root's `su` does not; who may use which credential is decided before. Of what a login does, nothing
else is done: no PAM session, no profile, no limits but the agent's own.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import pwd
import select
import signal
import time
from dataclasses import asdict, dataclass
from typing import Final

from services.sis_agent.agent.linux import process_tree, processes
from services.sis_agent.agent.supervision.leases import LeasedAccount
from services.sis_agent.agent.supervision.start_failed import RUN_AS_REFUSED, StartFailed

LOOK_UP_SECONDS: Final = 10.0
"""For the account: a directory service that does not answer must not hold up the supervisor."""

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITIES: Final = {
    0: "CAP_CHOWN",
    1: "CAP_DAC_OVERRIDE",
    3: "CAP_FOWNER",
    5: "CAP_KILL",
    6: "CAP_SETGID",
    7: "CAP_SETUID",
}
"""What root has, unless a container withholds it: to hand files over, to become the account, to end its processes."""
_KEYCTL: Final = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_JOIN_SESSION_KEYRING: Final = 1

_libc = ctypes.PyDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Account:
    """An account of this machine that is not the agent's own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def find(leased: LeasedAccount) -> Account | None:
    """The account that the payload has to become; None where that is the agent's own. Takes up to 10 s.

    Raises:
        StartFailed: RUN_AS_REFUSED: it is not known here, or the agent may not run anything as another account.
    """
    account = _look_up(leased)
    processes.learn_account(account.uid, account.name)
    if account.uid == os.geteuid():
        return None
    own = processes.account_name(os.geteuid())
    if os.geteuid() != 0:
        raise _refused(
            f"the agent runs as {own} and may run nothing as {account.name} (credential {leased.credential}): "
            f"run the agent as root, or name a credential of {own}"
        )
    if missing := [name for bit, name in _CAPABILITIES.items() if not _capabilities(b"CapEff") >> bit & 1]:
        raise _refused(
            f"the agent may run nothing as {account.name} (credential {leased.credential}): "
            f"it lacks {', '.join(missing)}; give that to its container or service"
        )
    return account


def become(account: Account) -> None:
    """Have the calling process be of this account and never again of another one, by its own doing. Raises OSError."""
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    is_it = (
        os.getresuid() == (account.uid,) * 3
        and os.getresgid() == (account.gid,) * 3
        and set(os.getgroups()) == set(account.groups)
    )
    if not is_it or _can_return():
        raise OSError(errno.EPERM, "the account was not taken on for good")
    _leave_keyring()


def environment(account: Account) -> dict[str, str]:
    """What a payload of this account has of its environment beside SIS_*: nothing of the agent's."""
    return {
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell or "/bin/sh",
    }


def _can_return() -> bool:
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return _capabilities(b"CapPrm") != 0
    return True


def _leave_keyring() -> None:
    """Leave the agent's session keyring, whose keys are open to whoever has it. What cannot, has none."""
    if (number := _KEYCTL.get(platform.machine())) is not None:
        _libc.syscall(number, _JOIN_SESSION_KEYRING, None)


def _look_up(leased: LeasedAccount) -> Account:
    """Ask the name service, in a child: its modules may hang, leave threads behind or bring the process down."""
    reader, writer = os.pipe()
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            process_tree.die_with_parent(supervisor)
            os.write(writer, json.dumps(_found(leased)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        answer = _read(reader, time.monotonic() + LOOK_UP_SECONDS)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # a child that is not reaped: the pid is its own
        os.waitpid(child, 0)
    try:
        found = json.loads(answer)
    except ValueError:
        raise _refused(
            f"the account {leased} (credential {leased.credential}) could not be looked up on this machine"
        ) from None
    if found is None:
        raise _refused(f"the account {leased} (credential {leased.credential}) is not known on this machine")
    return Account(**{**found, "groups": tuple(found["groups"])})


def _found(leased: LeasedAccount) -> dict[str, object] | None:
    for name in _names(leased):
        try:
            entry = pwd.getpwnam(name)
        except (KeyError, ValueError):
            continue
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return asdict(Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell))
    return None


def _names(leased: LeasedAccount) -> tuple[str, ...]:
    """What the name service may call it. The account of a domain is never one of this machine that is called the
    same."""
    if not leased.domain:
        return (leased.username,)
    return f"{leased.domain}\\{leased.username}", f"{leased.username}@{leased.domain}"


def _read(descriptor: int, deadline: float) -> bytes:
    """All that comes until its end; nothing, if that does not come in time."""
    content = b""
    while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(descriptor, 64 << 10)
        if not piece:
            return content
        content += piece
    return b""


def _capabilities(kind: bytes) -> int:
    # As bytes: a codec may have to be loaded first, by an account that cannot read the interpreter's files.
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123 (read line by line)
        return next((int(line.split()[1], 16) for line in file if line.startswith(kind)), 0)


def _refused(message: str) -> StartFailed:
    return StartFailed(message, RUN_AS_REFUSED)
