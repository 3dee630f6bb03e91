"""The zygote: a warm process without gRPC and without threads, which forks a supervisor for each attempt.

An interpreter's start costs a hundred milliseconds, a fork one or two. Agent and zygote talk over a socket pair of
sequenced packets, one JSON object each:

    agent:       {"id": 1, "directory": "...", "package_directory": "..."}
    supervisor:  {"id": 1, "identity": {...}}         it can be found and stopped
    supervisor:  {"id": 1, "error": "..."}            it cannot begin; nothing was started
    supervisor:  {"id": 1, "refused": "..."}          the attempt has, or had, another one
    zygote:      {"ready": true}                      it takes requests; once more after each that it has taken
    zygote:      {"id": 1, "error": "..."}            no process could be made; nothing was started
    zygote:      {"id": 1, "exited": true}            its guardian has ended; whether it had begun, its files say

The zygote ends with the agent; its supervisors do not.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from setproctitle import setproctitle

from services.runtime import faults, open_files, sealing
from services.runtime.backoff import Backoff
from services.runtime.sealing import LeaseBinding
from services.sis_agent.agent.attempts import AssignmentDamaged
from services.sis_agent.agent.linux import cgroup_mounts, cgroup_tree, processes
from services.sis_agent.agent.recording.spool import SpoolError
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision import guardian, private_directory, supervisor_process
from services.sis_agent.agent.supervision.guardian import Guarded
from services.sis_agent.agent.supervision.supervisor_identity import AlreadyStarted, SupervisorIdentity
from services.sis_agent.agent.supervision.supervisor_process import Means
from sis.packages import manifest
from sis.packages.manifest import InvalidManifest, Manifest

MAX_MESSAGE_BYTES: Final = 64 << 10
_MANIFESTS_KEPT: Final = 64
_IDLE_SECONDS: Final = 0.01
_REST_SECONDS: Final = (1.0, 30.0)
"""From the first to the last delay before another spare is made, while none comes to be used: the machine may be at its
limit of processes."""
_MAX_ORDER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Order:
    """One request, with the manifest that the zygote has at hand."""

    number: int
    directory: Path
    package_directory: Path
    manifest: Manifest | str


class _Spare:
    """A fork that was made ahead, and waits for its order; `pid` is its guardian's. The agent's socket comes with it,
    so that the agent knows at once when the zygote has died."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection

    def take(self, order: _Order, agent: socket.socket) -> bool:
        """Hand the order over, once. False when the spare has died; then nobody has the order."""
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        with self._connection:
            try:
                socket.send_fds(self._connection, [pickle.dumps(order)], [agent.fileno()], flags)
            except OSError:
                return False
        return True

    def close(self) -> None:
        """Give it nothing to do: it ends."""
        self._connection.close()


