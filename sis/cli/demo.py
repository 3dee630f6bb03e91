"""`sis demo`: four jobs on this machine, and for each whether it did what it should."""

from __future__ import annotations

import base64
import json
import os
import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

import sis.stack
from sis.cli import terminal, words
from sis.cli.details import process_table
from sis.cli.monitor import MonitorView, verdict
from sis.client import ApiError, Client
from sis.client.endpoints import data_directory
from sis.credentials.v1 import credential_pb2, credential_service_pb2
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb

# They bound each part: a job that nobody takes expires, one that hangs is timed out.
_START_WITHIN_SECONDS = 20
_RUN_SECONDS = 30

_CHILDREN = """\
echo "This is process $$; it starts three children that count."
for name in red green blue; do
  sh -c 'for i in 1 2 3 4; do echo "'$name' $i (process $$)"; sleep 0.4; done' &
done
sleep 0.9
echo "This line goes to standard error." >&2
for done in 25 50 75 100; do echo "$done counting" >> "$SIS_PROGRESS"; sleep 0.3; done
wait
echo "result=3 children counted to 4" >> "$SIS_OUTPUT"
echo "All children have ended."
"""
_INDISCREET = """\
secret=$SIS_CREDENTIAL_SECRET_PASSWORD
echo "I am $SIS_CREDENTIAL_SECRET_USERNAME and my password is $secret."
echo "In base64 it is $(printf %s "$secret" | base64 -w 0)"
echo "and within more of it $(printf '%s' "user:$secret:end" | base64 -w 0)"
echo "In hexadecimal it is $(printf %s "$secret" | od -An -v -tx1 | tr -d ' \\n')"
printf 'In two pieces it is %s' "$(printf %s "$secret" | cut -c 1-9)"; sleep 0.3; printf %s "$secret" | cut -c 10-
echo "On standard error: $secret" >&2
echo "50 uploading with $secret" >> "$SIS_PROGRESS"
echo "result=used $secret" >> "$SIS_OUTPUT"
"""
_READY = b"ignores TERM"
_ENDLESS = """\
sh -c 'trap "" TERM; sleep 1000000 & echo "child $$ ignores TERM, and so does its own child $!"; wait' &
echo "parent $$ runs for ever"
wait
"""


def run(data: Path | None) -> int:
    """Show the four parts; returns 0 only if each did what it should."""
    out = terminal.console()
    with _stack(out, data) as directory, Client.find(directory) as client:
        parts: list[tuple[str, Callable[[Console, Client], list[str]]]] = [
            ("The facts of this machine", _facts),
            ("A job that forks children and prints as it goes, live", _children),
            ("A job that prints its password in several encodings", _indiscreet),
            ("An endless job whose child ignores TERM, canceled", _stubborn),
        ]
        failed = False
        for number, (title, part) in enumerate(parts, 1):
            _heading(out, f"{number}. {title}")
            problems = part(out, client)
            for problem in problems:
                out.print(Text(f"✗ {problem}", style="red"))
            failed = failed or bool(problems)
    _heading(out, "It did not do what it should" if failed else "Everything did what it should")
    return 1 if failed else 0


@contextmanager
def _stack(out: Console, data: Path | None) -> Iterator[Path]:
    """The data directory of a stack that is up: the one there is, else one for as long as this lasts."""
    directory = data_directory(data)
    if sis.stack.status(directory).healthy:
        yield directory
        return
    if data is not None or os.environ.get("SIS_DATA"):
        with _temporarily_up(out, directory):
            yield directory
        return
    with tempfile.TemporaryDirectory(prefix="sis-demo-") as name, _temporarily_up(out, Path(name)):
        yield Path(name)


@contextmanager
def _temporarily_up(out: Console, directory: Path) -> Iterator[None]:
    def say(line: str) -> None:
        out.print(Text(line, style="dim"))

    began = time.monotonic()
    out.print(Text(f"Starting PostgreSQL, OpenBao and the services in {directory} …", style="dim"))
    sis.stack.up(sis.stack.Options(data=directory, detach=True), say)
    out.print(Text(f"Everything is healthy after {words.duration(time.monotonic() - began)}", style="dim"))
    try:
        yield
    finally:
        out.print()
        sis.stack.down(directory, say)


