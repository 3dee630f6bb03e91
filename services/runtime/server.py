"""A server process: build, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime import shutdown
from services.runtime.chain import Chain
from services.runtime.channels import KEEPALIVE, KEEPALIVE_MS, MAX_MESSAGE_BYTES
from services.runtime.dependencies import Dependency, Trouble
from services.runtime.health import Health
from services.runtime.identity import Unusable, pair
from services.runtime.interceptors import layers
from services.runtime.tls import TlsFiles

DRAIN_SECONDS = 5.0
CONNECTION_SECONDS = 1_800.0
"""How long a connection takes new calls, give or take a tenth; what goes on over it ends in its own time. So callers
that know the replicas by a single address are spread over them again."""
CONNECTION_STREAMS = 1_500
"""How many calls one connection may have open, which is some more than the layers let in of all kinds together."""
# A dependency at which a look takes longer does not answer.
_HEALTH_TIMEOUT_SECONDS = 3.0
_SILENT = Trouble("NO_ANSWER", "it does not answer")
_FAULT = Trouble("FAULT", "a look at it failed; see the log")

_log = logging.getLogger("server")

Registration = tuple[Callable[[Any, grpc.aio.Server], None], object]
"""A generated `add_…Servicer_to_server` and the servicer."""


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to serve on, `host:port`, port 0 meaning "pick". With `demand_client_certificate`, only
    clients that show a certificate of the CA can connect. When the files of `tls` change, new connections get
    the new certificate."""

    address: str
    tls: TlsFiles
    demand_client_certificate: bool = False


class _Certificate:
    """What a listener shows and whom it trusts, read anew when the files have changed."""

    def __init__(self, listener: Listener) -> None:
        self._tls = listener.tls
        self._trusts = listener.demand_client_certificate
        self._marks = self._marked()
        self.initial = self._read()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed, else None. gRPC calls it before each handshake, in a thread of its own."""
        try:
            marks = self._marked()
            if marks == self._marks:
                return None
            found = self._read()
        except (OSError, Unusable) as error:
            # In the middle of a renewal, too; the next handshake looks again.
            _log.warning("the certificate in %s is not taken: %s", self._tls.certificate, error)
            return None
        self._marks = marks
        return found

    def _marked(self) -> list[tuple[int, int]]:
        found = [path.stat() for path in (self._tls.key, self._tls.certificate, self._tls.ca)]
        return [(status.st_ino, status.st_mtime_ns) for status in found]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        key, chain = self._tls.key.read_bytes(), self._tls.certificate.read_bytes()
        pair(key, chain)
        trusted = self._tls.ca.read_bytes() if self._trusts else None
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=trusted)


class Server:
    """A grpc.aio server with the suite's interceptors, the standard health service and reflection.

    Until `set_serving` it is NOT_SERVING. With `health`, whoever else has that tells the same.
    """

    def __init__(
        self,
        name: str,
        registrations: Sequence[Registration],
        listeners: Sequence[Listener],
        *,
        admin_token_sha256: str | None = None,
        join_tokens: Mapping[str, str] = MappingProxyType({}),
        health: Health | None = None,
    ) -> None:
        self.name = name
        self.ports: tuple[int, ...] = ()
        self._registrations = registrations
        self._listeners = listeners
        self._layers = layers(admin_token_sha256=admin_token_sha256, join_tokens=join_tokens)
        self._health = health or Health()
        self._services = _service_names(registrations)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> tuple[int, ...]:
        """Bind and serve. Returns the port of each listener, in order.

        Raises:
            OSError: an address cannot be bound, or a certificate not read.
            Unusable: key and certificate do not belong together.
        """
        self._server = grpc.aio.server(
            interceptors=[Chain(self._layers)],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                # Also of calls that have said nothing yet, which no layer sees.
                ("grpc.max_concurrent_streams", CONNECTION_STREAMS),
                ("grpc.max_connection_age_ms", round(CONNECTION_SECONDS * 1000)),
                ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
                *KEEPALIVE,
            ],
        )
        for add, servicer in self._registrations:
            add(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        await self.set_serving(False)
        self.ports = tuple(self._bind(self._server, listener) for listener in self._listeners)
        await self._server.start()
        _log.info("%s serves", self.name, extra={"ports": list(self.ports)})
        return self.ports

    @staticmethod
    def _bind(server: grpc.aio.Server, listener: Listener) -> int:
        served = _Certificate(listener)
        credentials = grpc.dynamic_ssl_server_credentials(
            served.initial,
            served.fetch,  # type: ignore[arg-type]  # typed as if it had to return one each time
            listener.demand_client_certificate,
        )
        try:
            port = server.add_secure_port(listener.address, credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            raise OSError(f"cannot listen on {listener.address}: is the address in use?")
        return port

    async def set_serving(self, serving: bool) -> None:
        """What the health service answers, for the server and each of its services."""
        await self._health.set_serving(serving, self._services)

    async def set_waiting(self, dependency: Dependency, trouble: Trouble | None) -> None:
        """What the health service answers for a dependency."""
        await self._health.tell(dependency, trouble)

    async def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """Be NOT_SERVING for good, accept no more calls, let those in flight finish for `grace` seconds, then
        cancel them. May be called again."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(grace)


