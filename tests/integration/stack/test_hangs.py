"""Which servers count as hanging: silent ones that live, look after look; with servers that do and do not answer."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from pathlib import Path

import pytest

from services.runtime.server import Listener, Server
from sis.stack.hangs import Answer, Bounds, HangWatch, Watched, asks
from sis.stack.processes import Identity, Kind
from tests.support.certificates import CertificateAuthority

BOUNDS = Bounds(interval=5.0, silence=30.0, start=120.0, answer=5.0)
QUICK = Bounds(interval=0.01, silence=0.05, start=600, answer=0.01)
QUEUE = Watched("queue", "queue", Identity(7, 70), "127.0.0.1:1")
HUB = Watched("hub-1", "hub", Identity(8, 80), "127.0.0.1:2")


class Site:
    """A watch whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.living = [QUEUE, HUB]
        self.silent: set[str] = set()
        self.refusing: set[str] = set()
        self.slow = 0.0
        self.told: list[tuple[str, int]] = []
        self._watch = HangWatch(
            lambda: list(self.living),
            self._ask,
            lambda server, seconds: self.told.append((server.name, round(seconds))),
            pytest.fail,
            BOUNDS,
            lambda: self.now,
        )

    def _ask(self, server: Watched, seconds: float) -> Answer:
        self.now += self.slow
        if server.name in self.refusing:
            return Answer.REFUSED
        if server.name in self.silent:
            self.now += seconds
            return Answer.NONE
        return Answer.GIVEN

    def look(self, times: int = 1, after: float = BOUNDS.interval) -> None:
        for _ in range(times):
            self.now += after
            self._watch.look()

    def end(self) -> None:
        self._watch.stop()


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_server_that_is_silent_for_long_hangs_and_is_told_of_once(site: Site) -> None:
    site.look()
    site.silent = {"queue"}
    site.look(2)
    assert site.told == []
    site.look(20)
    assert site.told == [("queue", 35)]


def test_one_answer_begins_the_count_anew(site: Site) -> None:
    site.look()
    for _ in range(10):
        site.silent = {"hub-1"}
        site.look(2)
        site.silent = set()
        site.look()
    assert site.told == []


def test_a_server_that_has_not_answered_yet_has_longer(site: Site) -> None:
    site.silent = {"queue"}
    site.look(10)
    assert site.told == []
    site.look(5)
    assert [name for name, _ in site.told] == ["queue"]
    assert site.told[0][1] >= BOUNDS.start


def test_a_server_that_does_not_listen_yet_waits_for_something(site: Site) -> None:
    """For its certificate, for example, as long as the credential service is away."""
    site.refusing = {"queue"}
    site.look(100)
    site.refusing, site.silent = set(), {"queue"}
    site.look(10)
    assert site.told == [], "its time begins when it listens"
    site.look(10)
    assert [name for name, _ in site.told] == ["queue"]


def test_a_server_that_has_answered_and_does_not_listen_any_more_hangs(site: Site) -> None:
    site.look()
    site.refusing = {"queue"}
    site.look(20)
    assert [name for name, _ in site.told] == ["queue"]


def test_another_process_in_its_place_begins_anew(site: Site) -> None:
    site.look()
    site.silent = {"queue"}
    site.look(2)
    site.living = [Watched("queue", "queue", Identity(9, 90), QUEUE.endpoint), HUB]
    site.look(3)
    assert site.told == []


@pytest.mark.parametrize("gap", ["between looks", "in a look"])
def test_a_gap_in_the_looks_begins_anew(site: Site, gap: str) -> None:
    site.look()
    site.silent = {"queue"}
    for _ in range(10):
        site.look(2)
        if gap == "between looks":
            site.look(after=100)
        else:
            site.slow = 100
            site.look()
            site.slow = 0
    assert site.told == []


def test_nobody_is_told_of_anything_after_the_end(site: Site) -> None:
    site.look()
    site.silent = {"queue"}
    site.end()
    site.look(20)
    assert site.told == []


