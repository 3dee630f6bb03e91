"""Short jobs, each with phases: what happens in one after the other, and may be struck meanwhile."""

from __future__ import annotations

import getpass
import secrets
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final, TypeVar

from sis.client import ApiError, Client, from_status
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.packages import archive
from sis.queue.v1 import job_pb2, job_service_pb2
from tests.crash import strikes
from tests.support.numbered_job import shell_job
from tests.support.stack import Stack

T = TypeVar("T")

CASE_SECONDS: Final = 90.0
ENDED: Final = frozenset(
    {
        job_pb2.JOB_STATUS_SUCCEEDED,
        job_pb2.JOB_STATUS_FAILED,
        job_pb2.JOB_STATUS_CANCELED,
        job_pb2.JOB_STATUS_ABORTED,
        job_pb2.JOB_STATUS_TIMED_OUT,
        job_pb2.JOB_STATUS_EXPIRED,
    }
)
_LINES: Final = 20
SECRET: Final = secrets.token_hex(12).encode()
MARK: Final = secrets.token_hex(12).encode()
"""What stands beside the secret wherever that is printed, and is not masked."""

# Whatever waits does so while there is a file: with its directory it goes, too.
_BEGIN = """
echo "$SIS_ATTEMPT" >> '{directory}/starts'
i=0
lines() {{ n=0; while [ $n -lt {lines} ]; do n=$((n + 1)); i=$((i + 1)); echo "line $i"; done; }}
lines
"""
_SHORT = _BEGIN + "touch '{directory}/up'\n"
_FROZEN = _SHORT + "kill -STOP $$\n"
_STUBBORN = (
    _BEGIN
    + """
(trap '' TERM; touch '{directory}/child'; while [ -e '{directory}/held' ]; do sleep 0.05; done) &
while [ -e '{directory}/held' ] && [ ! -e '{directory}/child' ]; do sleep 0.02; done
touch '{directory}/up'
wait
"""
)
_GATED = (
    _BEGIN
    + """
echo "{mark} $SIS_CREDENTIAL_SECRET_PASSWORD."
touch '{directory}/up'
while [ -e '{directory}/held' ]; do sleep 0.02; done
lines
echo "result=$i $SIS_CREDENTIAL_SECRET_PASSWORD" >> "$SIS_OUTPUT"
"""
)


def printed(first: int, last: int) -> bytes:
    """Lines of a payload."""
    return b"".join(b"line %d\n" % number for number in range(first, last + 1))


class Overdue(AssertionError):
    """Something that was to happen did not."""


