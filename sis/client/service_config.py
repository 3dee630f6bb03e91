"""What both clients ask of gRPC: deadlines, and which calls are repeated while a server is away for a moment."""

from __future__ import annotations

import json

CALL_SECONDS = 20.0
"""The deadline of a call that is answered once, its retries included."""
PUSH_SECONDS = 600.0
"""That of a call which sends a package."""
STREAM_SECONDS = 3600.0
"""The deadline of a stream; what is followed for longer goes on with the next one."""

# A lost answer may have had its effect, so only methods are here whose contract calls a retry safe. Every
# CreateJob, RerunJob and CreateCredential carries a request id. Not what deletes: the second time finds nothing. Nor
# ApplyVerb, which may delete. Nor any stream: gRPC, when a server dies between its repeated tries, at times gives the
# call neither an answer nor an end. Streams are opened again by `resuming`.
RETRIED = {
    "sis.queue.v1.JobService": [
        "CreateJob",
        "GetJob",
        "ListJobs",
        "ListJobHistory",
        "ReadLog",
        "SearchLog",
        "ExplainJob",
        "RerunJob",
        "CopyJob",
        "ActivateJob",
        "CancelJob",
        "AbortJob",
    ],
    "sis.queue.v1.PackageService": ["ListPackages", "GetPackage"],
    "sis.agent.v1.AgentAdminService": ["ListAgents", "GetAgent"],
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
    # Of several replicas one, drawn for each connection, has all calls; another one when it is gone.
    "loadBalancingConfig": [{"pick_first": {"shuffleAddressList": True}}],
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method} for service, methods in RETRIED.items() for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # A server that died without a word is noticed within half a minute, also by a silent monitor.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's own pings, which measure bandwidth, would otherwise hold keepalive up for a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A try to connect that nobody answers is given up after 5 s for a fresh one.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def options(target: str, service: str) -> list[tuple[str, str | int]]:
    """Of a channel to a server, or to the replicas of a service. Those that are listed by their addresses have no host
    in common: their certificates must name the service, which the suite certifies for nobody else."""
    if service and target.startswith(("ipv4:", "ipv6:")):
        return [*_OPTIONS, ("grpc.ssl_target_name_override", service)]
    return _OPTIONS
