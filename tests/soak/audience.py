"""Those who look on: lists, watches, monitors and downloads that come and go, some slow, some gone without a word."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import random
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from sis.client import ApiError, Client, ResumeExpired
from sis.packages import archive
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.soak.actor import Actor
from tests.soak.ledger import Ledger
from tests.support.event_source import EventSource
from tests.support.stack import Stack

VERSIONS = 4
"""A package once pushed stays, so the same few are pushed again and again."""

_log = logging.getLogger("soak.audience")
_FILTERS = (
    None,
    pb.JobFilter(run_states=[job_pb2.RUN_STATE_ACTIVE]),
    pb.JobFilter(run_states=[job_pb2.RUN_STATE_FAILED, job_pb2.RUN_STATE_TIMED_OUT]),
    pb.JobFilter(text="noisy"),
)
_MANIFEST = """\
name: soak.pushed
version: 1.0.{version}
publisher: SIS
description: Comes and goes in the soak.
platforms: [linux]
operations:
  run:
    description: Does nothing.
    command: [/bin/true]
"""


class Onlooker(Actor):
    """One of them: does this and that in turn, until it is told to stop. What servers that are away make of it is
    nobody's trouble; what is wrong is."""

    def __init__(self, number: int, stack: Stack, client: Client, ledger: Ledger, seed: int) -> None:
        super().__init__(f"onlooker {number}", ledger, 90)
        self._stack = stack
        self._client = client
        self._dice = random.Random(f"{seed} onlooker {number}")
        self._acts: tuple[Callable[[], None], ...] = (
            self._list,
            self._watch,
            self._watch_slowly,
            self._monitor,
            self._monitor_over_http,
            self._watch_over_http,
            self._vanish,
            self._download_output,
            self._export,
            self._push_and_fetch,
            self._read_a_page,
        )

    def _run(self) -> None:
        while not self._over.wait(self._dice.uniform(0.1, 1.0)):
            act = self._dice.choice(self._acts)
            try:
                act()
            except (ApiError, OSError, http.client.HTTPException) as error:
                if isinstance(error, ApiError) and not error.passing and error.reason not in _EXPECTED:
                    self._ledger.trouble(f"{act.__name__}: {error.code} {error.reason} {error.message}")
                self._over.wait(0.5)
            except Exception as error:
                _log.exception("%s in %s", self._name, act.__name__)
                self._ledger.trouble(f"{act.__name__}: {error!r}")
                self._over.wait(1)

    def _for(self, seconds: float, responses: Iterable[object], pause: float = 0.0) -> None:
        """Read on for a while."""
        deadline = time.monotonic() + seconds
        for _ in responses:
            if time.monotonic() > deadline or self._over.wait(pause):
                return

    def _some_job(self) -> int:
        found = self._client.jobs.list(page_size=20, order_by="job_id desc").jobs
        return self._dice.choice(found).job_id if found else 0

    def _list(self) -> None:
        for number, page in enumerate(self._client.jobs.pages(self._dice.choice(_FILTERS), page_size=50)):
            if number == 5 or not page.jobs:
                return

    def _watch(self, pause: float = 0.0) -> None:
        wanted = self._dice.choice(_FILTERS)
        token = self._client.jobs.list(wanted, page_size=1).watch_token
        with contextlib.suppress(ResumeExpired), closing(self._client.jobs.watch(wanted, token)) as changes:
            self._for(self._dice.uniform(2, 15), changes, pause)

    def _watch_slowly(self) -> None:
        self._watch(pause=2.0)

    def _monitor(self) -> None:
        if job_id := self._some_job():
            with closing(self._client.jobs.monitor(job_id)) as responses:
                self._for(self._dice.uniform(2, 20), responses)

    def _monitor_over_http(self) -> None:
        if job_id := self._some_job():
            self._events(f"/v1/jobs/{job_id}:monitor")

    def _watch_over_http(self) -> None:
        self._events("/v1/jobs:watch")

    def _events(self, path: str) -> None:
        source = EventSource(self._stack.gateway + path, self._stack.token, seconds=5.0)
        seconds = self._dice.uniform(2, 12)
        deadline = time.monotonic() + seconds
        with contextlib.suppress(AssertionError):  # it is gone, or its server is
            for _ in source:
                if time.monotonic() > deadline or self._over.is_set():
                    return

    def _vanish(self) -> None:
        """Ask for a stream, read hardly any of it, and go without a word."""
        url = urlsplit(self._stack.gateway)
        path = self._dice.choice(["/v1/jobs:watch", f"/v1/jobs/{self._some_job()}:monitor"])
        with socket.create_connection((url.hostname, url.port), timeout=5) as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request = f"GET {path} HTTP/1.1\r\nHost: sis\r\nAuthorization: Bearer {self._stack.token}\r\n\r\n"
            reader.sendall(request.encode())
            reader.recv(1)
            self._over.wait(self._dice.uniform(0, 3))

    def _download_output(self) -> None:
        if job_id := self._some_job():
            with closing(self._client.jobs.output(job_id)) as responses:
                self._for(10, responses)

    def _export(self) -> None:
        with closing(self._client.jobs.export(pb.JobFilter(run_states=[job_pb2.RUN_STATE_FAILED]))) as responses:
            self._for(5, responses)

    def _push_and_fetch(self) -> None:
        version = self._dice.randrange(VERSIONS)
        content = _package(version)
        self._client.packages.push(content)
        stored = b"".join(
            response.chunk for response in self._client.packages.download("soak.pushed", f"1.0.{version}")
        )
        if hashlib.sha256(stored).digest() != hashlib.sha256(content).digest():
            self._ledger.trouble(f"soak.pushed 1.0.{version} came back as other bytes than it was pushed")

    def _read_a_page(self) -> None:
        url = urlsplit(self._stack.gateway)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=10)
        try:
            headers = {"Authorization": f"Bearer {self._stack.token}"}
            connection.request("GET", "/v1/jobs?pageSize=50", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == http.HTTPStatus.OK:
                json.loads(body)
            elif answer.status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                self._ledger.trouble(f"GET /v1/jobs: {answer.status} {body[:200]!r}")
        finally:
            connection.close()


# A job that was listed may be purged by the time it is asked for.
_EXPECTED = ("JOB_NOT_FOUND", "RESUME_EXPIRED", "INVALID_TOKEN", "JOB_CHANGED")


def _package(version: int) -> bytes:
    """A package of some 200 KiB, always the same for a version."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "package.yaml").write_text(_MANIFEST.format(version=version))
        Path(directory, "noise").write_bytes(random.Random(version).randbytes(200 << 10))
        return archive.pack(Path(directory))
