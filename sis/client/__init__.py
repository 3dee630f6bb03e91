"""The client library: jobs, packages, credentials and agents of a suite, from Python."""

from sis.client.client import Client
from sis.client.errors import ApiError, ClientError, ConfigurationError, Violation

__all__ = ["ApiError", "Client", "ClientError", "ConfigurationError", "Violation"]
