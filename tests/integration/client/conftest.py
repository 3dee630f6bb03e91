from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.runtime.tls import TlsFiles
from sis.cli.main import run
from sis.client import AsyncClient, Client
from sis.client.endpoints import Endpoints, Token
from tests.fakes.job_service import Script, serving
from tests.support.blocking import Blocking
from tests.support.certificates import CertificateAuthority


@pytest.fixture(scope="session")
def queue_tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return CertificateAuthority(tmp_path_factory.mktemp("tls")).service("queue")


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def token() -> str:
    return "secret-token"


@pytest.fixture
def endpoint(script: Script, queue_tls: TlsFiles) -> Iterator[str]:
    """A server that follows the script."""
    with serving(script, queue_tls) as address:
        yield address


Connect = Callable[..., AbstractContextManager[Any]]


@contextmanager
def _blocking(endpoints: Endpoints, **options: Any) -> Iterator[Blocking]:
    async def connect() -> AsyncClient:
        return AsyncClient(endpoints, **options)

    with asyncio.Runner() as runner:
        client = runner.run(connect())
        try:
            yield Blocking(runner, client)
        finally:
            runner.run(client.close())


@pytest.fixture(params=[Client, _blocking], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Opens a client, synchronous or asynchronous: both are held to the same."""
    return request.param


@pytest.fixture
def client(endpoint: str, token: str, queue_tls: TlsFiles, connect: Connect) -> Iterator[Client]:
    with connect(Endpoints(endpoint, Token(token), queue_tls.ca.read_bytes()), seconds=10) as made:
        yield made


class _Typed(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


class Ran:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Sis = Callable[..., Ran]


@pytest.fixture
def sis(
    endpoint: str,
    token: str,
    queue_tls: TlsFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Sis:
    """The command line, for the scripted server; `stdin` is what it reads from there, typed at a `terminal`."""
    token_file = tmp_path / "token"
    token_file.write_text(token)
    monkeypatch.setenv("SIS_QUEUE_ENDPOINT", endpoint)
    monkeypatch.setenv("SIS_CREDENTIALS_ENDPOINT", endpoint)
    monkeypatch.setenv("SIS_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("SIS_CA", str(queue_tls.ca))
    monkeypatch.delenv("SIS_HUB_ENDPOINT", raising=False)

    def call(*arguments: str, stdin: bytes = b"", terminal: bool = False) -> Ran:
        read = (_Typed if terminal else io.TextIOWrapper)(io.BytesIO(stdin))
        monkeypatch.setattr("sys.stdin", read)
        code = run(arguments)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return call
