"""Vault away in each of the ways in which it can be, and what it is called then; each time it comes back by itself."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import ssl
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.credentials import vault_session
from services.credentials.bootstrap import POLICY, policy
from services.credentials.vault import Vault
from services.credentials.vault_errors import (
    ValueMissing,
    VaultError,
    VaultFailed,
    VaultForbidden,
    VaultRateLimited,
    VaultSealed,
    VaultSlow,
    VaultUnreachable,
)
from services.runtime.dependencies import Trouble
from tests.support.openbao import OpenBaoServer
from tests.support.tcp_proxy import TcpProxy

_numbers = itertools.count(1)
SECRET = "correct horse battery staple"
OPERATIONS: list[Callable[[Vault, str], Awaitable[object]]] = [
    lambda vault, path: vault.read(path),
    lambda vault, path: vault.write(path, {"secret": SECRET}, 1),
    lambda vault, path: vault.current_version(path),
    lambda vault, path: vault.list("credentials"),
    lambda vault, path: vault.destroy(path),
    lambda vault, path: vault.revoke("abc"),
    lambda vault, path: vault.ca(),
]


@pytest.fixture
async def path(vault: Vault) -> str:
    """Where a secret is."""
    found = f"credentials/outage-{next(_numbers)}"
    await vault.write(found, {"secret": SECRET}, 0)
    return found


@pytest.fixture
async def proxied(openbao: OpenBaoServer) -> AsyncIterator[tuple[Vault, TcpProxy]]:
    """A Vault with a proxy before it, and half a second for each operation."""
    async with TcpProxy(f"127.0.0.1:{openbao.server.port}") as proxy:
        vault = Vault(openbao.settings(address=f"https://{proxy.endpoint}", timeout_seconds=0.5))
        yield vault, proxy
        proxy.heal()
        proxy.cut()
        await vault.close()


@pytest.fixture
async def patient(openbao: OpenBaoServer) -> AsyncIterator[tuple[Vault, TcpProxy]]:
    """The same with half a minute, which no test waits for."""
    async with TcpProxy(f"127.0.0.1:{openbao.server.port}") as proxy:
        vault = Vault(openbao.settings(address=f"https://{proxy.endpoint}", timeout_seconds=30))
        yield vault, proxy
        proxy.heal()
        proxy.cut()
        await vault.close()


async def recovered(vault: Vault, path: str) -> None:
    """Wait until it works, again or for the first time."""
    deadline = time.monotonic() + 20
    while True:
        try:
            assert (await vault.read(path)).values == {"secret": SECRET}
        except VaultError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


def check(caught: pytest.ExceptionInfo[VaultError], reason: str) -> None:
    """It says what it is, when to try again, and nothing of any secret."""
    assert caught.value.reason == reason
    assert caught.value.retry_after
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    error: BaseException | None = caught.value
    while error is not None:  # nothing that knows the request hangs on it
        assert isinstance(error, VaultError | TimeoutError | asyncio.CancelledError), error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_sealed(
    vault: Vault, openbao: OpenBaoServer, path: str, operation: Callable[[Vault, str], Awaitable[object]]
) -> None:
    openbao.seal()
    with pytest.raises(VaultSealed, match="unseal it") as caught:
        await operation(vault, path)
    check(caught, "VAULT_SEALED")
    openbao.unseal()
    await recovered(vault, path)


async def test_sealed_before_the_first_login(openbao: OpenBaoServer, vault: Vault, path: str) -> None:
    openbao.seal()
    another = Vault(openbao.settings())
    with pytest.raises(VaultSealed):
        await another.read(path)
    openbao.unseal()
    await recovered(another, path)
    await another.close()


async def test_killed_and_started_again(vault: Vault, openbao: OpenBaoServer, path: str) -> None:
    openbao.kill()
    for operation in OPERATIONS:
        with pytest.raises(VaultUnreachable, match=f"at {openbao.address}: Connection refused") as caught:
            await operation(vault, path)
        check(caught, "VAULT_UNREACHABLE")
    openbao.stop()
    openbao.start()
    with pytest.raises(VaultSealed):
        await vault.read(path)
    openbao.unseal()
    await recovered(vault, path)


async def test_stopped_as_a_process_it_is_slow(openbao: OpenBaoServer, vault: Vault, path: str) -> None:
    impatient = Vault(openbao.settings(timeout_seconds=0.5))
    await recovered(impatient, path)
    openbao.kill(signal.SIGSTOP)
    with pytest.raises(VaultSlow, match=r"within 0\.5 s") as caught:
        await impatient.read(path)
    check(caught, "VAULT_SLOW")
    openbao.kill(signal.SIGCONT)
    await recovered(impatient, path)
    await impatient.close()


async def test_in_a_black_hole_it_is_slow(path: str, proxied: tuple[Vault, TcpProxy]) -> None:
    vault, proxy = proxied
    await recovered(vault, path)
    proxy.black_hole()
    for operation in (*OPERATIONS[:2], *OPERATIONS[:1]):
        with pytest.raises(VaultSlow) as caught:
            await operation(vault, path)
        check(caught, "VAULT_SLOW")
    proxy.cut()
    proxy.heal()
    await recovered(vault, path)


async def test_refused_it_is_unreachable(path: str, proxied: tuple[Vault, TcpProxy]) -> None:
    vault, proxy = proxied
    await recovered(vault, path)
    await proxy.refuse()
    proxy.cut()
    with pytest.raises(VaultUnreachable) as caught:
        await vault.read(path)
    check(caught, "VAULT_UNREACHABLE")
    await proxy.accept()
    await recovered(vault, path)


async def test_reset_before_it_answers_it_is_unreachable(
    openbao: OpenBaoServer, vault: Vault, path: str, patient: tuple[Vault, TcpProxy]
) -> None:
    through, proxy = patient
    # Each of its threads is connected: the write needs no handshake, which would be held back, too.
    await through.read(path)
    await asyncio.gather(*(through.read(path) for _ in range(vault_session.CALLS)))
    proxy.black_hole(to_target=False)
    call = asyncio.create_task(through.write(path, {"secret": SECRET}, 1))
    async with asyncio.timeout(20):
        while await vault.current_version(path) != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    proxy.cut()
    proxy.heal()
    with pytest.raises(VaultUnreachable) as caught:
        await call
    check(caught, "VAULT_UNREACHABLE")
    await recovered(through, path)


class Threads:
    """The threads of a `Vault` that has not called yet."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def count(self) -> int:
        return sum(each.name.startswith("vault") for each in set(threading.enumerate()) - self._before)

    async def all_called(self) -> None:
        """Wait until as many calls are under way as may be."""
        async with asyncio.timeout(20):
            while self.count() < vault_session.CALLS:  # noqa: ASYNC110  (nobody tells)
                await asyncio.sleep(0.01)


