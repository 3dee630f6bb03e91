"""The client library: jobs, packages, credentials and agents of a suite, from Python, with `await` or without."""

from sis.client.aio import AsyncClient
from sis.client.errors import (
    ApiError,
    ClientClosed,
    ClientError,
    ConfigurationError,
    ResumeExpired,
    Violation,
    from_status,
)
from sis.client.sync import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientClosed",
    "ClientError",
    "ConfigurationError",
    "ResumeExpired",
    "Violation",
    "from_status",
]
