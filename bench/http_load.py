"""Loads an HTTP server: `python -m bench.http_load HOST PORT PATH CONNECTIONS SECONDS < token` prints answers a second.

Each connection sends the next request when the answer to the last one is there. Anything but 200 ends it.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop


async def _load(host: str, port: int, path: str, connections: int, seconds: float, token: str) -> float:
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    answers = 0
    over = time.perf_counter() + seconds

    async def connection() -> None:
        nonlocal answers
        reader, writer = await asyncio.open_connection(host, port)
        while time.perf_counter() < over:
            writer.write(request)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(head.decode())
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            answers += 1
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    return answers / (time.perf_counter() - begun)


def main() -> None:
    host, port, path, connections, seconds = sys.argv[1:]
    token = sys.stdin.read().strip()
    print(uvloop.run(_load(host, int(port), path, int(connections), float(seconds), token)))


if __name__ == "__main__":
    main()