async def test_a_vault_that_hangs_never_holds_up_the_loop(path: str, patient: tuple[Vault, TcpProxy]) -> None:
    vault, proxy = patient
    threads = Threads()
    await vault.read(path)
    proxy.black_hole()
    calls = [asyncio.create_task(vault.read(path)) for _ in range(200)]
    await threads.all_called()
    # A loop that waited for Vault would not come here before it had given up, and the proxy is in it as well.
    proxy.heal()
    assert {found.version for found in await asyncio.gather(*calls)} == {1}
    assert threads.count() == vault_session.CALLS


async def test_a_vault_that_hangs_takes_no_more_than_its_calls(path: str, proxied: tuple[Vault, TcpProxy]) -> None:
    vault, proxy = proxied
    threads = Threads()
    await recovered(vault, path)
    before = proxy.accepted
    proxy.black_hole()
    results = await asyncio.gather(*(vault.read(path) for _ in range(200)), return_exceptions=True)
    assert all(isinstance(result, VaultSlow) for result in results)
    assert threads.count() <= vault_session.CALLS
    assert proxy.accepted - before <= 4 * vault_session.CALLS  # half of the time is enough to give up a handshake
    proxy.cut()
    proxy.heal()
    await recovered(vault, path)


async def test_too_many_that_wait_are_refused_at_once(path: str, proxied: tuple[Vault, TcpProxy]) -> None:
    vault, proxy = proxied
    await recovered(vault, path)
    proxy.black_hole()
    results = await asyncio.gather(*(vault.read(path) for _ in range(2_000)), return_exceptions=True)
    assert all(isinstance(result, VaultSlow) for result in results)


