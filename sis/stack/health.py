"""Whether a process of the stack does its work, asked of the process itself."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sis.client import ApiError, Client
from sis.client.endpoints import Endpoints, Token
from sis.client.sync.connection import Connection
from sis.stack import openbao
from sis.stack.postgres import USER
from sis.stack.state import StackState

HEALTHY = "healthy"
SECONDS = 2.0
"""How long an answer is waited for."""
_BODY_BYTES = 4_096
_WAITS_FOR = "sis-waits-for-bin"


@dataclass(frozen=True, slots=True)
class Probe:
    """Asks the processes of one stack. Every answer is HEALTHY, or what is wrong in a few words."""

    ca: bytes
    """Empty before the PKI is there; then no server has a certificate either."""
    token: str
    vault_ca: Path

    @classmethod
    def of(cls, state: StackState) -> Probe:
        ca = state.ca.read_bytes() if state.ca.exists() else b""
        return cls(ca, state.token.read_text(encoding="ascii").strip(), state.vault_ca)

    def postgres(self, endpoint: str) -> str:
        """`endpoint` is `unix:` and the path of the socket."""
        sockets = Path(endpoint.removeprefix("unix:")).parent
        try:
            with psycopg.connect(
                host=str(sockets),
                user=USER,
                dbname="postgres",
                connect_timeout=int(SECONDS),
                autocommit=True,
                application_name="sis-status",
            ) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            return _short(str(error))
        return HEALTHY

    def vault(self, endpoint: str) -> str:
        """`endpoint` is the address of OpenBao."""
        answer = openbao.health(endpoint, self.vault_ca)
        known = {openbao.UNSEALED: HEALTHY, openbao.SEALED: "sealed", 0: "does not answer"}
        return known.get(answer, f"answers with status {answer}")

    def server(self, endpoint: str) -> str:
        """The standard health service of a credential service, queue or hub, over TLS, and what it waits for."""
        connection = Connection(endpoint, self.token, self.ca, SECONDS)
        try:
            check = health_pb2_grpc.HealthStub(connection.channel).Check
            answer, call = connection.call(check.with_call, health_pb2.HealthCheckRequest())
        except ApiError as error:
            return _short(error.message)
        finally:
            connection.close()
        if waits := _waits(call.trailing_metadata() or ()):
            return _short(waits)
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return HEALTHY
        status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return status.lower().replace("_", " ")

    def gateway(self, endpoint: str) -> str:
        """Its own word on whether it reaches the servers behind it."""
        host, _, port = endpoint.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=SECONDS)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            body = answer.read(_BODY_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            return _short(str(error) or type(error).__name__)
        finally:
            connection.close()
        return HEALTHY if answer.status == http.HTTPStatus.OK else _short(_upstreams(body))

    def agent(self, hubs: Sequence[str], name: str) -> str:
        """Whether a hub holds the agent's stream, from any hub that answers."""
        health = "no hub runs"
        for endpoint in hubs:
            try:
                with Client(Endpoints(endpoint, Token(self.token), self.ca, hub=endpoint), seconds=SECONDS) as client:
                    return HEALTHY if client.agents.get(name).online else "not connected to a hub"
            except ApiError as error:
                health = _short(error.message)
        return health


def _waits(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """What a server waits for, in words; "" for nothing."""
    found = []
    for key, value in metadata:
        if key == _WAITS_FOR and isinstance(value, bytes):
            try:
                told = ErrorInfo.FromString(value).metadata
            except DecodeError:
                continue
            found.append(f"waits for {told['title']}: {told['words']}")
    return "; ".join(found)


def _upstreams(body: str) -> str:
    """What a gateway that is not ready says, in words."""
    try:
        document = json.loads(body)
        away = [name for name, health in document["upstreams"].items() if health != "SERVING"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return body
    return f"waits for {', '.join(away)}" if away else str(document["status"])


def _short(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()[:200]
