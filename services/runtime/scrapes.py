"""Where Prometheus reads what a process has measured: GET /metrics over plain HTTP, and nothing else.

One request is answered at a time, by one thread, and each has its bound: who is slow is cut off, the others wait.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PATH: Final = "/metrics"
REQUEST_SECONDS: Final = 5.0
"""How long a client may take, from its connection to the end of the answer."""

_answer = make_wsgi_app(disable_compression=True)


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Who reads it is nobody's news."""


class _Server(WSGIServer):
    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        # That a connection is cut off only while it is `_current`, and so not closed, is what the lock is for.
        self._lock = threading.Lock()
        self._current: socket.socket | None = None
        self._ended = False
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one client, for as long as it may take."""
        with self._lock:
            if self._ended:
                return
            self._current = request
        # A timeout of the socket would begin anew with each byte.
        bound = threading.Timer(REQUEST_SECONDS, self._cut_off, [request])
        bound.daemon = True
        try:
            bound.start()
            super().finish_request(request, client_address)
        finally:
            bound.cancel()
            with self._lock:
                self._current = None

    def end(self) -> None:
        """Answer nobody any more; who is being answered is cut off."""
        with self._lock:
            self._ended = True
            current = self._current
        if current is not None:
            self._cut_off(current)
        self.shutdown()
        self.server_close()

    def _cut_off(self, request: socket.socket) -> None:
        with self._lock, suppress(OSError):  # the client may be gone already
            if self._current is request:
                request.shutdown(socket.SHUT_RDWR)

    def server_bind(self) -> None:
        # Without the look at the name service that its own class makes.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, *_: object) -> None:
        """Who reads too slowly, or breaks off, is nobody's news either."""


class Scrapes:
    """Answers at `host:port`, port 0 meaning "pick", until it is closed. Raises OSError where that cannot be had."""

    def __init__(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        kind = type("_Server", (_Server,), {"address_family": family})
        self._server: _Server = kind(address, _Handler)
        self._server.set_app(_application)
        name = f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])
        self.address = f"{name}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="scrapes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more; who is being answered is cut off."""
        self._server.end()
        self._thread.join(REQUEST_SECONDS)


def _application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    if environ["PATH_INFO"] == PATH and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
        answered: Any = _answer(environ, start_response)
        return answered  # type: ignore[no-any-return]
    start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"There is nothing but {PATH} here.\n".encode()]