async def test_a_call_that_is_given_up_stops_nobody(path: str, patient: tuple[Vault, TcpProxy]) -> None:
    vault, proxy = patient
    threads = Threads()
    await vault.read(path)
    proxy.black_hole()
    calls = [asyncio.create_task(vault.read(path)) for _ in range(30)]
    await threads.all_called()
    for call in calls:
        call.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*calls, return_exceptions=True))
    proxy.cut()
    proxy.heal()
    await recovered(vault, path)


async def test_it_is_closed_whatever_hangs(openbao: OpenBaoServer, path: str) -> None:
    async with TcpProxy(f"127.0.0.1:{openbao.server.port}") as proxy:
        vault = Vault(openbao.settings(address=f"https://{proxy.endpoint}", timeout_seconds=0.5))
        threads = Threads()
        await recovered(vault, path)
        proxy.black_hole()
        calls = [asyncio.create_task(vault.read(path)) for _ in range(30)]
        await threads.all_called()
        await vault.close()
        assert threads.count() == 0
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, VaultSlow | RuntimeError) for result in results)


async def test_a_certificate_that_is_not_trusted(openbao: OpenBaoServer, path: str) -> None:
    vault = Vault(openbao.settings(ca=None))
    with pytest.raises(VaultUnreachable, match="its certificate is not trusted"):
        await vault.read(path)
    await vault.close()


async def test_a_ca_that_is_not_there(openbao: OpenBaoServer, path: str, tmp_path: Path) -> None:
    vault = Vault(openbao.settings(ca=tmp_path / "none.pem"))
    with pytest.raises(VaultUnreachable):
        await vault.read(path)
    await vault.close()


async def test_a_host_that_is_not_there(openbao: OpenBaoServer, path: str) -> None:
    vault = Vault(openbao.settings(address="https://vault.invalid:8200"))
    with pytest.raises(VaultUnreachable, match=r"at https://vault\.invalid:8200: "):
        await vault.read(path)
    await vault.close()


async def test_its_trouble_is_what_a_call_would_meet(openbao: OpenBaoServer, vault: Vault, path: str) -> None:
    assert await vault.trouble() is None
    openbao.seal()
    assert await vault.trouble() == Trouble("VAULT_SEALED", "it is sealed; unseal it")
    openbao.unseal()
    await recovered(vault, path)
    assert await vault.trouble() is None


async def test_a_login_that_was_taken_back_is_its_trouble(openbao: OpenBaoServer, path: str, tmp_path: Path) -> None:
    """The token was revoked, and there is no other with a secret id that is not good any more."""
    settings = openbao.role(tmp_path, token_period=60)
    assert settings.secret_id_file is not None
    vault = Vault(settings)
    assert (await vault.read(path)).values == {"secret": SECRET}
    assert await vault.trouble() is None
    mine = await vault._session.call(lambda client: client.auth.token.lookup_self()["data"]["accessor"])
    openbao.root("POST", "auth/token/revoke-accessor", {"accessor": mine})
    good = settings.secret_id_file.read_text()
    settings.secret_id_file.write_text("revoked")
    assert await vault.trouble() == Trouble("VAULT_FORBIDDEN", VaultForbidden.words)
    settings.secret_id_file.write_text(good)
    assert await vault.trouble() is None
    await vault.close()