class Zygote:
    """Serves one agent over a connected socket.

    One fork is made ahead while nothing is asked for, so that a single job need not wait for it.
    """

    def __init__(self, connection: socket.socket, means: Means) -> None:
        self._connection = connection
        self._means = means
        self._requests: dict[int, int] = {}
        self._spare: _Spare | None = None
        self._rest = Backoff(*_REST_SECONDS)
        self._rest_until = 0.0
        self._manifests: OrderedDict[Path, Manifest] = OrderedDict()

    def serve(self) -> None:
        """Serve until the agent is gone."""
        wakeup, writer = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._send({"ready": True})
        connection = self._connection.fileno()
        while True:
            ready, _, _ = select.select([connection, wakeup], [], [], self._idle())
            if not ready:
                self._make_spare()
            if wakeup in ready:
                os.read(wakeup, 4096)
                self._reap()
            if connection in ready:
                if not self._receive():
                    return
                self._send({"ready": True})

    def _idle(self) -> float | None:
        """For how many seconds nothing must be asked for before a spare is made; None where there is one."""
        return max(_IDLE_SECONDS, self._rest_until - time.monotonic()) if self._spare is None else None

    def _receive(self) -> bool:
        """Take one request. False when the agent is gone."""
        try:
            message = self._connection.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            return False
        if not message:
            return False
        faults.point("zygote.asked")
        request = json.loads(message)
        package_directory = Path(request["package_directory"])
        content = self._manifest(package_directory)
        order = _Order(request["id"], Path(request["directory"]), package_directory, content)
        # Of a death and a request that come together the request may be seen first.
        self._reap()
        spare, self._spare = self._spare, None
        if spare is not None and spare.take(order, self._connection):
            self._requests[spare.pid] = order.number
            self._rest.reset()
            faults.point("zygote.handed")
            return True
        try:
            pid = _fork()
        except OSError as error:
            self._send({"id": order.number, "error": f"no process could be made: {error}"})
            return True
        if pid == 0:
            self._become_supervisor(order)
        self._requests[pid] = order.number
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

    def _make_spare(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            faults.point("zygote.forking")
            try:
                pid = _fork()
            except OSError:
                # Whoever asks next is told.
                ours.close()
                self._rest_a_while()
                return
            if pid == 0:
                self._become_supervisor(theirs)
        self._spare = _Spare(pid, ours)
        faults.point("zygote.forked")

    def _become_supervisor(self, source: _Order | socket.socket) -> NoReturn:
        """Be a guardian, in a fresh fork, and below it a supervisor: by this order, or by the one that comes over a
        socket."""
        code = 70
        try:
            guarded = self._guarded(source)
            if isinstance(source, _Order):
                supervisor_process.detach([self._connection.fileno(), *guarded.descriptors])
                self._supervise(source, guarded)
            else:
                setproctitle("sis-supervisor: spare")
                self._connection.close()
                supervisor_process.detach([source.fileno(), *guarded.descriptors])
                message, descriptors, _, _ = socket.recv_fds(source, _MAX_ORDER_BYTES, 1)
                if message:
                    source.close()
                    self._connection = socket.socket(fileno=descriptors[0])
                    self._supervise(pickle.loads(message), guarded)  # noqa: S301 (from this process's zygote)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _guarded(self, source: _Order | socket.socket) -> Guarded:
        try:
            return guardian.fork_guarded(self._means.process_limit)
        except OSError as error:
            if isinstance(source, _Order):
                self._send({"id": source.number, "error": f"no process could be made: {error}"})
            raise

    def _supervise(self, order: _Order, guarded: Guarded) -> None:
        faults.point("supervisor.ordered")
        announced = False

        def announce(identity: SupervisorIdentity) -> None:
            nonlocal announced
            announced = True
            self._send({"id": order.number, "identity": asdict(identity)})
            self._connection.close()
            faults.point("supervisor.announced")

        try:
            supervisor_process.supervise(
                order.directory, order.package_directory, order.manifest, announce, guarded, self._means
            )
        except (SpoolError, AlreadyStarted) as error:
            if announced:
                raise
            self._send({"id": order.number, "refused": str(error)})
        except (OSError, AssignmentDamaged) as error:
            if announced:
                raise
            self._send({"id": order.number, "error": str(error)})

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if self._spare is not None and ended[0] == self._spare.pid:
                    # What is still dying below it could take an order, and nobody would say that it came to nothing.
                    self._spare.close()
                    self._spare = None
                    self._rest_a_while()
                if (request := self._requests.pop(ended[0], None)) is not None:
                    self._send({"id": request, "exited": True})

    def _rest_a_while(self) -> None:
        """Make no spare for now: what has failed would fail again at once."""
        self._rest_until = time.monotonic() + self._rest.next_delay()

    def _send(self, message: dict[str, Any]) -> None:
        # An agent that is gone, or does not read, finds its supervisors by their files.
        with contextlib.suppress(OSError):
            self._connection.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _fork() -> int:
    """As `os.fork`. Raises OSError, also when this process has threads: a fork of one of those can lock up."""
    if threading.active_count() > 1:
        raise OSError("the zygote has threads and must not fork")
    return os.fork()


def _warm_up() -> None:
    """Find out and load what each fork would otherwise have to: ten milliseconds of it, for one with leases."""
    private_directory.memory_file_systems()
    cgroup_mounts.own_pids_cgroup()
    Masker([bytes(8)])
    key = X25519PrivateKey.generate()
    binding = LeaseBinding(0, 0, "", "", "")
    sealing.unseal(sealing.seal(b"", key.public_key().public_bytes_raw(), binding), key, binding)


def main() -> None:
    """`python -m services.sis_agent.agent.supervision.zygote FD best|subreaper LIMIT [IDENTITY [FILES]]`: serve the
    agent at the other end of a socket, whose identity is in that directory; payloads may have LIMIT processes each, 0
    for any number, and a soft limit of FILES open files."""
    with socket.socket(fileno=int(sys.argv[1])) as given:
        # By a low number, whatever it is in the agent: select takes no high ones. And not inheritable.
        connection = given.dup()
    if len(sys.argv) > 5:
        open_files.restore(int(sys.argv[5]))
    setproctitle("sis-zygote")
    processes.learn_own_account()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cgroups = sys.argv[2] != "subreaper" and cgroup_tree.available()
    means = Means(cgroups, int(sys.argv[3]), Path(sys.argv[4]) if any(sys.argv[4:5]) else None)
    _warm_up()
    # The forks share these pages for as long as nobody touches them.
    gc.collect()
    gc.freeze()
    Zygote(connection, means).serve()


if __name__ == "__main__":
    main()
