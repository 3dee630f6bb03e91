"""What can be wrong with a stream or a request to the hub, each with its reason (`sis.errors.v1.Reason`)."""

from __future__ import annotations

from services.runtime.errors import (
    Aborted,
    DeadlineExceeded,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)


class StaleEpoch(Aborted):
    reason = "STALE_EPOCH"

    def __init__(self, agent: str) -> None:
        super().__init__(f"a newer stream of agent {agent} was opened; this one is over", metadata={"agent": agent})


class NoHello(DeadlineExceeded):
    def __init__(self, seconds: float) -> None:
        super().__init__(f"hello: none came within {seconds:g} s; send it first, as soon as the stream is open")


class SilentAgent(Unavailable):
    def __init__(self, agent: str, seconds: float) -> None:
        super().__init__(f"agent {agent} was silent for {seconds:g} s; connect again", retry_after=0.2)


class SlowAgent(Unavailable):
    def __init__(self, agent: str) -> None:
        super().__init__(f"agent {agent} reads too slowly; connect again, nothing is lost", retry_after=0.2)


class ShuttingDown(Unavailable):
    reason = "RECONNECT"
    planned = True

    def __init__(self) -> None:
        super().__init__("this hub shuts down; connect to another one, or to this one later", retry_after=0.2)


class StreamTooOld(Unavailable):
    reason = "RECONNECT"
    planned = True

    def __init__(self, agent: str, seconds: float) -> None:
        super().__init__(
            f"the stream of agent {agent} has lasted {seconds:.0f} s; connect again, to another hub where there is one"
            ", so that the agents stay spread",
            retry_after=0.2,
        )


class AgentNotFound(NotFound):
    reason = "AGENT_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"name: no agent {name!r} has ever been connected; `sis agents list` shows the agents",
            metadata={"name": name},
        )


class AgentRevoked(PermissionDenied):
    reason = "AGENT_REVOKED"

    def __init__(self, agent: str) -> None:
        super().__init__(
            f"the certificate of agent {agent} was revoked; pair it (`sis agents pair`) and enrol it again",
            metadata={"agent": agent},
        )


class AgentQuarantined(PermissionDenied):
    reason = "AGENT_QUARANTINED"

    def __init__(self, agent: str) -> None:
        super().__init__(
            f"two programs have connected with the identity of agent {agent}, so neither is heard; remove one, pair "
            "the other (`sis agents pair`) and enrol it again",
            metadata={"agent": agent},
        )


class HubRefused(Unavailable):
    """Not the agent for which the hub asks: to agents it is a part that does not work for now."""

    def __init__(self, service: str, message: str) -> None:
        super().__init__(f"the {service} refuses this hub: {message}", retry_after=5.0)


class Starting(Unavailable):
    def __init__(self) -> None:
        super().__init__("this hub does not know yet who was revoked; connect again", retry_after=1.0)


class RenewalUnderWay(ResourceExhausted):
    def __init__(self) -> None:
        super().__init__("certificate_request: the one before it is under way; wait for its answer", retry_after=5.0)