async def test_a_vault_without_an_active_node_is_in_trouble(
    openbao: OpenBaoServer, something_else: tuple[int, type[_Answers]]
) -> None:
    """Its standbys say of themselves that they are not sealed, which is true."""
    port, answers = something_else
    vault = Vault(openbao.settings(address=f"https://127.0.0.1:{port}"))
    answers.body = b'{"auth": {"client_token": "t", "lease_duration": 60, "renewable": true}, "data": {}}'
    assert await vault.trouble() is None
    answers.status, answers.body = 500, b'{"errors": ["local node not active but active cluster node not found"]}'
    assert await vault.trouble() == Trouble("VAULT_UNREACHABLE", "it does not answer")
    answers.status, answers.body = 200, b'{"sealed": false}'
    assert await vault.trouble() == Trouble("VAULT_FAILED", "it fails")
    await vault.close()


async def test_forbidden_until_the_policy_is_back(openbao: OpenBaoServer, vault: Vault, path: str) -> None:
    openbao.root("POST", f"sys/policies/acl/{POLICY}", {"policy": 'path "nothing" {capabilities = ["read"]}'})
    try:
        for operation in OPERATIONS[:-1]:
            with pytest.raises(VaultForbidden, match="Vault denies") as caught:
                await operation(vault, path)
            check(caught, "VAULT_FORBIDDEN")
    finally:
        openbao.root(
            "POST",
            f"sys/policies/acl/{POLICY}",
            {"policy": policy("credentials", kv_mount="sis-kv", pki_mount="sis-pki")},
        )
    await recovered(vault, path)


async def test_what_is_forbidden_does_not_make_logins_without_end(
    openbao: OpenBaoServer, vault: Vault, path: str
) -> None:
    await vault.read(path)
    before = len(openbao.tokens())
    for _ in range(20):
        with pytest.raises(VaultForbidden):
            await vault.read("elsewhere/a")
    assert len(openbao.tokens()) == before


async def test_a_policy_that_is_gone_does_not_make_logins_without_end(
    openbao: OpenBaoServer, vault: Vault, path: str
) -> None:
    """Nor do the looks at Vault, which nobody ends."""
    await vault.read(path)
    before = len(openbao.tokens())
    openbao.root("POST", f"sys/policies/acl/{POLICY}", {"policy": 'path "nothing" {capabilities = ["read"]}'})
    try:
        for _ in range(20):
            assert await vault.trouble() == Trouble("VAULT_FORBIDDEN", VaultForbidden.words)
        assert len(openbao.tokens()) <= before + 2
    finally:
        openbao.root(
            "POST",
            f"sys/policies/acl/{POLICY}",
            {"policy": policy("credentials", kv_mount="sis-kv", pki_mount="sis-pki")},
        )
    assert await vault.trouble() is None
    await recovered(vault, path)


@pytest.mark.parametrize("said", [True, False])
async def test_rate_limited(openbao: OpenBaoServer, vault: Vault, path: str, said: bool) -> None:
    openbao.root("POST", "sys/quotas/config", {"enable_rate_limit_response_headers": said})
    await vault.read(path)
    openbao.root("POST", "sys/quotas/rate-limit/tight", {"path": "sis-kv", "rate": 1, "interval": "30s"})
    try:
        with pytest.raises(VaultRateLimited) as caught:
            for _ in range(3):
                await vault.read(path)
        check(caught, "VAULT_RATE_LIMITED")
        assert caught.value.retry_after is not None
        assert (2 <= caught.value.retry_after <= 30) if said else (caught.value.retry_after == 1)
    finally:
        openbao.root("DELETE", "sys/quotas/rate-limit/tight")
    await recovered(vault, path)


