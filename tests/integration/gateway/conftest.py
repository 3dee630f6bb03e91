"""Gateways: one before a scripted upstream, one before a real queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.upstream import Upstream
from tests.support.certificates import CertificateAuthority
from tests.support.gateway_server import GatewayServer, LoopThread


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def thread() -> Iterator[LoopThread]:
    found = LoopThread()
    yield found
    found.close()


@pytest.fixture(scope="session")
def _scripted(thread: LoopThread, authority: CertificateAuthority) -> Iterator[tuple[Upstream, str]]:
    names = ("localhost", "queue", "credentials", "hub")
    upstream = Upstream()
    server, port = thread.run(upstream.start(authority.issue("spiffe://sis/service/fake", names)))
    yield upstream, f"127.0.0.1:{port}"
    thread.run(server.stop(0))


@pytest.fixture
def upstream(_scripted: tuple[Upstream, str]) -> Upstream:
    """All services behind `gateway`; nothing is scripted yet."""
    found, _ = _scripted
    found.forget()
    return found


@pytest.fixture(scope="session")
def upstream_endpoint(_scripted: tuple[Upstream, str]) -> str:
    return _scripted[1]


@pytest.fixture(scope="session")
def gateway(thread: LoopThread, authority: CertificateAuthority, upstream_endpoint: str) -> Iterator[GatewayServer]:
    """A gateway before `upstream`; do not stop it."""
    found = GatewayServer(thread, authority.service("gateway"), queue=upstream_endpoint)
    yield found
    found.stop()
