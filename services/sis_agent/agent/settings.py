"""The agent's configuration: environment variables named SIS_AGENT_…"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from services.runtime.settings import Endpoint, Settings


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _pairs(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError("give name=value pairs, separated by commas")
    return {name.strip(): content.strip() for name, _, content in pairs}


class AgentSettings(Settings):
    """What an agent needs to know. Who it is, its certificate says."""

    model_config = SettingsConfigDict(env_prefix="SIS_AGENT_")

    state: Path
    """The directory in which it keeps its journal, its packages and its attempts."""
    hub_endpoints: Annotated[list[Endpoint], NoDecode, BeforeValidator(_split), Field(min_length=1)]
    """`host:port` of each hub, separated by commas; they are tried in turn."""
    slots: Annotated[int, Field(ge=1, le=1_000)] = 8
    """How many attempts it takes at once."""
    labels: Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)] = Field({}, max_length=64)
    """`name=value` pairs, separated by commas."""
