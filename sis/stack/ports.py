"""Ports on the loopback address for the servers of a stack.

They are chosen below the range from which the kernel gives ports to outgoing connections, so that a server
that is restarted finds its own still free.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from pathlib import Path

from sis.stack.errors import StackError

HOST = "127.0.0.1"
_LOWEST = 10_000
_TRIES = 200


class Reservations(contextlib.ExitStack):
    """Ports that are kept for the servers of this stack: no other stack picks them while this lives. A
    server that binds with SO_REUSEADDR, as gRPC's do, can have them all the same."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: set[int] = set()

    def take(self, wanted: int, last: int = 0) -> int:
        """A port: `wanted` unless that is 0, else `last` if it is free, else any.

        Raises:
            StackError: the wanted port is in use or forbidden, or no port is free.
        """
        if wanted:
            if wanted in self._taken:
                raise StackError(f"port {wanted} is asked for twice; choose another")
            try:
                self._reserve(wanted, exclusive=False)
            except OSError as error:
                raise StackError(f"port {wanted} on {HOST} cannot be had: {error.strerror}; choose another") from None
            return wanted
        if last and last not in self._taken:
            with contextlib.suppress(OSError):
                self._reserve(last, exclusive=False)
                return last
        highest = max(_LOWEST + 1000, _first_outgoing_port() - 1)
        for _ in range(_TRIES):
            port = random.randint(_LOWEST, highest)  # noqa: S311  a guess, not a secret
            try:
                self._reserve(port, exclusive=True)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                continue
            return port
        raise StackError(f"no port from {_LOWEST} to {highest} on {HOST} seems to be free")

    def _reserve(self, port: int, *, exclusive: bool) -> None:
        reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if not exclusive:  # what lingers of a server that has ended does not count
                reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reservation.bind((HOST, port))
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            reservation.close()
            raise
        self.enter_context(reservation)
        self._taken.add(port)


def _first_outgoing_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
