"""Where the servers are and how to prove who calls: the local stack's own file, or the environment.

`sis up` leaves `stack.json` in its data directory. A remote suite is named by SIS_QUEUE_ENDPOINT,
SIS_HUB_ENDPOINT, SIS_CREDENTIALS_ENDPOINT, SIS_TOKEN_FILE and SIS_CA. An endpoint is host:port, or several replicas as
`ipv4:10.0.0.1:7401,10.0.0.2:7401`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sis.client.errors import ConfigurationError
from sis.paths import expanded


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What a client must know. The token is kept out of the representation."""

    queue: str
    """The queue's public listener, or those of its replicas."""
    token: Token
    ca: bytes | None = None
    """The certificates to trust (PEM), None for the system's."""
    hub: str = ""
    """The public listener of a hub, or of several, "" where it is not known (then agents cannot be listed)."""
    credentials: str = ""
    """The credential service's public listener, or those of its replicas, "" where it is not known."""
    enrolment: str = ""
    """host:port at which agents enrol with a local stack, "" with a remote suite: its sites may reach it otherwise."""


class Token(str):
    """A bearer token; its representation does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Token(…)"


def data_directory(data: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the local stack keeps its data: `data`, else SIS_DATA, else ~/.local/share/sis.

    Raises:
        ConfigurationError: it is below a home directory that there is not.
    """
    path = data if data is not None else Path(environment.get("SIS_DATA") or "~/.local/share/sis")
    try:
        return expanded(path)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}, where the data should be: {error.strerror}") from None


def find(data: Path | None = None, environment: Mapping[str, str] = os.environ) -> Endpoints:
    """The endpoints to use: those of the local stack at `data` if given, else the environment's remote suite
    if SIS_QUEUE_ENDPOINT is set, else those of the local stack at its default place.

    Raises:
        ConfigurationError: no stack is up there, or a file cannot be read.
    """
    if data is None and environment.get("SIS_QUEUE_ENDPOINT"):
        return _remote(environment)
    return _local(data_directory(data, environment))


def _remote(environment: Mapping[str, str]) -> Endpoints:
    token_file = environment.get("SIS_TOKEN_FILE")
    if not token_file:
        raise ConfigurationError(
            "SIS_QUEUE_ENDPOINT is set and SIS_TOKEN_FILE is not; set it to the file that holds your token"
        )
    ca = environment.get("SIS_CA")
    return Endpoints(
        queue=environment["SIS_QUEUE_ENDPOINT"],
        hub=environment.get("SIS_HUB_ENDPOINT", ""),
        credentials=environment.get("SIS_CREDENTIALS_ENDPOINT", ""),
        token=_token(Path(token_file), "SIS_TOKEN_FILE"),
        ca=_read(Path(ca), "SIS_CA") if ca else None,
    )


def _local(directory: Path) -> Endpoints:
    path = directory / "stack.json"
    try:
        found = json.loads(path.read_bytes())
        queue, hub, credentials, enrolment = (
            str(found[f"{key}_endpoint"]) for key in ("queue", "hub", "credentials", "enrolment")
        )
        ca, token = str(found["ca"]), str(found["token"])
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigurationError(
            f"no stack is up in {directory}; start one with `sis up --detach`, or name its place with --data"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{path} is damaged; start the stack again with `sis up --detach`") from None
    return Endpoints(
        queue=queue,
        hub=hub,
        credentials=credentials,
        enrolment=enrolment,
        token=_token(directory / token, str(path)),
        ca=_read(directory / ca, str(path)),
    )


def _read(path: Path, named_by: str) -> bytes:
    try:
        return expanded(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}, named by {named_by}, cannot be read: {error.strerror}") from None


def _token(path: Path, named_by: str) -> Token:
    text = _read(path, named_by).decode("utf-8", "replace").strip()
    if not text or not text.isascii() or not text.isprintable():
        raise ConfigurationError(f"{path}, named by {named_by}, does not hold a token")
    return Token(text)
