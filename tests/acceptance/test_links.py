"""Every connection between two processes, cut, slowed, swallowed, torn and refused: what runs goes on, what was asked
for is done once, and nothing is stuck once the link is whole.

The names of the links are those of `LinkedStack`.
"""

from __future__ import annotations

import getpass
import itertools
import random
import secrets
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from sis.client import ApiError, Client
from sis.credentials.v1 import credential_pb2, credential_service_pb2
from sis.queue.v1 import job_pb2
from tests.support import promises
from tests.support.enrolled import EnrolledAgent
from tests.support.linked_stack import LINKS, LinkedStack
from tests.support.numbered_job import NumberedJob, shell_job, until
from tests.support.tcp_proxy import ProxyThread, TcpProxy

pytestmark = pytest.mark.timeout(300)

Answer = TypeVar("Answer")

TERMINAL = frozenset(
    {
        job_pb2.JOB_STATUS_SUCCEEDED,
        job_pb2.JOB_STATUS_FAILED,
        job_pb2.JOB_STATUS_CANCELED,
        job_pb2.JOB_STATUS_ABORTED,
        job_pb2.JOB_STATUS_TIMED_OUT,
    }
)

JOINING = {"queue-credentials": "queue-1", "hub-joining": "hub-1", "gateway-joining": "gateway-1"}
"""Who gets its certificate over which link."""
ENROLMENT = "agent-enrolment"
CALLED = tuple(link for link in LINKS if link not in JOINING and link != ENROLMENT)
"""The links that are in use all the time."""

Act = Callable[[TcpProxy], object]

MISBEHAVIOURS: Mapping[str, tuple[Act, ...]] = {
    "refused": (lambda p: p.refuse(), lambda p: p.cut()),
    "silent": (lambda p: p.silence(), lambda p: p.cut()),
    "swallowed": (lambda p: p.black_hole(),),
    "swallowed, no questions": (lambda p: p.black_hole(to_client=False),),
    "swallowed, no answers": (lambda p: p.black_hole(to_target=False),),
    "swallowed and cut": (lambda p: p.black_hole(), lambda p: p.cut()),
    "half closed to the server": (lambda p: p.half_close(to_target=True),),
    "half closed to the client": (lambda p: p.half_close(to_client=True),),
    "delayed": (lambda p: p.slow(delay=0.05, jitter=0.2),),
    "by satellite": (lambda p: p.slow(delay=0.35), lambda p: p.cut()),
    "narrow": (lambda p: p.slow(bytes_per_second=2_000),),
    "one byte a second": (lambda p: p.slow(bytes_per_second=1),),
    "dribbling": (lambda p: p.slow(piece=1),),
}