async def test_a_mount_that_is_not_there_is_no_missing_value(openbao: OpenBaoServer, tmp_path: Path) -> None:
    openbao.root("POST", "sys/policies/acl/broad", {"policy": 'path "gone/*" {capabilities = ["read", "list"]}'})
    settings = openbao.role(tmp_path, token_policies=["broad"])
    vault = Vault(settings.model_copy(update={"kv_mount": "gone"}))
    for operation in (vault.read("credentials/a"), vault.current_version("credentials/a"), vault.list("credentials")):
        with pytest.raises(VaultFailed, match="with 404: no handler for route"):
            await operation
    await vault.close()


class _Answers(BaseHTTPRequestHandler):
    status, body, content_type = 200, b"", "text/html"
    location = ""
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Type", self.content_type)
        if self.location:
            self.send_header("Location", self.location)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def something_else(openbao: OpenBaoServer) -> Iterator[tuple[int, type[_Answers]]]:
    """A web server, with the certificate of Vault, that is not one."""
    answers = type("Answers", (_Answers,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(openbao.server.ca, openbao.server.ca.with_name("certificate.key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], answers
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "expected", "message"),
    [
        (200, b"<html>hunter22</html>", VaultFailed, "is not Vault"),
        (200, b"[]", VaultFailed, "is not understood"),
        (200, b'{"auth": {}}', VaultFailed, "is not understood"),
        (404, b"<html>hunter22</html>", VaultFailed, "login with 404"),
        (404, b'{"message": "hunter22"}', VaultFailed, "login with 404"),
        (404, b'{"data": null}', VaultFailed, "login with 404"),
        (404, b"[]", VaultFailed, "login with 404"),
        (404, b"", VaultFailed, "login with 404"),
        (500, b'{"errors": ["hunter22"]}', VaultFailed, "with 500"),
        (502, b"<html>hunter22</html>", VaultUnreachable, "no active node"),
        (503, b"<html>hunter22</html>", VaultUnreachable, "no active node"),
        (500, b'{"errors": ["local node not active but ..."]}', VaultUnreachable, "no active node"),
        (501, b'{"errors": ["server is not initialized"]}', VaultSealed, "unseal it"),
        (429, b"", VaultRateLimited, "rate limit"),
    ],
)
async def test_what_stands_before_vault_is_not_taken_for_it(
    openbao: OpenBaoServer,
    something_else: tuple[int, type[_Answers]],
    status: int,
    body: bytes,
    expected: type[VaultError],
    message: str,
) -> None:
    port, answers = something_else
    answers.status, answers.body = status, body
    vault = Vault(openbao.settings(address=f"https://127.0.0.1:{port}"))
    with pytest.raises(expected, match=message) as caught:
        await vault.read("credentials/a")
    # What is said of a login is not repeated.
    assert "hunter22" not in str(caught.value)
    await vault.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_a_redirect_is_not_followed(
    openbao: OpenBaoServer, something_else: tuple[int, type[_Answers]], status: int, scheme: str
) -> None:
    port, answers = something_else
    answers.status, answers.location = status, f"{scheme}://localhost:{port}/v1/elsewhere?secret=hunter22"
    vault = Vault(openbao.settings(address=f"https://127.0.0.1:{port}"))
    with pytest.raises(
        VaultUnreachable, match=rf"it sends its callers on to {scheme}://localhost:{port}, which .* give the address"
    ) as caught:
        await vault.read("credentials/a")
    check(caught, "VAULT_UNREACHABLE")
    assert "hunter22" not in str(caught.value)
    assert answers.asked == ["/v1/auth/approle/login"]
    await vault.close()


async def test_no_log_holds_what_is_sent_or_read(
    openbao: OpenBaoServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    vault = Vault(openbao.settings())
    await vault.write(path, {"secret": SECRET}, 1)
    await vault.read(path)
    with pytest.raises(ValueMissing):
        await vault.read(path, 9)
    await vault.close()
    assert not [record for record in caplog.records if record.name.startswith(("urllib3", "hvac"))]
    assert SECRET not in caplog.text
    assert (openbao.output / "secret-id").read_text().strip() not in caplog.text