class Scenario(ABC):
    """One job in a directory of its own, or several. A phase is a method of that name, and `PHASES` their order."""

    PHASES: ClassVar[tuple[str, ...]]
    STARTS: ClassVar[frozenset[str]] = frozenset({"start"})
    """In which of them something is started."""
    STATUS: ClassVar[str] = "SUCCEEDED"
    """What the job becomes where nothing of it is killed."""
    REASON: ClassVar[str] = ""
    STOP: ClassVar[str] = "CONFIRMED"
    FIRST: ClassVar[bytes] = printed(1, _LINES)
    """What the payload has printed when it is up, as the log has it."""
    WHOLE: ClassVar[bytes] = FIRST
    """What it has printed when it has come to its end."""
    OUTPUTS: ClassVar[Mapping[str, str]] = MappingProxyType({})
    CREDENTIAL: ClassVar[bool] = False

    def __init__(self, stack: Stack, client: Client, directory: Path) -> None:
        self.stack = stack
        self.client = client
        self.directory = directory
        self.job_id = 0
        self.shown: dict[int, bytes] = {}
        """What of the output of each job the suite has shown."""
        self.deadline = time.monotonic() + CASE_SECONDS
        directory.mkdir(parents=True)
        self._held = directory / "held"
        self._held.touch()

    @property
    def jobs(self) -> Sequence[int]:
        """Those that become what the scenario says."""
        return (self.job_id,) if self.job_id else ()

    @property
    def others(self) -> Sequence[int]:
        """Those besides, of which nothing was ever started."""
        return ()

    @abstractmethod
    def request(self) -> job_service_pb2.CreateJobRequest:
        """The job."""

    def start(self) -> None:
        """Create it, and wait until it runs and its first output is shown, or it has ended."""
        self.job_id = self.create(self.request())
        self.wait_up()

    def create(self, request: job_service_pb2.CreateJobRequest) -> int:
        """Create a job, once; its id."""
        request.request_id = str(uuid.uuid4())
        return self.persist(lambda: self.client.jobs.create(request)).job_id

    def wait_up(self) -> None:
        """Wait until the job runs and what it has printed is shown, so that it may never be gone again; or until the
        job has ended."""

        def shown() -> bool:
            ended = self.ended()
            self.shown[self.job_id] = self._console()
            return ended or len(self.shown[self.job_id]) >= len(self.FIRST)

        self.until(lambda: self.ended() or (self.up() and self._status() == job_pb2.JOB_STATUS_RUNNING), "the payload")
        self.until(shown, "its output")

    def settle(self) -> None:
        """Wait until nothing more happens to the jobs: they have ended, their stops are known, their logs sealed."""
        self.until(lambda: all(map(self._settled, self.jobs)), "the end of the job")

    def check(self) -> None:  # noqa: B027  (most have nothing more)
        """Assert what else has to be true in the end."""

    def release(self) -> None:
        """Let what waits come to its end. Repeatable."""
        self._held.unlink(missing_ok=True)

    def leave(self) -> None:
        """End whatever is left of the payloads, which the suite has failed to."""
        self.release()
        strikes.end(self.starts())

    def up(self) -> bool:
        """Whether the payload has come to where it waits."""
        return (self.directory / "up").exists()

    def ended(self) -> bool:
        """Whether the job has a terminal status."""
        return self._status() in ENDED

    def starts(self) -> list[str]:
        """The token of each attempt whose payload was started, once for each start."""
        try:
            return (self.directory / "starts").read_text().split()
        except FileNotFoundError:
            return []

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, for as long as the case may take."""
        while not condition():
            if time.monotonic() > self.deadline:
                raise Overdue(f"waited in vain for {what}")
            time.sleep(0.03)

    def persist(self, call: Callable[[], T]) -> T:
        """A call that is repeated, as a person would, while the servers are away."""
        while True:
            try:
                return call()
            except ApiError as error:
                if not error.passing or time.monotonic() > self.deadline:
                    raise
                time.sleep(0.05)

    def script(self, text: str) -> str:
        return text.format(directory=self.directory, lines=_LINES, mark=MARK.decode())

    def _status(self) -> int:
        return self.persist(lambda: self.client.jobs.get(self.job_id)).status

    def _console(self) -> bytes:
        return b"".join(self.persist(lambda: [each.chunk.data for each in self.client.jobs.output(self.job_id)]))

    def _settled(self, job_id: int) -> bool:
        job = self.persist(lambda: self.client.jobs.get(job_id))
        ended = job.status in ENDED and job.stop_state != job_pb2.STOP_STATE_PENDING
        return ended and job.log.verdict not in (0, job_pb2.LOG_VERDICT_OPEN)


class PlainJob(Scenario):
    """A job that prints lines and ends."""

    PHASES: ClassVar[tuple[str, ...]] = ("start",)

    def request(self) -> job_service_pb2.CreateJobRequest:
        return shell_job(self.script(_SHORT))


class LeasedJob(Scenario):
    """A job that prints its secret among numbered lines, and sets an output."""

    PHASES: ClassVar[tuple[str, ...]] = ("start", "end")
    # The full stop is no part of any form of a secret: a line end that could be, the masker would hold back.
    FIRST = Scenario.FIRST + MARK + b" ***.\n"
    WHOLE = FIRST + printed(_LINES + 1, 2 * _LINES)
    OUTPUTS = MappingProxyType({"result": f"{2 * _LINES} ***"})
    CREDENTIAL = True

    def request(self) -> job_service_pb2.CreateJobRequest:
        return shell_job(self.script(_GATED), credentials={"secret": credential(self.client)})

    def end(self) -> None:
        """Let the payload come to its end."""
        self.release()


class CanceledJob(Scenario):
    """A job that is canceled while it has a child that ignores TERM."""

    PHASES: ClassVar[tuple[str, ...]] = ("start", "stop")
    STATUS = "CANCELED"

    def request(self) -> job_service_pb2.CreateJobRequest:
        request = shell_job(self.script(_STUBBORN))
        request.cancel_grace.FromMilliseconds(300)
        return request

    def stop(self) -> None:
        """Ask for it. That a job has ended meanwhile is an answer too."""
        try:
            self.persist(self.ask)
        except ApiError as error:
            if error.code != "FAILED_PRECONDITION" or not self.ended():
                raise

    def ask(self) -> object:
        return self.client.jobs.cancel(self.job_id, reason="enough")


class FrozenJob(CanceledJob):
    """A job that is canceled after it has stopped itself."""

    def request(self) -> job_service_pb2.CreateJobRequest:
        request = shell_job(self.script(_FROZEN))
        request.cancel_grace.FromSeconds(5)
        return request

    def stop(self) -> None:
        self.until(lambda: bool(strikes.living(self.starts(), stopped=True)), "the payload to have stopped itself")
        super().stop()


class AbortedJob(CanceledJob):
    """A job that is aborted."""

    STATUS = "ABORTED"

    def ask(self) -> object:
        return self.client.jobs.abort(self.job_id, reason="now")


class OverrunningJob(CanceledJob):
    """A job that runs past its run timeout."""

    PHASES: ClassVar[tuple[str, ...]] = ("start",)
    STATUS = "TIMED_OUT"
    REASON = "RUN_TIMEOUT"

    def request(self) -> job_service_pb2.CreateJobRequest:
        request = super().request()
        request.run_timeout.FromSeconds(1)
        return request


class DueJob(PlainJob):
    """A job that is held until its earliest start."""

    def request(self) -> job_service_pb2.CreateJobRequest:
        request = super().request()
        request.not_before.FromMilliseconds(int(time.time() * 1000) + 500)
        return request


class FetchedJob(Scenario):
    """A job whose package its agent has to fetch."""

    PHASES: ClassVar[tuple[str, ...]] = ("start",)

    def request(self) -> job_service_pb2.CreateJobRequest:
        package = self._push()
        return job_service_pb2.CreateJobRequest(
            display_name="fetched",
            type=job_pb2.JOB_TYPE_PACKAGE,
            package=job_pb2.PackageReference(name=package),
            operation="run",
            site_target=job_pb2.SiteTarget(group="local"),
        )

    def _push(self) -> str:
        """Store a package that nobody has seen before; its name."""
        name = f"crash.p{uuid.uuid4().hex}"
        source = self.directory / "package"
        source.mkdir()
        (source / "run.sh").write_text(self.script(_SHORT))
        (source / "package.yaml").write_text(_MANIFEST.format(name=name))
        packed = archive.pack(source)
        self.persist(lambda: self.client.packages.push(packed))
        return name


_MANIFEST = """
name: {name}
version: 1.0.0
publisher: Test
description: Prints lines.
platforms: [linux]
operations:
  run:
    description: Prints lines.
    command: [/bin/sh, "{{package}}/run.sh"]
