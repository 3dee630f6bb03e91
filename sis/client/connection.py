"""One TLS channel to a server: the one place where a call gets its deadline, token and typed error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from sis.client.errors import from_grpc

CALL_SECONDS = 20.0
"""The deadline of a call that is answered once, its retries included."""
STREAM_SECONDS = 3600.0
"""The deadline of a stream; a monitor that outlives it goes on with the next one."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

# A lost answer may have had its effect, so only methods are here whose contract calls a retry safe. Every
# CreateJob carries a request id. Not DeleteJob: the second time finds no job.
_RETRIED = {
    "sis.queue.v1.JobService": [
        "CreateJob",
        "GetJob",
        "ListJobs",
        "ListJobHistory",
        "ActivateJob",
        "CancelJob",
        "AbortJob",
        "GetConsoleOutput",
        "GetDebugLog",
    ],
    "sis.queue.v1.PackageService": ["ListPackages", "GetPackage"],
    "sis.agent.v1.AgentAdminService": ["ListAgents", "GetAgent"],
    # Every CreateCredential carries a request id as well.
    "sis.credentials.v1.CredentialService": [
        "CreateCredential",
        "ListCredentials",
        "GetCredential",
        "ListCredentialUsage",
        "BindCredential",
    ],
    "sis.credentials.v1.AgentIdentityService": ["RevokeAgent", "ListAgentIdentities"],
}
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method} for service, methods in _RETRIED.items() for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # A server that died without a word is noticed within half a minute, also by a silent monitor.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class Connection:
    """A channel to `endpoint`; it connects at the first call. Close it after use."""

    def __init__(self, endpoint: str, token: str, ca: bytes | None, seconds: float = CALL_SECONDS) -> None:
        self.endpoint = endpoint
        self.channel = grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(ca), options=_OPTIONS)
        self._seconds = seconds
        self._metadata = (("authorization", f"Bearer {token}"),)

    def call(self, method: Callable[..., _Response], request: object, seconds: float | None = None) -> _Response:
        """Make a call that is answered once.

        Raises:
            ApiError: it was refused, or not answered before the deadline.
        """
        try:
            return method(request, timeout=seconds or self._seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_grpc(error, self.endpoint) from None

    def stream(
        self, method: grpc.UnaryStreamMultiCallable[_Request, _Response], request: _Request
    ) -> Iterator[_Response]:
        """The answers of a server-stream. Leaving the iteration early cancels the call.

        Raises:
            ApiError: it was refused, or broke off.
        """
        answers = method(request, timeout=STREAM_SECONDS, metadata=self._metadata)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise from_grpc(error, self.endpoint) from None
        finally:
            answers.cancel()

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self.channel.close()
