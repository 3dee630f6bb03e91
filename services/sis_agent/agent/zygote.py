"""The zygote: a warm process without gRPC and without threads, which forks a supervisor for each attempt.

An interpreter's start costs a hundred milliseconds, a fork one or two. Agent and zygote talk over a socket pair of
sequenced packets, one JSON object each:

    agent:       {"id": 1, "directory": "...", "package_directory": "..."}
    supervisor:  {"id": 1, "identity": {...}}         it can be found and stopped
    supervisor:  {"id": 1, "error": "..."}            it cannot begin; nothing was started
    supervisor:  {"id": 1, "refused": "..."}          the attempt has, or had, another one
    zygote:      {"id": 1, "error": "..."}            no process could be made; nothing was started
    zygote:      {"id": 1, "exited": true}            it has ended; whether it had started anything, its files say

The zygote ends with the agent; its supervisors do not.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NoReturn

from google.protobuf.message import DecodeError
from setproctitle import setproctitle

from services.sis_agent.agent import cgroup_tree, supervisor_process
from services.sis_agent.agent.spool import SpoolError
from services.sis_agent.agent.supervisor_identity import AlreadyStarted, SupervisorIdentity
from sis.packages import manifest
from sis.packages.manifest import InvalidManifest, Manifest

MAX_MESSAGE_BYTES: Final = 64 << 10
_MANIFESTS_KEPT: Final = 64


class Zygote:
    """Serves one agent over a connected socket."""

    def __init__(self, connection: socket.socket, *, cgroups: bool) -> None:
        self._connection = connection
        self._cgroups = cgroups
        self._requests: dict[int, int] = {}
        self._manifests: OrderedDict[Path, Manifest] = OrderedDict()

    def serve(self) -> None:
        """Serve until the agent is gone."""
        wakeup, writer = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._send({"ready": True, "cgroups": self._cgroups})
        while True:
            ready, _, _ = select.select([self._connection.fileno(), wakeup], [], [])
            if wakeup in ready:
                os.read(wakeup, 4096)
                self._reap()
            if self._connection.fileno() in ready and not self._receive():
                return

    def _receive(self) -> bool:
        """Take one request. False when the agent is gone."""
        try:
            message = self._connection.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            return False
        if not message:
            return False
        request = json.loads(message)
        if threading.active_count() > 1:
            self._send({"id": request["id"], "error": "the zygote has threads and must not fork"})
            return True
        content = self._manifest(Path(request["package_directory"]))
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"id": request["id"], "error": f"no process could be made: {error.strerror}"})
            return True
        if pid == 0:
            self._become_supervisor(request, content)
        self._requests[pid] = request["id"]
        return True

    def _manifest(self, package_directory: Path) -> Manifest | str:
        """The manifest of an unpacked package, which never changes; or why it cannot be used."""
        known = self._manifests.get(package_directory)
        if known is None:
            try:
                known = manifest.load(package_directory)
            except InvalidManifest as error:
                return f"the package cannot be used: {error}"
            self._manifests[package_directory] = known
            if len(self._manifests) > _MANIFESTS_KEPT:
                self._manifests.popitem(last=False)
        self._manifests.move_to_end(package_directory)
        return known

    def _become_supervisor(self, request: dict[str, Any], content: Manifest | str) -> NoReturn:
        announced = False

        def announce(identity: SupervisorIdentity) -> None:
            nonlocal announced
            announced = True
            self._send({"id": request["id"], "identity": asdict(identity)})
            self._connection.close()

        directory = Path(request["directory"])
        code = 70
        try:
            supervisor_process.detach(directory, self._connection.fileno())
            package_directory = Path(request["package_directory"])
            supervisor_process.supervise(directory, package_directory, content, announce, cgroups=self._cgroups)
            code = 0
        except (SpoolError, AlreadyStarted) as error:
            self._send({"id": request["id"], "refused": str(error)})
        except (OSError, DecodeError) as error:
            if announced:
                raise
            self._send({"id": request["id"], "error": str(error)})
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if (request := self._requests.pop(ended[0], None)) is not None:
                    self._send({"id": request, "exited": True})

    def _send(self, message: dict[str, Any]) -> None:
        # An agent that is gone, or does not read, finds its supervisors by their files.
        with contextlib.suppress(OSError):
            self._connection.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def main() -> None:
    """`python -m services.sis_agent.agent.zygote FD [subreaper]`: serve the agent at the other end of a socket."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    setproctitle("sis-zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cgroups = "subreaper" not in sys.argv[2:] and cgroup_tree.available()
    # The forks share these pages for as long as nobody touches them.
    gc.collect()
    gc.freeze()
    Zygote(connection, cgroups=cgroups).serve()


if __name__ == "__main__":
    main()