"""


class UnavailableJob(FetchedJob):
    """A job whose package is gone when its agent asks for it."""

    STATUS = "FAILED"
    REASON = "PACKAGE_UNAVAILABLE"
    FIRST = WHOLE = b""

    def start(self) -> None:
        # The agent cannot fetch what it has not been assigned, and that is deferred until the package is gone.
        request = self.request()
        request.deferred = True
        self.job_id = self.create(request)
        with self.stack.database() as database:
            database.execute("DELETE FROM queue.packages WHERE name = %s", [request.package.name])
        self.persist(lambda: self.client.jobs.activate(self.job_id))
        self.until(self.ended, "the job to fail")


class RefusedJob(Scenario):
    """A job whose credential is not there."""

    PHASES: ClassVar[tuple[str, ...]] = ("start",)
    STATUS = "FAILED"
    REASON = "CREDENTIAL_NOT_FOUND"
    STOP = "NONE"
    FIRST = WHOLE = b""

    def request(self) -> job_service_pb2.CreateJobRequest:
        return shell_job(self.script(_SHORT), credentials={"secret": "never-there"})


class ActivatedJob(Scenario):
    """A deferred job that is activated."""

    PHASES: ClassVar[tuple[str, ...]] = ("start", "activate")
    STARTS = frozenset({"activate"})

    def request(self) -> job_service_pb2.CreateJobRequest:
        return shell_job(self.script(_SHORT), deferred=True)

    def start(self) -> None:
        self.job_id = self.create(self.request())

    def activate(self) -> None:
        """Ask for it. Once it is done, an agent may have the job before it is asked for again."""
        try:
            self.persist(lambda: self.client.jobs.activate(self.job_id))
        except ApiError as error:
            if error.code != "FAILED_PRECONDITION":
                raise
        self.wait_up()


class RepeatedJob(PlainJob):
    """A job that is run again after its end."""

    PHASES: ClassVar[tuple[str, ...]] = ("start", "rerun")
    STARTS = frozenset({"start", "rerun"})
    former = 0

    @property
    def jobs(self) -> Sequence[int]:
        return tuple(each for each in (self.former, self.job_id) if each)

    def start(self) -> None:
        super().start()
        self.until(self.ended, "the end of the first job")

    def rerun(self) -> None:
        """Ask for it."""
        request_id = str(uuid.uuid4())
        self.former = self.job_id
        self.job_id = self.persist(lambda: self.client.jobs.rerun(self.former, request_id=request_id)).job_id
        self.until(self.ended, "the end of the second job")
        again = self.persist(lambda: self.client.jobs.rerun(self.former, request_id=request_id)).job_id
        assert again == self.job_id, f"asked for again it is job {again}, and was {self.job_id}"

    def check(self) -> None:
        assert reruns(self.stack, [self.former]) == [self.job_id]


class BulkJobs(Scenario):
    """Deferred jobs that are canceled together and run again together, and one of them is deleted."""

    PHASES: ClassVar[tuple[str, ...]] = ("start", "cancel", "rerun", "delete")
    STARTS = frozenset({"rerun"})
    COUNT: ClassVar[int] = 3
    canceled: Sequence[int] = ()
    made: Sequence[int] = ()

    @property
    def jobs(self) -> Sequence[int]:
        return self.made

    @property
    def others(self) -> Sequence[int]:
        return self.canceled

    def request(self) -> job_service_pb2.CreateJobRequest:
        return shell_job(self.script(_SHORT), deferred=True)

    def start(self) -> None:
        self.canceled = [self.create(self.request()) for _ in range(self.COUNT)]
        self.job_id = self.canceled[0]

    def cancel(self) -> None:
        """All of them."""
        self._apply(job_pb2.JOB_VERB_CANCEL)

    def rerun(self) -> None:
        """All of them, and wait for what they become."""
        self.made = [each.job.job_id for each in self._apply(job_pb2.JOB_VERB_RERUN, request_id=uuid.uuid4().hex[:12])]
        self.job_id = self.made[-1]
        self.settle()

    def delete(self) -> None:
        """One of them. The second time, it is not there."""
        try:
            self.persist(lambda: self.client.jobs.delete(self.canceled[0], reason="enough"))
        except ApiError as error:
            if error.code != "NOT_FOUND":
                raise

    def _apply(self, verb: job_pb2.JobVerb.ValueType, request_id: str = "") -> list[job_service_pb2.JobResult]:
        """What became of each, in the end: the call is repeated as a whole."""

        def apply() -> list[job_service_pb2.JobResult]:
            answers = self.client.jobs.apply(verb, job_ids=self.canceled, request_id=request_id)
            return [each.result for each in answers if each.HasField("result")]

        results = self.persist(apply)
        assert [each.job_id for each in results] == list(self.canceled), results
        for each in results:
            if each.HasField("error"):
                raise from_status(each.error)
        return results

    def check(self) -> None:
        assert reruns(self.stack, self.canceled) == sorted(self.made)
        with self.stack.database() as database:
            rows = database.execute(
                "SELECT job_id, status, hidden_at IS NOT NULL FROM queue.jobs WHERE job_id = ANY(%s) ORDER BY job_id",
                [list(self.canceled)],
            ).fetchall()
            removed = database.execute(
                "SELECT job_id, reason FROM queue.removals WHERE job_id = ANY(%s)", [list(self.canceled)]
            ).fetchall()
        assert rows == [(each, "CANCELED", each == self.canceled[0]) for each in self.canceled], rows
        assert removed == [(self.canceled[0], "enough")], removed
        try:
            self.persist(lambda: self.client.jobs.get(self.canceled[0]))
        except ApiError as error:
            assert (error.code, error.metadata.get("reason")) == ("NOT_FOUND", "enough"), error.metadata
        else:
            raise AssertionError(f"job {self.canceled[0]} is deleted, and shown")


class TakenBackJob(LeasedJob):
    """A job whose hub dies with the end of its leases in hand."""

    def end(self) -> None:
        former = self.stack.pid("hub-1")
        self.stack.faults.arm("hub.lease_ends.sending")
        super().end()
        self.stack.wait_restarted("hub-1", former)


class AnewJob(PlainJob):
    """A job of an agent that has lost its journal, and has begun another one."""

    PHASES: ClassVar[tuple[str, ...]] = ("loss", "start")
    STARTS = frozenset({"loss", "start"})

    def loss(self) -> None:
        """Take the journal away, while nothing is in hand that only it knows of."""
        former = self.stack.pid("local-1")
        (self.stack.layout.agent("local-1") / "journal").unlink()
        strikes.kill(self.stack, "agent")
        self.stack.wait_restarted("local-1", former)


class ReturningJob(LeasedJob):
    """A job whose agent is killed while it runs, and finds it again."""

    PHASES: ClassVar[tuple[str, ...]] = ("start", "loss", "end")

    def loss(self) -> None:
        former = self.stack.pid("local-1")
        strikes.kill(self.stack, "agent")
        self.stack.wait_restarted("local-1", former)


class LostJob(CanceledJob):
    """A job whose supervisor is killed while it runs."""

    PHASES: ClassVar[tuple[str, ...]] = ("start", "loss")
    STATUS = "FAILED"
    REASON = "SUPERVISOR_LOST"

    def loss(self) -> None:
        assert strikes.kill(self.stack, "supervisor") == "supervisor"


SCENARIOS: Final[Mapping[str, type[Scenario]]] = MappingProxyType(
    {
        "job": LeasedJob,
        "cancel": CanceledJob,
        "frozen": FrozenJob,
        "abort": AbortedJob,
        "timeout": OverrunningJob,
        "due": DueJob,
        "package": FetchedJob,
        "unavailable": UnavailableJob,
        "refused": RefusedJob,
        "activate": ActivatedJob,
        "rerun": RepeatedJob,
        "bulk": BulkJobs,
        "takeback": TakenBackJob,
        "anew": AnewJob,
        "return": ReturningJob,
        "lost": LostJob,
    }
)


def reruns(stack: Stack, job_ids: Sequence[int]) -> list[int]:
    """The jobs that were made of these, one after the other."""
    with stack.database() as database:
        found = "SELECT job_id FROM queue.jobs WHERE rerun_of = ANY(%s) ORDER BY job_id"
        return [job_id for (job_id,) in database.execute(found, [list(job_ids)])]


def credential(client: Client) -> str:
    """The name of a credential, made when it is first asked for."""
    name = "crash"
    try:
        client.credentials.get(name)
    except ApiError as error:
        if error.code != "NOT_FOUND":
            raise
        client.credentials.create(
            credentials_pb.CreateCredentialRequest(
                name=name,
                kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
                username=getpass.getuser(),
                value=credential_pb2.SecretValue(secret=SECRET),
            )
        )
    return name
