"""People and programs that put jobs on the queue: all kinds, and what is done to them afterwards."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from services.queue.states import Status
from sis.client import ApiError, Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_service_pb2 as pb
from tests.soak.actor import Actor
from tests.soak.ledger import Ledger, Order
from tests.support.numbered_job import shell_job

CREDENTIAL = "soak-token"
"""A credential that many jobs name."""
PATIENCE_SECONDS = 150.0
"""For which a call is repeated while servers are away; then it is a trouble."""
NOISE_BYTES = 10 << 20
HEARTBEAT = timedelta(seconds=60)
"""The shortest heartbeat timeout, so that a soak of some length sees that a job which nobody hears of becomes AWOL."""

_log = logging.getLogger("soak.churn")
_Answer = TypeVar("_Answer")
_Step = Callable[[], object]


@dataclass(frozen=True)
class Market:
    """What all customers have in common."""

    ledger: Ledger
    starts: Path
    """A file to which each payload writes its attempt when it starts."""
    sites: tuple[str, ...]
    pause: float
    """Seconds between two jobs of one customer, on the average."""
    long_seconds: int
    seed: int


@dataclass(order=True)
class _Due:
    at: float
    number: int
    step: _Step = field(compare=False)


class Customer(Actor):
    """Creates jobs, one after another, each in its turn followed up, until it is told to stop; then it does at once
    what was to be done later."""

    def __init__(self, number: int, client: Client, market: Market) -> None:
        super().__init__(f"customer {number}", market.ledger, PATIENCE_SECONDS + 60)
        self._number = number
        self._client = client
        self._market = market
        self._dice = random.Random(f"{market.seed} {number}")
        self._numbers = itertools.count(1)
        self._later: list[_Due] = []
        self._kinds: dict[str, tuple[float, Callable[[str], None]]] = {
            "short": (30, self._short),
            "long": (8, self._long),
            "noisy": (1.5, self._noisy),
            "secret": (8, self._secret),
            "own secret": (4, self._own_secret),
            "failing": (6, self._failing),
            "canceled": (10, self._canceled),
            "aborted": (7, self._aborted),
            "abandoned": (3, self._abandoned),
            "timing out": (4, self._timing_out),
            "deferred": (4, self._deferred),
            "scheduled": (3, self._scheduled),
            "deferred, deleted": (2, self._deleted),
            "expiring": (4, self._expiring),
        }

    def _run(self) -> None:
        try:
            while not self._over.wait(self._dice.expovariate(1 / self._market.pause)):
                (kind,) = self._dice.choices(list(self._kinds), [weight for weight, _ in self._kinds.values()])
                self._kinds[kind][1](kind)
                self._follow_up(time.monotonic())
            self._follow_up(float("inf"))
        except Exception as error:
            _log.exception("%s stops", self._name)
            self._ledger.trouble(f"{self._name}: {error!r}")

    def _follow_up(self, until: float) -> None:
        while self._later and self._later[0].at <= until:
            heapq.heappop(self._later).step()

    def _after(self, seconds: float, step: _Step) -> None:
        heapq.heappush(self._later, _Due(time.monotonic() + seconds, next(self._numbers), step))

    # The kinds

    def _short(self, kind: str) -> None:
        lines = self._dice.randrange(1, 200)
        written = b"".join(b"line %d\n" % number for number in range(1, lines + 1))
        job_id = self._create(kind, f"seq -f 'line %.0f' {lines}", Order(kind, _DONE, written=written))
        if self._dice.random() < 0.2:
            self._after(self._dice.uniform(5, 20), lambda: self._rerun(job_id, Order("rerun", _DONE, written=written)))

    def _long(self, kind: str) -> None:
        seconds = self._dice.randrange(3, self._market.long_seconds + 1)
        script = f"for i in $(seq {seconds}); do echo second $i; echo $i >> $SIS_PROGRESS; sleep 1; done"
        written = b"".join(b"second %d\n" % number for number in range(1, seconds + 1))
        self._create(kind, script, Order(kind, _DONE, written=written), heartbeat_timeout=HEARTBEAT)

    def _noisy(self, kind: str) -> None:
        script = f"head -c {NOISE_BYTES} /dev/zero | tr '\\0' x | fold -w 99"
        self._create(kind, script, Order(kind, _DONE, size=NOISE_BYTES + NOISE_BYTES // 99))

    def _secret(self, kind: str) -> None:
        script = 'echo "it is $SIS_CREDENTIAL_SECRET_TOKEN."'
        order = Order(kind, _DONE, written=b"it is ***.\n")
        self._create(kind, script, order, credentials={"secret": CREDENTIAL})

    def _own_secret(self, kind: str) -> None:
        name = f"once-{self._number}-{next(self._numbers)}-{secrets.token_hex(3)}"
        secret = secrets.token_hex(16)
        self._ledger.secret(name, secret)
        request = token_credential(name, secret, for_one_job=True)
        request.request_id = name
        self._patiently(f"create {name}", lambda: self._client.credentials.create(request))
        script = 'echo "it is $SIS_CREDENTIAL_SECRET_TOKEN."'
        order = Order(kind, _DONE, written=b"it is ***.\n")
        self._create(kind, script, order, credentials={"secret": name})

    def _failing(self, kind: str) -> None:
        self._create(kind, "echo no good >&2; exit 3", Order(kind, frozenset({Status.FAILED})))

    def _canceled(self, kind: str) -> None:
        # One of its processes does not listen, and one has gone away from the tree.
        script = "(trap '' TERM; sleep 120) & setsid sleep 120 & sleep 120"
        job_id = self._create(kind, script, Order(kind, _CANCELED))
        self._after(self._dice.uniform(0, 8), lambda: self._cancel(job_id))

    def _aborted(self, kind: str) -> None:
        job_id = self._create(kind, "setsid sleep 120 & sleep 120", Order(kind, frozenset({Status.ABORTED})))
        self._after(self._dice.uniform(0, 8), lambda: self._abort(job_id))

    def _abandoned(self, kind: str) -> None:
        # The cancel may have come to its end before the abort.
        ends = frozenset({Status.ABORTED, Status.CANCELED})
        job_id = self._create(kind, "sleep 120", Order(kind, ends))
        self._after(self._dice.uniform(0, 5), lambda: self._give_up(job_id))

    def _timing_out(self, kind: str) -> None:
        order = Order(kind, frozenset({Status.TIMED_OUT}))
        self._create(kind, "trap '' TERM; sleep 120", order, run_timeout=timedelta(seconds=2))

    def _deferred(self, kind: str) -> None:
        job_id = self._create(kind, "echo now", Order(kind, _DONE, written=b"now\n"), deferred=True)
        self._after(self._dice.uniform(1, 10), lambda: self._activate(job_id))

    def _scheduled(self, kind: str) -> None:
        soon = pb.CreateJobRequest()
        soon.not_before.FromNanoseconds(time.time_ns() + 4 * 10**9)
        self._create(kind, "echo now", Order(kind, _DONE, written=b"now\n"), not_before=soon.not_before)

    def _deleted(self, kind: str) -> None:
        job_id = self._create(kind, "echo never", Order(kind, frozenset({Status.CANCELED})), deferred=True)
        self._after(self._dice.uniform(0, 5), lambda: self._delete(job_id))

    def _expiring(self, kind: str) -> None:
        soon = pb.CreateJobRequest()
        soon.latest_start.FromNanoseconds(time.time_ns() + 10 * 10**9)
        order = Order(kind, frozenset({Status.EXPIRED}))
        try:
            self._create(kind, "echo never", order, site="group:nobody", latest_start=soon.latest_start)
        except AssertionError as error:
            if "latest_start: has passed" not in str(error):  # before a queue that was away could hear of it
                raise

    # What is done

    def _create(self, kind: str, script: str, order: Order, *, site: str = "", **fields: object) -> int:
        name = f"{self._market.seed} {self._number} {next(self._numbers)}"
        told = f'echo "$SIS_ATTEMPT" >> {self._market.starts}\n{script}'
        request = shell_job(told, site=site or self._dice.choice(self._market.sites), request_id=name, **fields)
        request.display_name = kind
        job_id = self._patiently(f"create {name}", lambda: self._client.jobs.create(request)).job_id
        self._ledger.ordered(job_id, order)
        if self._dice.random() < 0.1:
            again = self._patiently(f"create {name} again", lambda: self._client.jobs.create(request)).job_id
            if again != job_id:
                self._ledger.trouble(f"request {name} made the jobs {job_id} and {again}")
        return job_id

    def _rerun(self, job_id: int, order: Order) -> None:
        name = f"{self._market.seed} {self._number} rerun {job_id}"
        again = self._patiently(
            f"rerun {job_id}", lambda: self._client.jobs.rerun(job_id, name), ("JOB_NOT_FOUND", "ILLEGAL_TRANSITION")
        )
        if again is not None:
            self._ledger.ordered(again.job_id, order)

    def _cancel(self, job_id: int) -> None:
        self._patiently(f"cancel {job_id}", lambda: self._client.jobs.cancel(job_id, "the soak"), _ENDED)

    def _give_up(self, job_id: int) -> None:
        self._cancel(job_id)
        self._abort(job_id)

    def _abort(self, job_id: int) -> None:
        self._patiently(f"abort {job_id}", lambda: self._client.jobs.abort(job_id, "the soak"), _ENDED)

    def _activate(self, job_id: int) -> None:
        self._patiently(f"activate {job_id}", lambda: self._client.jobs.activate(job_id), _ENDED)

    def _delete(self, job_id: int) -> None:
        self._patiently(f"delete {job_id}", lambda: self._client.jobs.delete(job_id), _ENDED)

    def _patiently(self, what: str, call: Callable[[], _Answer], expected: tuple[str, ...] = ()) -> _Answer:
        """Make a call that is safe to repeat, again while it fails for a moment. Refusals for an expected reason are
        None, in calls whose answer nobody reads."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except ApiError as error:
                if error.reason in expected:
                    return None  # type: ignore[return-value]
                if not error.passing or time.monotonic() > deadline:
                    raise AssertionError(f"{what}: {error.code} {error.reason} {error.message}") from error
                time.sleep(0.5)


_DONE = frozenset({Status.SUCCEEDED})
_CANCELED = frozenset({Status.CANCELED})
_ENDED = ("JOB_NOT_FOUND", "ILLEGAL_TRANSITION")


def token_credential(name: str, secret: str, *, for_one_job: bool = False) -> credentials_pb.CreateCredentialRequest:
    """A request for a token in the KeySafe."""
    return credentials_pb.CreateCredentialRequest(
        name=name,
        kind=credential_pb2.CREDENTIAL_KIND_TOKEN,
        value=credential_pb2.SecretValue(secret=secret.encode()),
        for_one_job=for_one_job,
    )