@dataclass
class Site:
    """The stack under test, and who calls it."""

    stack: LinkedStack
    client: Client
    """Past the links."""
    linked: Client
    """Over them."""
    credential: str
    directory: Path
    begun: ExitStack = field(default_factory=ExitStack)
    """What must end with the test that has begun it."""

    def numbered(self) -> NumberedJob:
        """A running job with a credential, watched over the link of clients."""
        job = NumberedJob(
            self.stack.client,
            self.directory / secrets.token_hex(4),
            watch=self.stack.linked_client,
            credentials={"secret": self.credential},
        )
        self.begun.enter_context(job)
        job.wait_lines()
        return job

    def calling(self, call: Callable[[], Answer]) -> Calling[Answer]:
        """Make a call in a thread of its own."""
        calling = Calling(call)
        self.begun.callback(calling.join)
        return calling

    def leased(self) -> int:
        """A short job with a credential."""
        return self.client.jobs.create(shell_job("echo done", credentials={"secret": self.credential})).job_id

    def ended(self, job_id: int) -> job_pb2.Job:
        """The job, once it has ended."""
        until(lambda: self.client.jobs.get(job_id).status in TERMINAL, f"the end of job {job_id}")
        return self.client.jobs.get(job_id)

    def succeeded(self, *job_ids: int) -> None:
        """Wait for these jobs to succeed."""
        for job_id in job_ids:
            job = self.ended(job_id)
            assert job.status == job_pb2.JOB_STATUS_SUCCEEDED, job

    def works(self, link: str) -> None:
        """Wait until whoever uses this link is served."""
        match link:
            case "client-credentials":
                assert self.linked.credentials.get(self.credential).name == self.credential
            case "client-hub":
                assert [agent.name for agent in self.linked.agents.list().agents] == ["local-1"]
            case "gateway-queue":
                until(lambda: self._http("jobs"), "an answer of the queue by HTTP")
            case "gateway-credentials":
                until(lambda: self._http("credentials"), "an answer of the credential service by HTTP")
            case "gateway-hub":
                until(lambda: self._http("agents"), "an answer of the hub by HTTP")
            case _:
                self.succeeded(self.leased())

    def _http(self, what: str) -> bool:
        request = urllib.request.Request(
            f"{self.stack.gateway}/v1/{what}", headers={"authorization": f"Bearer {self.stack.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError):
            return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("links")
    stack = LinkedStack(directory / "data")
    try:
        stack.up()
        with stack.client() as client, stack.linked_client() as linked:
            credential = "own"
            client.credentials.create(
                credential_service_pb2.CreateCredentialRequest(
                    name=credential,
                    kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
                    username=getpass.getuser(),
                    value=credential_pb2.SecretValue(secret=secrets.token_bytes(12).hex().encode()),
                )
            )
            yield Site(stack, client, linked, credential, directory)
    finally:
        stack.close()


@pytest.fixture(autouse=True)
def _whole_afterwards(site: Site) -> Iterator[None]:
    """Whatever happens to the links: the promises hold, no lease outlives its job, and nothing goes on into the next
    test."""
    with site.begun:
        yield
        site.stack.faults.clear()
        site.stack.heal()
        site.stack.wait_healthy()
    with site.stack.database() as connection:
        promises.check(promises.read(connection))
        left = "SELECT count(*) FROM queue.lease_ends"
        until(lambda: connection.execute(left).fetchone() == (0,), "the ends of all leases")


def misbehave(link: ProxyThread, name: str, seconds: float) -> None:
    """Let the link misbehave for a while."""
    for act in MISBEHAVIOURS[name]:
        link(act)
    time.sleep(seconds)
    heal(link)


def heal(link: ProxyThread) -> None:
    link(lambda proxy: proxy.heal())
    link(lambda proxy: proxy.accept())


def cut(link: ProxyThread) -> None:
    link(lambda proxy: proxy.cut())


class Calling(Generic[Answer]):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._answer: list[Answer] = []
        self._error: list[BaseException] = []
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer.append(self._call())
        except BaseException as error:  # shown by `answer`
            self._error.append(error)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "the call does not end"

    def answer(self) -> Answer:
        """What it returned or raised."""
        self.join()
        if self._error:
            raise self._error[0]
        return self._answer[0]


def again(call: Callable[[], Answer]) -> Answer:
    """Call, and call again while the failure is one that passes, as a person does."""
    for _ in range(20):
        try:
            return call()
        except ApiError as error:
            if not error.passing:
                raise
            time.sleep(0.2)
    return call()


def committed(site: Site, query: str, *values: object) -> bool:
    """Whether the database, which no proxy hides, has it."""
    with site.stack.database() as connection:
        return connection.execute(f"SELECT EXISTS ({query})".encode(), values).fetchone() == (True,)


def test_every_link_cut_and_torn_in_turn(site: Site) -> None:
    job = site.numbered()
    started = []
    for name in CALLED:
        link = site.stack.links[name]
        cut(link)
        started.append(site.leased())
        job.wait_lines(2)
        link(lambda proxy: proxy.cut_after(to_target=40, to_client=90))
        job.wait_lines(2)
    site.succeeded(*started)
    for name in CALLED:
        heal(site.stack.links[name])
    job.check()


def test_every_link_swallowed_for_a_moment(site: Site) -> None:
    """Nothing is lost that was under way, and whatever was cut off meanwhile is told again."""
    job = site.numbered()
    started = []
    kinds = ("swallowed", "swallowed, no questions", "swallowed, no answers", "swallowed and cut")
    for name, kind in zip(CALLED, itertools.cycle(kinds)):
        started.append(site.leased())
        misbehave(site.stack.links[name], kind, 0.3)
        job.wait_lines(2)
    site.succeeded(*started)
    job.check()


def test_a_create_whose_answer_is_lost_makes_one_job(site: Site) -> None:
    """The client asks again with the same request id, and gets the job that it has."""
    link = site.stack.links["client-queue"]
    site.linked.jobs.list()
    request = shell_job("echo once", request_id=secrets.token_hex(8))
    link(lambda proxy: proxy.black_hole(to_target=False))
    call = site.calling(lambda: site.linked.jobs.create(request))
    until(lambda: committed(site, "SELECT FROM queue.request_ids WHERE request_id = %s", request.request_id), "the job")
    cut(link)
    heal(link)
    job = call.answer()
    assert again(lambda: site.linked.jobs.create(request)).job_id == job.job_id
    with site.stack.database() as connection:
        count = connection.execute("SELECT count(*) FROM queue.jobs WHERE job_id >= %s", [job.job_id]).fetchone()
    assert count == (1,)
    site.succeeded(job.job_id)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(site: Site) -> None:
    """Nobody but the database knows that it was committed; the request id finds out."""
    link = site.stack.links["queue-postgres"]
    request = shell_job("echo once", request_id=secrets.token_hex(8))
    link(lambda proxy: proxy.black_hole(to_target=False))
    # A commit is the last of several questions, of each of which the answer must come: let them through one by one.
    call = site.calling(lambda: again(lambda: site.client.jobs.create(request)))
    made = "SELECT FROM queue.request_ids WHERE request_id = %s"
    deadline = time.monotonic() + 60
    while not committed(site, made, request.request_id):
        assert time.monotonic() < deadline, "the job is not made"
        before = link.proxy.bytes_to_target
        link(lambda proxy: proxy.heal())
        until(
            lambda before=before: (
                link.proxy.bytes_to_target > before  # type: ignore[misc]
                or committed(site, made, request.request_id)
            ),
            "the next question",
        )
        link(lambda proxy: proxy.black_hole(to_target=False))
    cut(link)
    heal(link)
    job = call.answer()
    assert again(lambda: site.client.jobs.create(request)).job_id == job.job_id
    site.succeeded(job.job_id)


@pytest.mark.parametrize(
    ("link", "point"),
    [
        ("client-queue", "queue.create.committed"),
        ("hub-queue", "queue.claim.committed"),
        ("hub-credentials", "credentials.lease.committed"),
        ("hub-queue", "queue.report.committed"),
        *(
            pytest.param(link, point, marks=pytest.mark.long)
            for link, point in [
                ("hub-credentials", "credentials.end.committed"),
                ("hub-queue", "queue.acknowledgement.committed"),
                ("hub-queue", "queue.session.committed"),
                ("agent-hub", "hub.report.answered"),
                ("queue-postgres", "queue.create.committing"),
                ("queue-postgres", "queue.claim.committing"),
                ("credentials-postgres", "credentials.lease.committing"),
                ("credentials-vault", "credentials.reading"),
                ("queue-postgres", "queue.report.committing"),
                ("credentials-postgres", "credentials.end.committing"),
                ("queue-postgres", "queue.acknowledgement.committing"),
                ("queue-postgres", "queue.session.committing"),
                ("hub-postgres", "hub.session.opening"),
                ("agent-hub", "hub.claimed"),
                ("agent-hub", "hub.leased"),
            ]
        ),
    ],
)
def test_a_link_that_is_cut_at_the_moment_of_a_commit(site: Site, link: str, point: str) -> None:
    """Whoever waits for its answer cannot know whether it was; whatever is asked again has its effect once."""
    starts = site.directory / secrets.token_hex(4)
    request = shell_job(
        f"echo $$ >> '{starts}'", credentials={"secret": site.credential}, request_id=secrets.token_hex(8)
    )
    site.linked.jobs.list()  # so that there is a connection to cut
    site.stack.faults.arm(point, "hold")
    call = site.calling(lambda: again(lambda: site.linked.jobs.create(request)))
    if "session" in point:
        cut(site.stack.links["agent-hub"])
    site.stack.faults.wait_passed(point)
    cut(site.stack.links[link])
    site.stack.faults.release(point)
    job_id = call.answer().job_id
    assert again(lambda: site.linked.jobs.create(request)).job_id == job_id
    site.succeeded(job_id)
    assert len(starts.read_text().splitlines()) == 1


@pytest.mark.parametrize("verb", ["cancel", "abort"])
def test_a_verb_whose_answer_is_lost_is_done_once(site: Site, verb: str) -> None:
    link = site.stack.links["client-queue"]
    job = site.numbered()
    link(lambda proxy: proxy.black_hole(to_target=False))
    call = site.calling(lambda: again(lambda: getattr(site.linked.jobs, verb)(job.job_id)))
    history = "SELECT FROM queue.history WHERE job_id = %s AND event = %s"
    until(lambda: committed(site, history, job.job_id, verb.upper()), "the verb")
    cut(link)
    heal(link)
    call.answer()
    stopped(site, job, verb)


@pytest.mark.long
@pytest.mark.parametrize("verb", ["cancel", "abort"])
@pytest.mark.parametrize("name", ["queue-postgres", "hub-queue", "agent-hub"])
@pytest.mark.parametrize("how", ["refused", "swallowed"])
def test_a_verb_reaches_the_site_once_the_link_is_whole(site: Site, name: str, verb: str, how: str) -> None:
    job = site.numbered()
    for act in MISBEHAVIOURS[how]:
        site.stack.links[name](act)
    call = site.calling(lambda: again(lambda: getattr(site.client.jobs, verb)(job.job_id)))
    time.sleep(1)
    heal(site.stack.links[name])
    call.answer()
    stopped(site, job, verb)


def stopped(site: Site, numbered: NumberedJob, verb: str) -> None:
    """The job has been stopped by this verb, what it started is gone, and its watcher has seen that."""
    job = site.ended(numbered.job_id)
    expected = job_pb2.JOB_STATUS_CANCELED if verb == "cancel" else job_pb2.JOB_STATUS_ABORTED
    assert job.status == expected, job
    until(lambda: site.client.jobs.get(job.job_id).stop_state == job_pb2.STOP_STATE_CONFIRMED, "the stop")
    assert site.client.jobs.get(job.job_id).stop_evidence.tree_empty
    numbered.wait_watched()


@pytest.mark.long
@pytest.mark.parametrize("name", CALLED)
def test_a_link_that_misbehaves_in_every_way(site: Site, name: str) -> None:
    job = site.numbered()
    for kind in MISBEHAVIOURS:
        misbehave(site.stack.links[name], kind, 0.6)
        job.wait_lines(2)
        site.works(name)
    job.check()


@pytest.mark.long
@pytest.mark.parametrize("name", ["agent-hub", "hub-queue", "hub-credentials", "queue-postgres", "client-queue"])
def test_a_message_torn_at_any_place(site: Site, name: str) -> None:
    link = site.stack.links[name]
    job = site.numbered()
    places = random.Random(name)
    for _ in range(8):
        for way in ("to_target", "to_client"):
            place = int(2 ** places.uniform(0, 14))
            link(lambda proxy, way=way, place=place: proxy.cut_after(**{way: place}))  # type: ignore[misc]
            job.wait_lines(2)
        site.works(name)
    heal(link)
    job.check()


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["agent-hub", "hub-queue", "queue-postgres", "credentials-vault", "hub-postgres", "client-queue"]
)
def test_a_peer_that_dies_without_a_word_is_given_up_for_a_new_connection(site: Site, name: str) -> None:
    """Nothing is closed, and nothing comes any more: each side finds out by itself, people within half a minute."""
    link = site.stack.links[name]
    job = site.numbered()
    before = link.proxy.accepted
    link(lambda proxy: proxy.black_hole())
    request = shell_job("echo done", credentials={"secret": site.credential}, request_id=secrets.token_hex(8))
    call = site.calling(lambda: again(lambda: site.client.jobs.create(request)))
    until(lambda: link.proxy.accepted > before, "somebody who tries another connection", seconds=45)
    heal(link)
    cut(link)
    job.wait_lines()
    site.succeeded(call.answer().job_id)
    job.check()


@pytest.mark.long
def test_a_hundred_cuts_leave_nothing_behind(site: Site) -> None:
    """Neither descriptors nor threads, in any process."""
    names = ("hub-1", "queue", "credentials", "gateway", "local-1")
    job = site.numbered()
    for name in CALLED:
        site.works(name)
    before = {name: _held(site.stack.pid(name)) for name in names}
    for _ in range(100):
        for link in CALLED:
            cut(site.stack.links[link])
        time.sleep(0.1)  # connections are cut at every stage of their making
    job.wait_lines()
    for name in CALLED:
        site.works(name)
    job.check()

    def settled() -> bool:
        held = {name: _held(site.stack.pid(name)) for name in names}
        return all(now <= then + 10 for name in names for now, then in zip(held[name], before[name], strict=True))

    until(settled, f"as little as before: {before}, { ({name: _held(site.stack.pid(name)) for name in names}) }")


def _held(pid: int) -> tuple[int, int]:
    """The descriptors and the threads of a process."""
    process = Path(f"/proc/{pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


@pytest.mark.long
@pytest.mark.parametrize("link", JOINING)
@pytest.mark.parametrize("how", ["refused", "swallowed"])
def test_a_service_without_a_certificate_waits_for_its_link(site: Site, link: str, how: str) -> None:
    process = JOINING[link]
    former = site.stack.pid(process)
    for act in MISBEHAVIOURS[how]:
        site.stack.links[link](act)
    shutil.rmtree(site.stack.layout.identity(process))
    before = site.stack.links[link].proxy.accepted
    site.stack.kill(process)
    site.stack.wait_restarted(process, former)
    if how != "refused":
        until(lambda: site.stack.links[link].proxy.accepted > before, "somebody who tries")
    heal(site.stack.links[link])
    site.stack.wait_healthy()
    site.succeeded(site.leased())


@pytest.mark.long
@pytest.mark.parametrize("how", ["refused", "swallowed, no answers", "torn", "dribbling", "by satellite"])
def test_an_agent_enrols_once_its_link_is_whole(site: Site, how: str) -> None:
    """A code whose answer was lost is not used up for the agent that has its key."""
    link = site.stack.links[ENROLMENT]
    name = f"far-{secrets.token_hex(3)}"
    code = site.client.identities.pair(name, "far").code
    agent = EnrolledAgent(site.stack, site.directory / name, slots=1)
    if how == "torn":
        link(lambda proxy: proxy.cut_after(to_client=2_500))
    else:
        for act in MISBEHAVIOURS[how]:
            link(act)
    call = site.calling(lambda: agent.enrol(code))
    time.sleep(1.5)
    if how != "by satellite":
        heal(link)
    done = call.answer()
    heal(link)
    if done.returncode != 0:
        assert "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr
        done = agent.enrol(code)
    assert done.returncode == 0, done.stderr
