"""The agent's configuration: environment variables named SIS_AGENT_…"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from services.runtime.errors import InvalidArgument
from services.runtime.fields import Violations
from services.runtime.settings import Endpoint, Endpoints, Settings
from services.sis_agent.agent.linux.process_limit import PROCESS_LIMIT

_FEWEST_PROCESSES: Final = 16
_MOST_PROCESSES: Final = 1 << 22
"""More than that Linux does not number."""


def default_state() -> Path:
    """The state directory where nobody names one."""
    return Path("/var/lib/sis-agent") if os.geteuid() == 0 else Path.home() / ".local/share/sis-agent"


def identity_in(state: Path) -> Path:
    """The directory of the identity in a state directory."""
    return state / "identity"


def _pairs(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError("give name=value pairs, separated by commas")
    return {name.strip(): content.strip() for name, _, content in pairs}


def _bounded(labels: dict[str, str]) -> dict[str, str]:
    """As the hub takes them, which otherwise would refuse the agent for as long as it runs."""
    wrong = Violations()
    wrong.labels("labels", labels)
    try:
        "".join((*labels, *labels.values())).encode()
        wrong.refuse()
    except UnicodeEncodeError:
        raise ValueError("give it in UTF-8") from None
    except InvalidArgument as error:
        raise ValueError(error.message) from None
    return labels


def _enough(count: int) -> int:
    if count != 0 and not _FEWEST_PROCESSES <= count <= _MOST_PROCESSES:
        raise ValueError(f"give {_FEWEST_PROCESSES} to {_MOST_PROCESSES:,} processes, or 0 for any number")
    return count


class AgentSettings(Settings):
    """What an agent needs to know. Who it is, and where its hubs are, it was told when it enrolled."""

    model_config = SettingsConfigDict(env_prefix="SIS_AGENT_")

    # Absolute: a payload is started elsewhere.
    state: Annotated[Path, AfterValidator(Path.absolute)] = Field(default_factory=default_state)
    """The directory in which it keeps its identity, its journal, its packages and its attempts."""
    hub_endpoints: Endpoints = ()
    """`host:port` of each hub, separated by commas; it begins with the first. Without any, those of the identity."""
    slots: Annotated[int, Field(ge=1, le=1_000)] = 8
    """How many attempts it takes at once."""
    labels: Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs), AfterValidator(_bounded)] = Field({})
    """`name=value` pairs, separated by commas: at most 32, of names of up to 63 and values of up to 200 characters."""
    cache_bytes: Annotated[int, Field(ge=0)] = 2 << 30
    """How much the unpacked packages in its cache may take. One that a job holds is kept beyond it."""
    process_limit: Annotated[int, AfterValidator(_enough)] = PROCESS_LIMIT
    """How many processes and threads a payload may have at once; 0 for any number."""
    metrics_listen: Endpoint | None = None
    """Where Prometheus reads its measurements, over plain HTTP and without a proof of who reads; unset, nowhere."""
    probe_listen: Endpoint | None = None
    """Plain, for grpc.health.v1 alone: `liveness` says that the agent answers, the empty name whether a hub has it."""

    @property
    def identity(self) -> Path:
        """The directory of its identity."""
        return identity_in(self.state)
