"""All public methods over real gRPC and TLS, each answered as a test says; and what they were sent."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from gateway.routes import Binding, bindings
from services.runtime.channels import KEEPALIVE, KEEPALIVE_MS
from services.runtime.errors import SisError, to_status
from services.runtime.tls import TlsFiles

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Many: TypeAlias = Callable[[Any, Context], AsyncIterator[Any]]


@dataclass
class Upstream:
    """`answers` by the name of a method: a message, an error or a status code; of a stream a list of them, or a
    function that yields. What is a function of (request, context) makes the answer. `cancelled` are the methods whose
    caller went away."""

    answers: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    cancelled: queue.Queue[str] = field(default_factory=queue.Queue)
    serving: bool = True

    def forget(self) -> None:
        """What was scripted and what was seen."""
        for each in (self.answers, self.requests, self.metadata):
            each.clear()
        self.cancelled = queue.Queue()
        self.serving = True

    async def start(self, tls: TlsFiles) -> tuple[grpc.aio.Server, int]:
        """Serve until the server is stopped; its port."""
        server = grpc.aio.server(
            options=[("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2), *KEEPALIVE]
        )
        by_service: dict[str, dict[str, Any]] = {"grpc.health.v1.Health": {"Check": self._health()}}
        for binding in bindings():
            service = binding.method.containing_service.full_name
            by_service.setdefault(service, {})[binding.method.name] = self._handler(binding)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, handlers) for name, handlers in by_service.items()]
        )
        credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        return server, port

    def asked(self, method: str) -> list[Any]:
        """The requests that a method was sent."""
        return [request for name, request in self.requests if name == method]

    def _health(self) -> Any:
        async def check(request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
            statuses = health_pb2.HealthCheckResponse
            return statuses(status=statuses.SERVING if self.serving else statuses.NOT_SERVING)

        return grpc.unary_unary_rpc_method_handler(
            check,
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )

    def _handler(self, binding: Binding) -> Any:
        method = binding.method
        codec = (GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString)

        async def one(request: Any, context: Context) -> Any:
            if method.client_streaming and not callable(self.answers.get(method.name)):
                request = [each async for each in request]
            with self._begun(method.name, request, context) as answer:
                return await self._one(answer, request, context)

        async def many(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._begun(method.name, request, context) as answer:
                if callable(answer):
                    async for each in answer(request, context):
                        yield each
                    return
                for each in answer:
                    yield await self._one(each, request, context)

        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(one, *codec)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(many, *codec)
        return grpc.unary_unary_rpc_method_handler(one, *codec)

    @contextmanager
    def _begun(self, name: str, request: Any, context: Any) -> Iterator[Any]:
        self.requests.append((name, request))
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        ended, cancelled = False, self.cancelled

        def over(_: object) -> None:
            if not ended:
                cancelled.put(name)

        context.add_done_callback(over)
        try:
            yield self.answers[name]
        except Exception:
            ended = True
            raise
        ended = True

    async def _one(self, answer: Any, request: Any, context: Context) -> Any:
        if isinstance(answer, Message):
            return answer
        if isinstance(answer, SisError):
            await context.abort_with_status(rpc_status.to_status(to_status(answer)))
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "internal words, with 10.0.0.1:4242")
        return await answer(request, context)
