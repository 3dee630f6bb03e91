"""Starts one program of the stack in the right circumstances, and becomes it.

    python -I -S launch.py PARENT_PID DEATH_SIGNAL ACCOUNT PROGRAM [ARGUMENT...]

It runs between fork and exec of every process of the stack, as a program of its own because the process
that starts it has threads, after whose fork no Python may run. DEATH_SIGNAL is what the program gets when
its parent dies. ACCOUNT is one of

    same             the account of the caller
    namespace:UID    a user namespace in which the caller's account is called UID: PostgreSQL refuses to
                     run as root, and files written inside stay the caller's
    account:UID:GID  another account, that may still read the caller's files (CAP_DAC_OVERRIDE); for root
                     where user namespaces are forbidden

Exit status 126: ACCOUNT cannot be had here. 127: there is no such program. It imports the standard library
only.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CLONE_NEWUSER = 0x10000000
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    """Become PROGRAM; returns only by an exit status."""
    parent, death_signal, account, program = int(arguments[0]), int(arguments[1]), arguments[2], arguments[3:]
    try:
        _enter(account)
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]} as {account}: {error}\n")
        sys.exit(126)
    # The kernel forgets the death signal whenever the credentials change, so it is set after that.
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0))
    if os.getppid() != parent:  # it died before the signal was set
        sys.exit(0)
    try:
        os.execv(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error}\n")
        sys.exit(127)


def _enter(account: str) -> None:
    kind, *ids = account.split(":")
    if kind == "namespace":
        outside_user, outside_group = os.geteuid(), os.getegid()
        _checked(_libc.unshare(_CLONE_NEWUSER))
        Path("/proc/self/setgroups").write_bytes(b"deny")
        Path("/proc/self/uid_map").write_bytes(f"{ids[0]} {outside_user} 1".encode())
        Path("/proc/self/gid_map").write_bytes(f"{ids[0]} {outside_group} 1".encode())
    elif kind == "account":
        user, group = int(ids[0]), int(ids[1])
        # Without this bit access(2), by which PostgreSQL looks for its own files, leaves the capability out
        # of account.
        _checked(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
        _checked(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        # Effective, permitted, inheritable; the second triple is for the capabilities from 32 on.
        one = 1 << _CAP_DAC_OVERRIDE
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        _checked(_libc.capset(header, struct.pack("=6I", one, one, one, 0, 0, 0)))
        _checked(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(sys.argv[1:])
