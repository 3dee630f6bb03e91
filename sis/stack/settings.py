"""What a stack consists of: chosen at the first `sis up`, kept in `settings.json`, changed by a later `sis
up`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sis.private_files import write_private
from sis.stack.errors import StackError
from sis.stack.layout import Layout
from sis.stack.patience import RECOVERY_SECONDS

_START_SECONDS = 55.0
_REPLICA_SECONDS = 15.0
MIGRATION_SECONDS = 3600.0
"""What a migration may take: one that is given up is rolled back, and the next `sis up` begins it anew."""
STOP_SECONDS = 7.0
"""What each of the four stages of a stop may take; the whole stays below the 30 s that `sis down` waits."""

MOST_REPLICAS = 4
"""More would serve nobody on one machine."""


def start_seconds(replicas: int) -> float:
    """Within this time PostgreSQL is ready, from then on the migrations begin, and after them everything is healthy, or
    `sis up` gives up; stopping what had started takes a little more."""
    return _START_SECONDS + _REPLICA_SECONDS * (replicas - 1)


def longest_start_seconds(replicas: int) -> float:
    """What a start takes at the most, with a recovery of PostgreSQL and migrations that are as long as they may be."""
    return 3 * start_seconds(replicas) + RECOVERY_SECONDS + MIGRATION_SECONDS


Port = Annotated[int, Field(ge=0, le=65535)]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked of `sis up`; None keeps what was chosen before. Port 0 means "pick one"."""

    data: Path
    detach: bool = False
    replicas: int | None = None
    """Of each server: credential service, queue, hub, gateway."""
    agents: int | None = None
    slots: int | None = None
    queue_port: int | None = None
    """The first queue's public listener."""
    queue_internal_port: int | None = None
    """The first queue's listener for the suite's own processes."""
    hub_port: int | None = None
    """The first hub's public listener."""
    hub_agent_port: int | None = None
    """The first hub's listener for agents."""
    hub_enrolment_port: int | None = None
    """The first hub's listener for agents that are not certified yet, or not any more."""
    credentials_port: int | None = None
    """The first credential service's public listener."""
    vault_port: int | None = None
    """OpenBao."""
    gateway_port: int | None = None
    """The first gateway's HTTP."""
    retention_days: float | None = None
    """Jobs that ended so long ago are deleted; 0 keeps them."""
    retention_jobs: int | None = None
    """So many jobs that have ended are kept; 0 is no bound."""
    retention_export: str | None = None
    """The directory to which jobs are exported before retention deletes them; "" exports none."""
    metrics: bool | None = None
    """Whether Prometheus can read what the processes measure."""


class Settings(BaseModel):
    """The choices; `ports` is what was picked last, by listener, so that a stack is found where it was."""

    model_config = ConfigDict(frozen=True)

    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS)] = 1
    agents: Annotated[int, Field(ge=0, le=64)] = 1
    slots: Annotated[int, Field(ge=1, le=256)] = 8
    queue_port: Port = 0
    queue_internal_port: Port = 0
    hub_port: Port = 0
    hub_agent_port: Port = 0
    hub_enrolment_port: Port = 0
    credentials_port: Port = 0
    vault_port: Port = 0
    gateway_port: Port = 0
    retention_days: Annotated[float, Field(ge=0, le=36_500)] = 0
    retention_jobs: Annotated[int, Field(ge=0)] = 0
    retention_export: str = ""
    metrics: bool = False
    ports: dict[str, Port] = Field(default_factory=dict)

    @property
    def local_agents(self) -> list[str]:
        """The names of the agents."""
        return [f"local-{number}" for number in range(1, self.agents + 1)]


def load(layout: Layout, options: Options) -> Settings:
    """The settings kept, changed by the options.

    Raises:
        StackError: a value is out of its range (one sentence for each), or the file is damaged.
    """
    try:
        kept = layout.settings.read_bytes()
    except FileNotFoundError:
        kept = b"{}"
    asked = {
        name: value
        for name in Settings.model_fields
        if name != "ports" and (value := getattr(options, name)) is not None
    }
    try:
        saved = Settings.model_validate_json(kept)
    except ValidationError:
        raise StackError(f"{layout.settings} is damaged; correct or remove it") from None
    try:
        found = Settings.model_validate({**saved.model_dump(), **asked})
    except ValidationError as error:
        problems = [f"--{str(e['loc'][0]).replace('_', '-')}: {_lowered(e['msg'])}" for e in error.errors()]
        raise StackError("; ".join(problems)) from None
    if options.retention_export and not (found.retention_days or found.retention_jobs):
        raise StackError("--retention-export: nothing is deleted; give --retention-days or --retention-jobs too")
    return found


def save(layout: Layout, settings: Settings) -> None:
    write_private(layout.settings, settings.model_dump_json(indent=2).encode() + b"\n")


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