def _facts(out: Console, client: Client) -> list[str]:
    with _job(client, "Facts of this machine", "linux.facts", "gather", {}) as job_id:
        for _ in client.jobs.monitor(job_id):
            pass
    job = client.jobs.get(job_id)
    table = terminal.table(out, "Fact", "Value")
    for each in job.outputs:
        table.add_row(*map(terminal.block, _humane(each.name, each.value)))
    out.print(table)
    out.print(verdict(job))
    problems = _unless(job, job_pb2.JOB_STATUS_SUCCEEDED)
    if not any(each.name == "os_name" and each.value for each in job.outputs):
        problems.append("the output os_name is missing")
    return problems


def _humane(name: str, value: object) -> tuple[str, str]:
    """A fact for a person: ("memory total", "7.7 GiB"). `sis jobs get` shows it as it is."""
    if isinstance(value, str) and value.startswith("["):
        rows = [dict(_humane(key, item) for key, item in row.items()) for row in json.loads(value)]
        return name, "\n".join("  ".join(f"{key} {item}" for key, item in row.items() if item) for row in rows)
    if isinstance(value, list):
        return name, ", ".join(map(str, value))
    text = str(value)
    if name.endswith("_bytes") and text.isdecimal():
        return name.removesuffix("_bytes").replace("_", " "), words.size(int(text))
    if name.endswith("_seconds") and text.isdecimal():
        return name.removesuffix("_seconds").replace("_", " "), words.duration(int(text))
    return name.replace("_", " "), text


def _children(out: Console, client: Client) -> list[str]:
    name = "Three children that count"
    with _job(client, name, "core.shell", "run", {"script": _CHILDREN}) as job_id, MonitorView(out) as view:
        for response in client.jobs.monitor(job_id, on_interruption=view.interrupted):
            view.show(response)
    job = client.jobs.get(job_id)
    out.print(verdict(job))
    problems = _unless(job, job_pb2.JOB_STATUS_SUCCEEDED)
    if job.log.verdict != job_pb2.LOG_VERDICT_COMPLETE:
        problems.append(f"the log is {words.verdict(job.log.verdict)[0]}")
    return problems


def _indiscreet(out: Console, client: Client) -> list[str]:
    password = secrets.token_urlsafe(15)
    name = f"demo-{uuid.uuid4().hex[:8]}"
    client.credentials.create(
        credential_service_pb2.CreateCredentialRequest(
            name=name,
            kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
            username="demo",
            description="Made by sis demo, and deleted by it",
            value=credential_pb2.SecretValue(secret=password.encode()),
        )
    )
    try:
        said = f"Stored the credential {name}. Its password is in Vault and will be with the job, and nowhere else."
        out.print(Text(said, style="dim"))
        return _with_password(out, client, name, password)
    finally:
        client.credentials.delete(name)


def _with_password(out: Console, client: Client, name: str, password: str) -> list[str]:
    seen = b""
    parameters = {"script": _INDISCREET}
    with (
        _job(client, "An indiscreet job", "core.shell", "run", parameters, {"secret": name}) as job_id,
        MonitorView(out) as view,
    ):
        for response in client.jobs.monitor(job_id, on_interruption=view.interrupted):
            view.show(response)
            seen += response.SerializeToString()
    job = client.jobs.get(job_id)
    out.print(verdict(job))
    out.print(f"result: {next((each.value for each in job.outputs if each.name == 'result'), 'none')}")
    problems = _unless(job, job_pb2.JOB_STATUS_SUCCEEDED)
    seen += job.SerializeToString()
    encoded = base64.b64encode(password.encode())
    for form in (password.encode(), password.encode().hex().encode(), encoded.rstrip(b"=")[:-1]):
        if form in seen:
            problems.append("the password was shown")
    if seen.count(b"***") < 8:
        problems.append("not everything that was to be masked was printed")
    if not problems:
        out.print(Text("✓ Every form of the password was masked before it left the supervisor", style="green"))
    used = list(client.credentials.usage(name))
    if not any(each.job_id == job_id for each in used):
        problems.append("nobody knows that the credential was used")
    for each in used:
        at = words.clock(each.take_time)
        out.print(Text(f"✓ Who used it: job {each.job_id} of {each.requester}, at {each.agent}, {at}", style="green"))
    return problems


