"""The account that PostgreSQL runs as: it refuses to be root, and wants one with a name. What an account is
called is explained in `launch`."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import signal
import subprocess

from sis.stack import processes
from sis.stack.errors import StackError


@functools.cache
def for_postgres() -> str:
    """How PostgreSQL, which refuses to be root and wants an account with a name, is run by this account."""
    try:
        named = pwd.getpwuid(os.geteuid())
    except KeyError:
        named = None
    if named is not None and named.pw_uid != 0:
        return "same"
    another = other()
    namespace = f"namespace:{another.pw_uid}"
    probe = [*processes.launcher(signal.SIGKILL, namespace), "/bin/true"]
    if subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0:
        return namespace
    if os.geteuid() == 0:
        return f"account:{another.pw_uid}:{another.pw_gid}"
    raise StackError(
        f"PostgreSQL wants an account with a name, uid {os.geteuid()} has none, "
        "and user namespaces, which would give it one, are forbidden here"
    )


def other() -> pwd.struct_passwd:
    """An account with a name that is not root's.

    Raises:
        StackError: there is none here.
    """
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StackError("PostgreSQL does not run as root, and there is neither an account postgres nor nobody here")
