"""The gateway: HTTP and JSON for the suite's public methods. `python -m gateway.main`."""

from __future__ import annotations

import logging
import re
import ssl
import sys
from pathlib import Path
from typing import Annotated

import uvloop
from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_settings import SettingsConfigDict

from gateway.app import Gateway
from gateway.server import Certificate, Server, is_loopback, run
from gateway.upstreams import Upstreams
from services.runtime import joining, open_files, shutdown
from services.runtime.exporting import exported
from services.runtime.health import Health
from services.runtime.probes import probed
from services.runtime.settings import Endpoint, ServiceSettings, Target
from services.runtime.telemetry import configure_logging

_OPEN_FILES = 8_192
_SESSION_KEY = re.compile(rb"[A-Za-z0-9_-]{43}")

_log = logging.getLogger("gateway")


def _paired(key: Path | None, info: ValidationInfo) -> Path | None:
    if (key is None) != (info.data.get("tls_certificate") is None):
        raise ValueError("give it together with SIS_GATEWAY_TLS_CERTIFICATE, or neither")
    return key


def _protected(listen: str, info: ValidationInfo) -> str:
    if not info.data.get("tls_certificate") and not info.data.get("behind_proxy") and not is_loopback(listen):
        raise ValueError(
            "tokens would cross the network in plain HTTP; give SIS_GATEWAY_TLS_CERTIFICATE and SIS_GATEWAY_TLS_KEY, "
            "listen on a loopback address, or set SIS_GATEWAY_BEHIND_PROXY"
        )
    return listen


class GatewaySettings(ServiceSettings):
    """The environment of a gateway."""

    model_config = SettingsConfigDict(env_prefix="SIS_GATEWAY_")

    # The internal listeners of queue and credential service, and the hub's for agents.
    queue_endpoint: Target
    credentials_endpoint: Target
    hub_endpoint: Target
    # What browsers are shown; without it, plain HTTP.
    tls_certificate: Path | None = None
    tls_key: Annotated[Path | None, AfterValidator(_paired)] = Field(None, validate_default=True)
    # A proxy before it does TLS for browsers, and says in X-Forwarded-For who calls; nobody else can reach it.
    behind_proxy: bool = False
    listen: Annotated[Endpoint, AfterValidator(_protected)]
    # By which the sessions of browsers are sealed: 32 bytes in URL-safe base64 a line, the newest first, the same for
    # all replicas. Without it, sessions end with this process.
    session_key_file: Path | None = None

    def session_keys(self) -> list[bytes]:
        """Raises OSError, or ValueError where the file holds anything but keys."""
        if self.session_key_file is None:
            return []
        lines = self.session_key_file.read_bytes().split()
        # 32 bytes are 43 characters; most programs write what fills them up to 44, too.
        keys = [line.removesuffix(b"=") for line in lines]
        if not keys or not all(_SESSION_KEY.fullmatch(key) for key in keys):
            raise ValueError("must be lines of 32 bytes in URL-safe base64")
        return [key + b"=" for key in keys]


async def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM."""
    async with probed(settings.probe_listen) as health:
        await _serve(settings, health)


async def _serve(settings: GatewaySettings, health: Health) -> None:
    certificate = None
    if settings.tls_certificate and settings.tls_key:
        try:
            certificate = Certificate(settings.tls_certificate, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            sys.exit(f"error: SIS_GATEWAY_TLS_CERTIFICATE, SIS_GATEWAY_TLS_KEY: {error}")
    try:
        session_keys = settings.session_keys()
    except (OSError, ValueError) as error:
        sys.exit(f"error: SIS_GATEWAY_SESSION_KEY_FILE: {error}")
    identity = joining.identity(settings, "gateway")
    await identity.ready()
    upstreams = Upstreams(
        identity,
        queue=settings.queue_endpoint,
        credentials=settings.credentials_endpoint,
        hub=settings.hub_endpoint,
    )
    gateway = Gateway(
        upstreams, tls=certificate is not None, behind_proxy=settings.behind_proxy, session_keys=session_keys
    )
    server = Server(gateway, settings.listen, certificate)
    try:
        await run(server, identity.run, *([certificate.run] if certificate else []), serving=health.set_serving)
    finally:
        await upstreams.close()


def main() -> None:
    configure_logging("gateway")
    if sys.argv[1:]:
        sys.exit(f"error: {' '.join(sys.argv[1:])!r} is not known; give nothing to serve")
    settings = GatewaySettings.load()
    open_files.allow(_OPEN_FILES)
    shutdown.prepare()
    with exported("gateway", settings.metrics_listen):
        uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
