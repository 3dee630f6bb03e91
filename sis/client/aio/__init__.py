"""The client: `Jobs`, `Packages` and the others are what `AsyncClient` gives."""

from sis.client.aio.client import AsyncClient

__all__ = ["AsyncClient"]