def test_those_that_live_when_it_begins_have_answered() -> None:
    told = threading.Event()
    watch = HangWatch(lambda: [QUEUE], lambda *_: Answer.NONE, lambda *_: told.set(), pytest.fail, QUICK)
    watch.start()
    try:
        assert told.wait(20)
    finally:
        watch.stop()


def test_however_many_are_silent_all_are_asked_at_the_same_time() -> None:
    """Of those that wait for their turn the time would be unknown."""
    servers = [Watched(f"hub-{n}", "hub", Identity(n, n), f"127.0.0.1:{n}") for n in range(1, 20)]
    together = threading.Barrier(len(servers))
    told: set[str] = set()
    over = threading.Event()

    def ask(server: Watched, seconds: float) -> Answer:
        together.wait(20)
        return Answer.NONE

    def tell(server: Watched, seconds: float) -> None:
        told.add(server.name)
        if len(told) == len(servers):
            over.set()

    watch = HangWatch(lambda: servers, ask, tell, lambda _: over.set(), QUICK)
    watch.start()
    try:
        assert over.wait(60)
    finally:
        watch.stop()
    assert told == {server.name for server in servers}


def test_a_look_that_fails_is_told_once_and_the_watch_goes_on() -> None:
    faults = iter([OSError("too many open files"), OSError("too many open files"), ValueError("not ASCII")])
    complaints: list[str] = []
    told = threading.Event()

    def ask(server: Watched, seconds: float) -> Answer:
        if fault := next(faults, None):
            raise fault
        return Answer.NONE

    watch = HangWatch(lambda: [QUEUE], ask, lambda *_: told.set(), complaints.append, QUICK)
    watch.start()
    try:
        assert told.wait(20)
    finally:
        watch.stop()
    assert complaints == ["nobody can tell whether servers hang: OSError: too many open files"]


def ask(directory: Path, authority: CertificateAuthority, kind: Kind, endpoint: str) -> Answer:
    (directory / "token").write_text("t0ken")
    server = Watched("it", kind, Identity(1, 1), endpoint)
    return asks(directory / "token", authority.ca)(server, 2.0)


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_server_that_waits_for_something_answers(tmp_path: Path, trusted: bool) -> None:
    authority = CertificateAuthority(tmp_path / "ours")
    other = authority if trusted else CertificateAuthority(tmp_path / "theirs")
    server = Server("queue", [], [Listener("127.0.0.1:0", other.service("queue"))])
    (port,) = await server.start()
    try:
        assert await asyncio.to_thread(ask, tmp_path, authority, "queue", f"127.0.0.1:{port}") is Answer.GIVEN
    finally:
        await server.stop(0)


@pytest.mark.parametrize("kind", ["queue", "gateway"])
def test_one_that_takes_connections_and_says_nothing_does_not_answer(tmp_path: Path, kind: Kind) -> None:
    authority = CertificateAuthority(tmp_path / "ours")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert ask(tmp_path, authority, kind, f"127.0.0.1:{silent.getsockname()[1]}") is Answer.NONE


@pytest.mark.parametrize("kind", ["queue", "gateway"])
def test_one_that_does_not_listen_refuses(tmp_path: Path, kind: Kind) -> None:
    authority = CertificateAuthority(tmp_path / "ours")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert ask(tmp_path, authority, kind, f"127.0.0.1:{nobody.getsockname()[1]}") is Answer.REFUSED


def test_a_gateway_answers_with_whatever_status(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "ours")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as gateway:
        gateway.timeout = 20  # for a request that does not come
        thread = threading.Thread(target=gateway.handle_request)
        thread.start()
        try:
            assert ask(tmp_path, authority, "gateway", f"127.0.0.1:{gateway.server_port}") is Answer.GIVEN
        finally:
            thread.join()


def test_without_a_ca_nobody_can_ask_and_nobody_is_blamed(tmp_path: Path) -> None:
    server = Watched("it", "queue", Identity(1, 1), "127.0.0.1:1")
    assert asks(tmp_path / "token", tmp_path / "ca.pem")(server, 2.0) is Answer.GIVEN