def _stubborn(out: Console, client: Client) -> list[str]:
    seen = b""
    canceled = False
    name = "An endless job"
    with _job(client, name, "core.shell", "run", {"script": _ENDLESS}) as job_id, MonitorView(out) as view:
        for response in client.jobs.monitor(job_id, on_interruption=view.interrupted):
            view.show(response)
            seen += b"".join(frame.chunk.data for frame in response.frames.frames)
            if not canceled and _READY in seen and view.job.status == job_pb2.JOB_STATUS_RUNNING:
                canceled = True
                client.jobs.cancel(job_id, "the demonstration ends it")
    job = client.jobs.get(job_id)
    out.print(verdict(job))
    out.print()
    out.print(process_table(out, job.stop_evidence.processes))
    problems = _unless(job, job_pb2.JOB_STATUS_CANCELED)
    evidence = job.stop_evidence
    if not evidence.tree_empty or job.stop_state != job_pb2.STOP_STATE_CONFIRMED:
        problems.append("the stop is not confirmed: the process tree was not seen empty")
    else:
        how = f"Seen empty by {evidence.method} at {words.clock(evidence.verify_time)}"
        out.print(Text(f"✓ {how}: {len(evidence.processes)} processes, none is left", style="green"))
    if not any("KILL" in each.signals for each in evidence.processes):
        problems.append("no process needed KILL, although one ignores TERM")
    left = [each.pid for each in evidence.processes if _is_payload(each) and Path(f"/proc/{each.pid}").exists()]
    if left:
        problems.append(f"/proc still has PID {', '.join(map(str, left))}")
    else:
        out.print(Text("✓ The process list of this machine has none of them either", style="green"))
    return problems


def _is_payload(process: job_pb2.Process) -> bool:
    return process.role != job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR


@contextmanager
def _job(
    client: Client,
    name: str,
    package: str,
    operation: str,
    parameters: dict[str, str],
    credentials: dict[str, str] | None = None,
) -> Iterator[int]:
    """A new job. If its part is left early, it is ended by force: nothing may outlive the demonstration."""
    request = pb.CreateJobRequest(
        display_name=name,
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name=package),
        operation=operation,
        parameters={key: job_pb2.ParameterValue(plain=value) for key, value in parameters.items()},
        credentials=credentials,
        site_target=job_pb2.SiteTarget(group="local"),
        request_id=str(uuid.uuid4()),
    )
    request.latest_start.FromSeconds(int(time.time()) + _START_WITHIN_SECONDS)
    request.run_timeout.FromSeconds(_RUN_SECONDS)
    job_id = client.jobs.create(request).job_id
    try:
        yield job_id
    except BaseException:
        _end(client, job_id)
        raise


def _end(client: Client, job_id: int) -> None:
    try:
        client.jobs.abort(job_id, "the demonstration was interrupted")
        for _ in client.jobs.monitor(job_id):  # until its stop is settled
            pass
    except ApiError:
        pass  # what interrupted the demonstration is the error to show


def _unless(job: job_pb2.Job, wanted: job_pb2.JobStatus.ValueType) -> list[str]:
    if job.status == wanted:
        return []
    return [f"the job is {words.status(job.status)}, not {words.status(wanted)}: {job.status_message}".rstrip(": ")]


def _heading(out: Console, title: str) -> None:
    out.print()
    out.print(Rule(Text(title, style="bold"), align="left") if out.is_terminal else Text(f"== {title}"))
