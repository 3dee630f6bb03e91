"""The directories that a payload is given: its package, its working directory, its private one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from services.sis_agent.agent.linux.removal import remove_tree
from services.sis_agent.agent.supervision import private_directory
from services.sis_agent.agent.supervision.private_directory import OUTPUT, PROGRESS, PrivateDirectory, name_of
from services.sis_agent.agent.supervision.run_as import Account
from services.sis_agent.agent.supervision.supervisor_identity import WORK, SupervisorIdentity


@dataclass(frozen=True, slots=True)
class Stage:
    """They are there. The payload of another account can reach nothing of the agent's, so `shared`, in the system's
    temporary directory, holds a copy of the package, which it can only read, and a working directory of its own."""

    package: Path
    work: Path
    private: PrivateDirectory
    shared: Path | None = None

    @property
    def secrets_on_disk(self) -> bool:
        """Whether files of credentials were written where they are not in memory."""
        return not self.private.in_memory and not {OUTPUT, PROGRESS}.issuperset(self.private.names)

    def remove_private(self) -> None:
        """Remove what may be secret. Once."""
        self.private.remove()

    def remove_shared(self) -> None:
        """Remove what else is outside the attempt's directory, however long that takes. Repeatable."""
        if self.shared is not None:
            remove_tree(self.shared)


def make(attempt: str, directory: Path, package: Path, account: Account | None) -> Stage:
    """For the attempt of this token in this directory, and another account where one is given. Raises OSError, and
    leaves nothing behind then."""
    with contextlib.ExitStack() as undo:
        shared = None
        work = directory / WORK
        if account is not None:
            shared = _shared(attempt)
            undo.callback(remove_tree, shared)
            shared.mkdir(mode=0o700)
            try:
                package = shutil.copytree(package, shared / "package", symlinks=True)
            except shutil.Error as error:
                raise OSError(f"the package could not be copied: {error.args[0][0][2]}") from None
            work = shared / WORK
        work.mkdir(mode=0o700, exist_ok=account is None)
        if account is not None and shared is not None:
            shutil.chown(work, account.uid, account.gid)
            shared.chmod(0o711)
        private = PrivateDirectory.make(attempt, shared or directory, account)
        undo.callback(private.remove)
        for name in (OUTPUT, PROGRESS):
            private.write(name)
        undo.pop_all()
    return Stage(package, work, private, shared)


def remove_leftovers(attempt: str, directory: Path) -> None:
    """Remove what an attempt that has ended, by its token and its directory, has left outside. Repeatable."""
    for path in (*private_directory.paths(attempt, directory), _shared(attempt)):
        remove_tree(path)


def remove_abandoned(directory: Path) -> None:
    """Remove what the attempt in a directory has left outside, unless its supervisor lives, which will do so itself.
    Repeatable. Raises OSError, SupervisorUnknown."""
    identity = SupervisorIdentity.read(directory)
    if identity is not None and identity.attempt and identity.process() is None:
        remove_leftovers(identity.attempt, directory)


def _shared(attempt: str) -> Path:
    return Path(tempfile.gettempdir()) / name_of(attempt, "shared")
