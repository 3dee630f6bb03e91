"""The socket by which an agent reaches a supervisor: stop commands in, word of growth out.

A client sends one JSON object a line. `{"kind": "CANCEL" | "ABORT", "reason": "..."}` is answered by `ok`, once the
supervisor has taken the stop up; `{"kind": "WATCH"}` is answered by one byte at once, and one whenever the spool has
grown since the client last read. Anything else is answered by a line that begins with `error`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.sis_agent.agent.supervision.supervisor_identity import CONTROL
from sis.queue.v1 import frame_pb2 as pb

_MAX_CLIENTS: Final = 16
_MAX_LINE_BYTES: Final = 16 << 10
_COMMANDS: Final = {"CANCEL": pb.STOP_KIND_CANCEL, "ABORT": pb.STOP_KIND_ABORT}

OnStop = Callable[[pb.StopKind.ValueType, str], None]


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    watching: bool = False


class Control:
    """Listens in the attempt's directory. Never blocks; what a client does wrong costs that client alone."""

    def __init__(self, directory: Path, selector: selectors.BaseSelector, on_stop: OnStop) -> None:
        self._selector = selector
        self._on_stop = on_stop
        self._clients: dict[int, _Client] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A socket's path has at most 107 bytes; through the open directory it always fits.
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{descriptor}/{CONTROL}")
        finally:
            os.close(descriptor)
        self._listener.setblocking(False)
        self._listener.listen(_MAX_CLIENTS)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def notify(self) -> None:
        """Tell the watchers that the spool has grown. Who has not read the last word yet has it still coming."""
        for client in list(self._clients.values()):
            if client.watching:
                self._send(client, b".")

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            print(f"a client could not be taken: {error}", file=sys.stderr, flush=True)
            return
        if len(self._clients) >= _MAX_CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(client))

    def _receive(self, client: _Client) -> None:
        try:
            data = client.connection.recv(_MAX_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.received += data
        if not data or len(client.received) > _MAX_LINE_BYTES:
            self._drop(client)
            return
        while b"\n" in client.received:
            line, _, rest = bytes(client.received).partition(b"\n")
            client.received[:] = rest
            self._send(client, self._obey(client, line))

    def _obey(self, client: _Client, line: bytes) -> bytes:
        try:
            command = json.loads(line)
            kind, reason = command["kind"], str(command.get("reason", ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return b"error: send one JSON object with a kind\n"
        if kind == "WATCH":
            client.watching = True
            return b"."
        if kind not in _COMMANDS:
            return b"error: the kind is CANCEL, ABORT or WATCH\n"
        self._on_stop(_COMMANDS[kind], reason)
        return b"ok\n"

    def _send(self, client: _Client, data: bytes) -> None:
        try:
            client.connection.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.connection.fileno(), None) is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(client.connection)
            client.connection.close()
