"""Configuration from the environment: typed, checked once at the start, refused in words."""

from __future__ import annotations

import ipaddress
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.runtime import postgres_url


def _checked_endpoint(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("give host:port, with a port from 0 to 65535")
    return value


Endpoint = Annotated[str, AfterValidator(_checked_endpoint)]
"""`host:port`; an IPv6 host is in brackets. A listener may have port 0: the system picks one."""


_LISTS = {"ipv4": ipaddress.IPv4Address, "ipv6": ipaddress.IPv6Address}


def _checked_target(value: str) -> str:
    scheme, _, several = value.partition(":")
    addresses = several.split(",") if scheme in _LISTS else [value]
    for each in addresses:
        host = _checked_endpoint(each).rpartition(":")[0]
        if scheme in _LISTS:
            try:
                _LISTS[scheme](host.strip("[]"))
            except ValueError:
                raise ValueError(f"{host!r} is no address of {scheme}; give a name alone, as host:port") from None
    return value


Target = Annotated[str, AfterValidator(_checked_target)]
"""Where a service is called: `host:port`, of whose addresses all are used, or several replicas as
`ipv4:10.0.0.1:7402,10.0.0.2:7402`, or with `ipv6:`."""


DatabaseUrl = Annotated[str, AfterValidator(postgres_url.checked)]
"""Where PostgreSQL is."""


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Texts separated by commas."""
Endpoints = Annotated[tuple[Endpoint, ...], NoDecode, BeforeValidator(_split)]
"""Endpoints separated by commas."""


def _seconds(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12 else value


Duration = Annotated[timedelta, BeforeValidator(_seconds)]
"""A number of seconds, or a duration of ISO 8601, such as P30D."""

Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in lower-case hexadecimal."""


class Settings(BaseSettings):
    """The settings of one process. A subclass names its prefix:

    class QueueSettings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="SIS_QUEUE_")
        database_url: str
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    @classmethod
    def load(cls) -> Self:
        """Read the environment, and what it lacks from the files of the directory SIS_SECRETS, each called as the
        variable; if anything in it is wrong, print a line for each field and exit with 2."""
        secrets = os.environ.get("SIS_SECRETS") or None
        if secrets is not None and not Path(secrets).is_dir():
            sys.stderr.write(f"error: SIS_SECRETS: {secrets} is no directory; name that of the files with secrets\n")
            raise SystemExit(2)
        try:
            settings = cls(_secrets_dir=secrets)
        except ValidationError as error:
            problems = [
                _problem(cls.model_config.get("env_prefix", ""), e["loc"], e["type"], e["msg"]) for e in error.errors()
            ]
            sys.stderr.write("".join(f"error: {problem}\n" for problem in problems))
            raise SystemExit(2) from None
        return settings


class IdentitySettings(Settings):
    """Of a process that proves itself by a certificate."""

    # The PEM file of the CA.
    tls_ca: Path
    # The directory of its key and certificate.
    identity: Path
    # DNS names and IP addresses under which it is reached; its own name is always in.
    host_names: Texts = ()
    # Where Prometheus reads its measurements, over plain HTTP and without a proof of who reads; unset, nowhere.
    metrics_listen: Endpoint | None = None
    # Plain, for grpc.health.v1 alone: `liveness` says that the process answers, the empty name whether it serves.
    probe_listen: Endpoint | None = None


class ServiceSettings(IdentitySettings):
    """Of a server process that gets its certificate from the credential service."""

    # The credential service's listener for people.
    join_endpoint: Target
    # Holds the token by which it proves itself there.
    join_token_file: Path


def _problem(prefix: str, location: tuple[int | str, ...], kind: str, message: str) -> str:
    parts = [f".{part}" if isinstance(part, int) else f"_{part}" for part in location]
    name = prefix + "".join(parts).removeprefix("_").upper()
    if kind == "missing":
        return f"{name} is not set"
    return f"{name}: {message.removeprefix('Value error, ')}"