async def run(
    server: Server,
    *background: Callable[[], Awaitable[None]],
    dependencies: Sequence[Dependency],
    on_drain: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, with `background` running beside; then drain.

    Background functions run until they are cancelled; the first that ends otherwise stops everything. The
    server is SERVING while it has what it needs of `dependencies`, each looked at every second. To drain is:
    NOT_SERVING, `on_drain` (it ends what would never end by itself: streams), stop the server, cancel the
    background functions and wait for them.

    Raises:
        SystemExit: with status 1, an address could not be bound or a background function failed; the log says
        why.
    """
    stopping = asyncio.Event()
    with shutdown.asked(stopping.set):
        await _run(server, stopping, background, dependencies, on_drain)


async def _run(
    server: Server,
    stopping: asyncio.Event,
    background: Sequence[Callable[[], Awaitable[None]]],
    dependencies: Sequence[Dependency],
    on_drain: Callable[[], Awaitable[None]] | None,
) -> None:
    try:
        await server.start()
    except (OSError, Unusable) as error:
        _log.error("%s cannot start: %s", server.name, error)
        raise SystemExit(1) from None
    tasks = [asyncio.create_task(_forever(each)) for each in (*background, lambda: _Watch(server, dependencies).run())]
    stopped = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        failed = [task.exception() for task in tasks if task.done()]
        await _drain(server, on_drain)
    finally:
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.wait([stopped, *tasks], timeout=DRAIN_SECONDS)
        await server.stop(0)  # at once, if this function was cancelled before it could drain
    if failed:
        _log.error("%s failed", server.name, exc_info=failed[0])
        raise SystemExit(1)
    _log.info("%s stopped", server.name)


async def _forever(background: Callable[[], Awaitable[None]]) -> None:
    await background()
    raise RuntimeError(f"{background!r} ended; it should run until it is cancelled")


class _Watch:
    """Looks at the dependencies of a server, and has its health service and its log say what it waits for."""

    def __init__(self, server: Server, dependencies: Sequence[Dependency]) -> None:
        self._server = server
        self._dependencies = dependencies
        self._lost_at: dict[str, float] = {each.name: -float("inf") for each in dependencies if each.needed}
        """When each of those that are needed and stop everything was lost; at the start all count as lost long ago."""
        self._serving = False

    async def run(self) -> None:
        """For ever."""
        if not self._dependencies:
            await self._judge()
        async with asyncio.TaskGroup() as group:
            for each in self._dependencies:
                group.create_task(self._follow(each))
            group.create_task(asyncio.Event().wait())

    async def _follow(self, dependency: Dependency) -> None:
        before: Trouble | None = None
        look: asyncio.Future[Trouble | None] | None = None
        try:
            while True:
                look = look or asyncio.ensure_future(dependency.look())
                if (await asyncio.wait([look], timeout=_HEALTH_TIMEOUT_SECONDS))[0]:
                    trouble, look = self._found(dependency, look, before), None
                else:
                    # It goes on, for what takes long may succeed; until then a known cause tells more than silence.
                    trouble = before if before is not None and before.stops else _SILENT
                await self._tell(dependency, trouble, before)
                before = trouble
                if look is None:
                    await asyncio.sleep(dependency.interval)
        finally:
            if look is not None:
                look.cancel()

    @staticmethod
    def _found(dependency: Dependency, look: asyncio.Future[Trouble | None], before: Trouble | None) -> Trouble | None:
        """What a look that is over has found; the log explains the first of several that failed."""
        try:
            return look.result()
        except Exception:
            if before != _FAULT:
                _log.exception("a look at %s failed", dependency.title)
            return _FAULT

    async def _tell(self, dependency: Dependency, trouble: Trouble | None, before: Trouble | None) -> None:
        if dependency.needed and trouble is not None and trouble.stops:
            self._lost_at.setdefault(dependency.name, time.monotonic())
        else:
            self._lost_at.pop(dependency.name, None)
        if trouble != before:
            words = f"no more for {dependency.title}" if trouble is None else f"for {dependency.title}: {trouble.words}"
            fields = {"dependency": dependency.name, "cause": trouble.cause if trouble else ""}
            _log.log(
                logging.WARNING if trouble else logging.INFO, "%s waits %s", self._server.name, words, extra=fields
            )
        await self._server.set_waiting(dependency, trouble)
        await self._judge()

    async def _judge(self) -> None:
        now = time.monotonic()
        grace = {each.name: each.grace for each in self._dependencies}
        serving = all(now - lost_at < grace[name] for name, lost_at in self._lost_at.items())
        if serving != self._serving:
            self._serving = serving
            _log.info("%s is %s", self._server.name, "healthy" if serving else "not healthy")
            await self._server.set_serving(serving)


async def _drain(server: Server, on_drain: Callable[[], Awaitable[None]] | None) -> None:
    _log.info("%s drains", server.name)
    await server.set_serving(False)
    if on_drain is not None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await on_drain()
        except TimeoutError:
            _log.warning("%s: draining took too long", server.name)
    await server.stop()


class _Names:
    """Takes registrations as a server does, and keeps only the names of the services."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """The names come with the other method; generated code calls both."""

    def add_registered_method_handlers(self, service_name: str, handlers: object) -> None:
        self.found.append(service_name)


def _service_names(registrations: Sequence[Registration]) -> list[str]:
    names = _Names()
    for add, servicer in registrations:
        add(servicer, names)  # type: ignore[arg-type]
    return names.found
