"""A job that prints numbered lines until it is told to end, and the proof that none was lost, doubled or displaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from sis.client import Client
from sis.queue.v1 import job_pb2, job_service_pb2

WAIT_SECONDS = 60.0

SCRIPT = """
echo "$SIS_JOB_ID $$" >> '{starts}'
i=0
while [ ! -e '{end}' ]; do
    i=$((i + 1))
    echo "line $i"
    sleep 0.05
done
echo "result=$i" >> "$SIS_OUTPUT"
"""


def shell_job(script: str, *, site: str = "group:local", **fields: object) -> job_service_pb2.CreateJobRequest:
    """A request for a core.shell job."""
    kind, _, name = site.partition(":")
    request = job_service_pb2.CreateJobRequest(
        display_name="a test",
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name="core.shell"),
        operation="run",
        site_target=job_pb2.SiteTarget(**{kind: name}),
        **fields,  # type: ignore[arg-type]
    )
    request.parameters["script"].plain = script
    return request


class NumberedJob:
    """One such job, with a watcher that follows it from its creation on. However the block ends, the payload ends, and
    nobody watches it any more."""

    def __init__(
        self,
        connect: Callable[[], Client],
        directory: Path,
        *,
        watch: Callable[[], Client] | None = None,
        site: str = "group:local",
        **fields: object,
    ) -> None:
        """`connect` makes a client, and `watch` that of the watcher, if it is to be another; the job closes both.
        `fields` are of the request."""
        directory.mkdir(exist_ok=True)
        self._starts = directory / "starts"
        self._end = directory / "end"
        script = SCRIPT.replace("{starts}", str(self._starts)).replace("{end}", str(self._end))
        self._request = shell_job(script, site=site, **fields)
        self.job_id = 0
        self._client = connect()
        self._watcher = (watch or connect)()
        self._seen = bytearray()
        self._failure: BaseException | None = None
        self._watch = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self.job_id = self._client.jobs.create(self._request).job_id
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.touch()
        self._watcher.close()  # which breaks off a watch that goes on
        self._watch.join(WAIT_SECONDS)
        self._client.close()

    def _follow(self) -> None:
        try:
            for response in self._watcher.jobs.monitor(self.job_id):
                for frame in response.frames.frames:
                    if frame.HasField("chunk"):
                        self._seen += frame.chunk.data
        except BaseException as error:  # shown by `check`
            self._failure = error

    def lines(self) -> int:
        """How many lines the watcher has seen so far."""
        return self._seen.count(b"\n")

    def wait_lines(self, more: int = 5) -> None:
        """Wait until the watcher has seen this many lines more than now."""
        target = self.lines() + more
        until(lambda: self.lines() >= target or self._failure is not None, f"line {target}")
        assert self._failure is None, self._failure

    def end(self) -> job_pb2.Job:
        """Tell the job to end, and wait until it has."""
        self._end.touch()
        self.wait_watched()
        return self._client.jobs.get(self.job_id)

    def wait_watched(self) -> None:
        """Wait until the watcher has seen the job end, in whichever way."""
        self._watch.join(WAIT_SECONDS)
        assert not self._watch.is_alive(), f"the monitor does not end: {self._client.jobs.get(self.job_id)}"
        assert self._failure is None, self._failure

    def check(self) -> None:
        """End the job and prove: Success, one start, every line once and in order, for the watcher and in the log."""
        job = self.end()
        assert job.status == job_pb2.JOB_STATUS_SUCCEEDED, job
        count = int(next(output.value for output in job.outputs if output.name == "result"))
        expected = b"".join(b"line %d\n" % number for number in range(1, count + 1))
        assert bytes(self._seen) == expected
        stored = b"".join(r.chunk.data for r in self._client.jobs.output(self.job_id) if r.HasField("chunk"))
        assert stored == expected
        assert len(self._starts.read_text().splitlines()) == 1
        assert job.attempt == 1
        assert job.log.verdict == job_pb2.LOG_VERDICT_COMPLETE
        assert job.stop_state == job_pb2.STOP_STATE_CONFIRMED
        assert job.stop_evidence.tree_empty


def until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until the condition holds; fail the test with `what` when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether there is such a process; one that has ended and waits to be reaped does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
