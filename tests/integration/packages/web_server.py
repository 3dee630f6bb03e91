"""A web server that answers as it is told, and keeps what it was asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from services.runtime.tls import TlsFiles


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes


@dataclass
class WebServer:
    """`answers` are whole HTTP messages by path, sent in these parts before the connection is closed; None in the place
    of a part waits for the end of the test."""

    url: str = ""
    answers: dict[str, list[bytes | None]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def answer(self, path: str, body: bytes = b"", status: str = "200 OK", **headers: str) -> None:
        """Say what this path is answered with."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.answers[path] = ["\r\n".join([*lines, "", ""]).encode("latin-1"), body]

    def redirect(self, path: str, target: str, status: str = "302 Found") -> None:
        """Say that this path leads elsewhere."""
        self.answer(path, status=status, Location=target)


@contextmanager
def running(tls: TlsFiles | None = None) -> Iterator[WebServer]:
    """A server on a free port of the loopback address."""
    server = WebServer()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): ", ".join(self.headers.get_all(name) or ()) for name in self.headers}
            server.asked.append(Asked(self.command, self.path, headers, body))
            for part in server.answers[self.path]:
                if part is None:
                    server.ending.wait(60)
                elif not (self.command == "HEAD" and part and not part.startswith(b"HTTP")):
                    self.wfile.write(part)
            self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away, as those do whose time is over, is no fault."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
            server.url = f"https://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            listening.shutdown()
            thread.join()
