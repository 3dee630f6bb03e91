from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.runtime.tls import TlsFiles
from sis.cli.main import run
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


class Ran:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Sis = Callable[..., Ran]


@pytest.fixture
def sis(
    endpoint: str,
    queue_tls: TlsFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Sis:
    """The command line, for the scripted server; `stdin` is what it reads from there."""
    token = tmp_path / "token"
    token.write_text("t")
    monkeypatch.setenv("SIS_QUEUE_ENDPOINT", endpoint)
    monkeypatch.setenv("SIS_CREDENTIALS_ENDPOINT", endpoint)
    monkeypatch.setenv("SIS_TOKEN_FILE", str(token))
    monkeypatch.setenv("SIS_CA", str(queue_tls.ca))
    monkeypatch.delenv("SIS_HUB_ENDPOINT", raising=False)

    def call(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run(arguments)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return call
