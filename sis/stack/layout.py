"""Where everything of a local stack is, under one private directory.

stack.json      what runs now, and how to reach it (see `state`); only while the stack is up
settings.json   what the first `sis up` chose, and the ports picked last
up.lock         held by the `sis up` that runs, or by a restore, and names it
admin.token     the administrator's token
tls/            the CA of the stack's PKI, and how the credential service logs in to Vault
vault/          OpenBao: its storage, its seal key, and the keys of its administrator
identities/     the last certificate of each service
join/           the tokens by which services get their certificates
prometheus.json where Prometheus reads what the processes measure, for its `file_sd_configs`
session.key     by which the gateway seals the sessions of browsers
postgres/       the database cluster
agents/NAME/    the state of each local agent
logs/           a log for each process, and `up.log`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sis.stack.errors import StackError

JOINING: Final = ("queue", "hub", "gateway")
"""The services that get their certificates by a join token."""
_MARKS: Final = frozenset({"stack.json", "up.lock", "admin.token"})
"""Whatever else is beside one of them, the directory is a stack's."""
_OWN: Final = frozenset(
    {
        *_MARKS,
        *("settings.json", "prometheus.json", "session.key"),
        *("tls", "vault", "identities", "join", "postgres", "agents", "logs", "restoring"),
    }
)
_EMPTY: Final = frozenset({"lost+found"})
"""What a file system begins with."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of the stack in `data`."""

    data: Path

    @property
    def stack(self) -> Path:
        return self.data / "stack.json"

    @property
    def settings(self) -> Path:
        return self.data / "settings.json"

    @property
    def lock(self) -> Path:
        return self.data / "up.lock"

    @property
    def token(self) -> Path:
        return self.data / "admin.token"

    @property
    def tls(self) -> Path:
        return self.data / "tls"

    @property
    def ca(self) -> Path:
        return self.tls / "ca.pem"

    @property
    def vault(self) -> Path:
        return self.data / "vault"

    def identity(self, name: str) -> Path:
        return self.data / "identities" / name

    def join_token(self, service: str) -> Path:
        return self.data / "join" / service

    @property
    def session_key(self) -> Path:
        return self.data / "session.key"

    @property
    def restoring(self) -> Path:
        """Where a restore builds its stack."""
        return self.data / "restoring"

    @property
    def restored(self) -> Path:
        """There while what a restore has built is moved to its place; says what it is a restore of."""
        return self.restoring / "restored"

    @property
    def targets(self) -> Path:
        return self.data / "prometheus.json"

    @property
    def cluster(self) -> Path:
        return self.data / "postgres"

    @property
    def agents(self) -> Path:
        return self.data / "agents"

    def agent(self, name: str) -> Path:
        return self.agents / name

    def log(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.log"

    def create(self) -> None:
        """Make the directories, for their owner alone; those that are there are kept.

        Raises:
            StackError: `data` is there, and somebody else's; it stays as it is.
        """
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = {path.name for path in self.data.iterdir()} - _EMPTY
        if not found & _MARKS and (others := sorted(found - _OWN)):
            raise StackError(
                f"{self.data} is no stack's: it has {others[0]}; name a directory that is new or empty with --data"
            )
        own = (self.tls, self.vault, self.agents, *(self.data / name for name in ("identities", "join", "logs")))
        for directory in (self.data, *own):
            directory.mkdir(mode=0o700, exist_ok=True)
            directory.chmod(0o700)
