"""One real OpenBao for the tests of the credential service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.credentials.vault import Vault
from tests.support.openbao import OpenBaoServer


@pytest.fixture(scope="package")
def shared_openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    with OpenBaoServer(Path(tmp_path_factory.mktemp("openbao"))) as server:
        yield server


@pytest.fixture
def openbao(shared_openbao: OpenBaoServer) -> Iterator[OpenBaoServer]:
    """A server that works; what a test does to it is undone afterwards, but for what it stores."""
    yield shared_openbao
    shared_openbao.restore()


@pytest.fixture
async def vault(openbao: OpenBaoServer) -> AsyncIterator[Vault]:
    """That server, as the credential service has it."""
    found = Vault(openbao.settings())
    yield found
    await found.close()
