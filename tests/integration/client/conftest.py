from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.runtime.settings import TlsFiles
from sis.client import Client
from sis.client.endpoints import Endpoints, Token
from tests.fakes.job_service import Script, serving
from tests.support.certificates import CertificateAuthority


@pytest.fixture(scope="session")
def queue_tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return CertificateAuthority(tmp_path_factory.mktemp("tls")).service("queue")


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def endpoint(script: Script, queue_tls: TlsFiles) -> Iterator[str]:
    """A server that follows the script."""
    with serving(script, queue_tls) as address:
        yield address


@pytest.fixture
def client(endpoint: str, queue_tls: TlsFiles) -> Iterator[Client]:
    with Client(Endpoints(endpoint, Token("secret-token"), queue_tls.ca.read_bytes()), seconds=10) as made:
        yield made
