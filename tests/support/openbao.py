"""A real OpenBao that was prepared by the real bootstrap, and that tests may seal, stop and kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.credentials.bootstrap import POLICY
from services.credentials.vault import Connection, VaultSettings
from sis.stack.openbao import OpenBao
from sis.stack.ports import Reservations
from sis.stack.processes import Child, last_words
from tests.support.stopping import stop

_SECONDS = 30.0
_names = itertools.count(1)


class OpenBaoServer:
    """A server in `directory`, bootstrapped if it is to be `prepared`; without `auto_unseal`, only its key unseals it.
    The thread that enters must live until the end.

    with OpenBaoServer(directory) as server:
        vault = Vault(server.settings())
    """

    def __init__(self, directory: Path, *, auto_unseal: bool = False, prepared: bool = True) -> None:
        self._directory = directory
        self._prepared = prepared
        self._auto_unseal = auto_unseal
        self._ports = Reservations()
        self._child: Child | None = None
        self.output = directory / "output"

    def __enter__(self) -> Self:
        self._ports.__enter__()
        port, cluster_port = self._ports.take(0), self._ports.take(0)
        self.server = OpenBao(
            self._directory / "vault", port, cluster_port, self._directory / "openbao.log", self._auto_unseal
        )
        self.server.initialise()
        try:
            self.start()
            if self._prepared:
                done = self.bootstrap()
                assert done.returncode == 0, done.stderr
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill(signal.SIGCONT)
        self.stop()
        self._ports.close()

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def keys(self) -> dict[str, Any]:
        """What the bootstrap has written down when it initialised the server."""
        return dict(json.loads(self.server.keys.read_bytes()))

    def settings(self, **changes: Any) -> VaultSettings:
        """Those of the credential service."""
        own = {
            "address": self.address,
            "ca": self.server.ca,
            "role_id_file": self.output / "role-id",
            "secret_id_file": self.output / "secret-id",
        }
        return VaultSettings(**{**own, **changes})

    def connection(self, token: str | None = None, namespace: str = "") -> Connection:
        """Blocking calls, as root unless a token is given. Close it."""
        root = self.keys["root_token"] if token is None else token
        return Connection(self.address, ca=self.server.ca, namespace=namespace, token=root)

    def root(self, method: str, path: str, body: dict[str, Any] | None = None, namespace: str = "") -> dict[str, Any]:
        """One call as root."""
        connection = self.connection(namespace=namespace)
        try:
            return connection.request(method, path, body)
        finally:
            connection.close()

    def bootstrap(self, *arguments: str, keys: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the bootstrap; arguments that are given here win over those of the server's own."""
        words = list(self.server.bootstrap_arguments(self.output))
        if not keys:
            position = words.index("--keys")
            words = words[:position] + words[position + 2 :]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VAULT_")}
        return subprocess.run(
            [sys.executable, "-P", "-m", "services.credentials.bootstrap", *words, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**kept, **environment},
        )

    def role(self, directory: Path, **fields: Any) -> VaultSettings:
        """Another AppRole with the service's policy, and these fields of its own; its login goes to `directory`."""
        name = f"test-{next(_names)}"
        path = f"auth/approle/role/{name}"
        self.root("POST", path, {"token_policies": [POLICY], "token_no_default_policy": True, **fields})
        role_id, secret_id = directory / f"{name}-role-id", directory / f"{name}-secret-id"
        role_id.write_text(self.root("GET", f"{path}/role-id")["data"]["role_id"])
        secret_id.write_text(self.root("POST", f"{path}/secret-id")["data"]["secret_id"])
        return self.settings(role_id_file=role_id, secret_id_file=secret_id)

    def tokens(self) -> Sequence[str]:
        """The accessors of all tokens that live."""
        return tuple(self.root("LIST", "auth/token/accessors")["data"]["keys"])

    def seal(self) -> None:
        self.root("PUT", "sys/seal")

    def unseal(self) -> None:
        """Unseal it, and wait until it works."""
        for key in self.keys["unseal_keys"]:
            self.root("PUT", "sys/unseal", {"key": key})
        until(self.server.ready, "an unsealed server")

    def start(self) -> None:
        """Start it, sealed."""
        self.server.settle()
        self._child = Child(self.server.command())
        child = self._child

        def answers() -> bool:
            assert child.exit_code is None, last_words(self.server.log)
            return self.answers()

        until(answers, "an answer")

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(10)
            self._child.close()
            self._child = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._child is None:
            return
        if number == signal.SIGSTOP:
            stop(self._child.identity.pid)
            return
        self._child.signal(number)
        if number == signal.SIGKILL:
            self._child.wait(10)

    def answers(self) -> bool:
        try:
            self.server.expect_answer()
        except Exception:
            return False
        return True

    def restore(self) -> None:
        """Make it work again, whatever a test has done to it."""
        self.kill(signal.SIGCONT)
        if not self.answers():
            self.stop()
            self.start()
        if not self.server.ready():
            self.unseal()


def until(holds: Callable[[], object], what: str, seconds: float = _SECONDS) -> None:
    """Wait until it holds; fail the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)
