"""Short jobs, each with phases: what happens in one after the other, and may be struck meanwhile."""

from __future__ import annotations

import getpass
import secrets
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final, TypeVar

from sis.client import ApiError, Client
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
_SETTLED: Final = (job_pb2.STOP_STATE_CONFIRMED, job_pb2.STOP_STATE_UNCONFIRMED)
_LINES: Final = 20
SECRET: Final = secrets.token_hex(12).encode()

_BEGIN = """
echo "$SIS_ATTEMPT" >> '{directory}/starts'
i=0
lines() {{ n=0; while [ $n -lt {lines} ]; do n=$((n + 1)); i=$((i + 1)); echo "line $i"; done; }}
lines
"""
_STUBBORN = (
    _BEGIN
    + """
(trap '' TERM; touch '{directory}/child'; while :; do sleep 0.05; done) &
while [ ! -e '{directory}/child' ]; do sleep 0.02; done
touch '{directory}/up'
wait
"""
)
_GATED = (
    _BEGIN
    + """
touch '{directory}/up'
while [ ! -e '{directory}/gate' ]; do sleep 0.02; done
lines
echo "result=$i $SIS_CREDENTIAL_SECRET_PASSWORD" >> "$SIS_OUTPUT"
"""
)


class Overdue(AssertionError):
    """Something that was to happen did not."""


class Scenario(ABC):
    """One job in a directory of its own. A phase is a method of that name, and `PHASES` their order."""

    PHASES: ClassVar[tuple[str, ...]]
    STATUS: ClassVar[str] = "SUCCEEDED"
    """What the job becomes where nothing of it is killed."""
    REASON: ClassVar[str] = ""
    LINES: ClassVar[int] = _LINES
    """How many the payload prints where it comes to its end."""
    CREDENTIAL: ClassVar[bool] = False

    def __init__(self, stack: Stack, client: Client, directory: Path) -> None:
        self.stack = stack
        self.client = client
        self.directory = directory
        self.job_id = 0
        self.deadline = time.monotonic() + CASE_SECONDS
        directory.mkdir(parents=True)

    @abstractmethod
    def request(self) -> job_service_pb2.CreateJobRequest:
        """The job."""

    def start(self) -> None:
        """Create it, and wait until it runs or has ended."""
        request = self.request()
        request.request_id = str(uuid.uuid4())
        self.job_id = self.persist(lambda: self.client.jobs.create(request)).job_id
        self.until(lambda: self.ended() or (self.up() and self._status() == job_pb2.JOB_STATUS_RUNNING), "the payload")

    def settle(self) -> None:
        """Wait until nothing more happens to the job: it has ended, its stop is known, its log is sealed."""
        self.until(self._settled, "the end of the job")

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
        return text.format(directory=self.directory, lines=_LINES)

    def _status(self) -> int:
        return self.persist(lambda: self.client.jobs.get(self.job_id)).status

    def _settled(self) -> bool:
        job = self.persist(lambda: self.client.jobs.get(self.job_id))
        return job.status in ENDED and job.stop_state in _SETTLED and job.log.verdict not in (0, _OPEN)


_OPEN: Final = job_pb2.LOG_VERDICT_OPEN


class LeasedJob(Scenario):
    """A job with a credential that prints numbered lines and sets an output."""

    PHASES: ClassVar[tuple[str, ...]] = ("start", "end")
    LINES = 2 * _LINES
    CREDENTIAL = True

    def request(self) -> job_service_pb2.CreateJobRequest:
        return shell_job(self.script(_GATED), credentials={"secret": credential(self.client)})

    def end(self) -> None:
        """Let the payload come to its end."""
        (self.directory / "gate").touch()


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
        request = shell_job(self.script(_BEGIN + "touch '{directory}/up'\nkill -STOP $$\n"))
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


class DueJob(Scenario):
    """A job that is held until its earliest start."""

    PHASES: ClassVar[tuple[str, ...]] = ("start",)

    def request(self) -> job_service_pb2.CreateJobRequest:
        request = shell_job(self.script(_BEGIN + "touch '{directory}/up'\n"))
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
        (source / "run.sh").write_text(self.script(_BEGIN + "touch '{directory}/up'\n"))
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
    LINES = 0

    def start(self) -> None:
        # The agent cannot fetch what it has not been assigned, and that is deferred until the package is gone.
        request = self.request()
        request.deferred = True
        self.job_id = self.persist(lambda: self.client.jobs.create(request)).job_id
        with self.stack.database() as database:
            database.execute("DELETE FROM queue.packages WHERE name = %s", [request.package.name])
        self.persist(lambda: self.client.jobs.activate(self.job_id))
        self.until(self.ended, "the job to fail")


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
        "return": ReturningJob,
        "lost": LostJob,
    }
)


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
