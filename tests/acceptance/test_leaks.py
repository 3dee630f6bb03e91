"""While many jobs use and print secrets, none is anywhere but in Vault, the supervisors and the payloads."""

from __future__ import annotations

import base64
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from sis.client import Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2, job_service_pb2_grpc
from sis.queue.v1 import job_service_pb2 as pb
from tests.support.enrolled import enrolled_agent, far_hub
from tests.support.leaks import LeakSearch
from tests.support.numbered_job import until
from tests.support.stack import Stack
from tests.support.tls_tap import TlsTap

SLOTS = 8
SCRIPT = """\
for variable in PASSWORD TOKEN; do
  eval "secret=\\$SIS_CREDENTIAL_SECRET_$variable"
  [ -n "$secret" ] || continue
  echo "plain: $secret"; echo "to standard error: $secret" >&2
  for around in '%s' 'x%s' 'xy%s!'; do echo "base64: $(printf "$around" "$secret" | base64 -w 0)"; done
  echo "hex: $(printf %s "$secret" | od -An -v -tx1 | tr -d ' \\n')"
  for i in 1 2 3; do
    printf %s "$secret" | cut -c -$i | tr -d '\\n'; sleep 0.05; printf %s "$secret" | cut -c $((i + 1))-
  done
  printf '%s\\0' "$secret" | sed 's/./&\\x00/g'
  echo "30 working with $secret" >> "$SIS_PROGRESS"
  echo "result=$secret" >> "$SIS_OUTPUT"
done
touch "{directory}/printed-$SIS_JOB_ID"
while [ ! -e "{directory}/enough" ]; do sleep 0.1; done
"""


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "base64": lambda text: base64.b64encode(f"x{text}".encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "UTF-16LE": lambda text: base64.b64encode(text.encode("utf-16-le")).decode(),
}
"""How what must be found is written."""


@dataclass
class Tapped:
    """A hub and an agent of the stack's, all of whose connections are recorded."""

    hub_pid: int
    state: Path
    taps: list[TlsTap]

    def recorded(self) -> list[bytes]:
        return [each for tap in self.taps for each in tap.recorded]


@contextmanager
def tapped(stack: Stack, directory: Path) -> Iterator[Tapped]:
    """The taps sit between hub and queue, hub and credential service, agent and hub."""
    with ExitStack() as parts:
        hub = stack.tls("hub-1")
        environment = stack.process_environment("hub-1")
        to_queue = parts.enter_context(
            TlsTap(
                environment["SIS_HUB_QUEUE_ENDPOINT"], as_server=stack.tls("queue"), as_client=hub, server_name="queue"
            ).running()
        )
        to_credentials = parts.enter_context(
            TlsTap(
                environment["SIS_HUB_CREDENTIALS_ENDPOINT"],
                as_server=stack.tls("credentials"),
                as_client=hub,
                server_name="credentials",
            ).running()
        )
        far = parts.enter_context(
            far_hub(
                stack,
                directory / "hub",
                SIS_HUB_QUEUE_ENDPOINT=to_queue.endpoint,
                SIS_HUB_CREDENTIALS_ENDPOINT=to_credentials.endpoint,
            )
        )
        agent = parts.enter_context(
            enrolled_agent(stack, directory / "agent", name="tapped-1", group="tapped", slots=SLOTS)
        )
        to_hub = parts.enter_context(
            TlsTap(far.agents, as_server=hub, as_client=agent.identity_tls, server_name="hub").running()
        )
        agent.start(to_hub.endpoint)
        yield Tapped(far.pid, agent.state, [to_queue, to_credentials, to_hub])


def store(client: Client, number: int, secret: bytes) -> str:
    """One of three kinds in turn."""
    kind = (
        credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
        credential_pb2.CREDENTIAL_KIND_TOKEN,
        credential_pb2.CREDENTIAL_KIND_DOMAIN_ACCOUNT,
    )[number % 3]
    name = f"leak-{secrets.token_hex(4)}-{number}"
    client.credentials.create(
        credentials_pb.CreateCredentialRequest(
            name=name,
            kind=kind,
            username="" if kind == credential_pb2.CREDENTIAL_KIND_TOKEN else f"user{number}",
            domain="CORP" if kind == credential_pb2.CREDENTIAL_KIND_DOMAIN_ACCOUNT else "",
            value=credential_pb2.SecretValue(secret=secret),
        )
    )
    return name


def job(display_name: str, script: str, credential: str = "", **labels: str) -> pb.CreateJobRequest:
    request = pb.CreateJobRequest(
        display_name=display_name,
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name="core.shell"),
        operation="run",
        parameters={"script": job_pb2.ParameterValue(plain=script)},
        credentials={"secret": credential} if credential else {},
        labels=labels,
        site_target=job_pb2.SiteTarget(group="tapped"),
    )
    request.run_timeout.FromSeconds(300)
    return request


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.long)])
def test_jobs_that_print_their_secrets_leak_none(stack: Stack, tmp_path: Path, count: int) -> None:
    # Characters that every encoding treats in its own way.
    passwords = {f"secret {n}": f"s%'\\\"/+ é{secrets.token_urlsafe(12)}&{n}".encode() for n in range(10)}
    search = LeakSearch(passwords)
    # Each bait lies out in one form and in no other.
    baits = {form: f"bait{secrets.token_hex(12)}" for form in FORMS}
    planted = {form: FORMS[form](bait) for form, bait in baits.items()}
    bait = LeakSearch({form: each.encode() for form, each in baits.items()})
    display_name = f"Indiscreet {count}"
    with stack.client() as client, stack.database() as database, tapped(stack, tmp_path) as far:
        script = SCRIPT.replace("{directory}", str(tmp_path))
        names = [store(client, number, secret) for number, secret in enumerate(passwords.values())]
        ids = [
            client.jobs.create(job(display_name, script, names[number % len(names)])).job_id for number in range(count)
        ]
        for form, text in planted.items():
            client.jobs.create(job(f"{form}: {text}", f"true '{text}'", bait=text))
            _log_something(stack, ids[0], text)

        places = {
            "queue": lambda of: of.memory(stack.pid("queue")),
            "hub": lambda of: of.memory(far.hub_pid),
            "stack's hub": lambda of: of.memory(stack.pid("hub-1")),
            "files": lambda of: of.files(stack.data, far.state, excluding=[stack.data / "vault" / "storage"]),
            "database": lambda of: of.database(database),
            "wire": lambda of: {each for part in far.recorded() for each in of.find(part, "the wire")},
        }
        found: dict[str, set[str]] = {name: set() for name in places}
        until(lambda: len(list(tmp_path.glob("printed-*"))) == SLOTS, "jobs that run and have printed")
        for ended in (0, count // 2, count):
            until(
                lambda ended=ended: succeeded(client, display_name) >= ended,
                f"{ended} of {count} jobs",
                seconds=100,
            )
            for name, look in places.items():
                leaked = look(search)
                assert not leaked, f"{name}: {leaked}"
                found[name] |= bait.named(look(bait))
            (tmp_path / "enough").touch()
        # That nothing was found means something: the search finds what is there, everywhere but where it cannot be.
        assert all(found[name] == set(FORMS) for name in ("files", "database", "wire")), found
        assert found["queue"] and found["hub"], found

        for job_id in ids:
            output = b"".join(
                each.chunk.data for each in client.jobs.output(job_id) if each.WhichOneof("content") == "chunk"
            )
            assert output.count(b"***") >= 9, output
            assert not search.find(output)
            assert not search.find(client.jobs.get(job_id).SerializeToString())
            assert not search.find(b"".join(each.SerializeToString() for each in client.jobs.debug_log(job_id)))
        for name in names:
            assert len(list(client.credentials.usage(name))) == count // len(names)
            client.credentials.delete(name)


def succeeded(client: Client, name: str) -> int:
    wanted = pb.JobFilter(text=name, statuses=[job_pb2.JOB_STATUS_SUCCEEDED])
    return client.jobs.list(wanted, page_size=1).total_size


def _log_something(stack: Stack, job_id: int, text: str) -> None:
    """What is in a request's metadata is in the queue's log."""
    state = stack.state
    channel = grpc.secure_channel(state.queue_endpoint, grpc.ssl_channel_credentials(state.ca.read_bytes()))
    with channel:
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        metadata = (
            ("authorization", f"Bearer {state.token.read_text().strip()}"),
            ("x-request-id", text),
        )
        stub.GetJob(pb.GetJobRequest(job_id=job_id), timeout=10, metadata=metadata)


def test_no_command_line_and_no_printed_line_holds_a_secret(stack: Stack) -> None:
    secret = f"p4ss {secrets.token_hex(12)}"
    search = LeakSearch({"secret": secret.encode()})
    name = f"typed-{secrets.token_hex(4)}"
    created = stack.cli(
        *("credentials", "create", "--name", name, "--kind", "username-password", "--username", "alice"),
        "--secret-stdin",
        stdin=f"{secret}\n",
    )
    assert created.returncode == 0, created.stderr
    printed = created.stdout + created.stderr
    for arguments in (("show", name), ("show", name, "--json"), ("list",), ("usage", name)):
        done = stack.cli("credentials", *arguments)
        assert done.returncode == 0, done.stderr
        printed += done.stdout + done.stderr
    replaced = stack.cli("credentials", "replace", name, "--secret-stdin", stdin=f"{secret}2\n")
    assert "version 2" in replaced.stdout, replaced.stderr
    refused = stack.cli(
        *("credentials", "create", "--name", name, "--kind", "token", "--secret-stdin"), stdin=f"{secret}\n"
    )
    assert refused.returncode == 1
    assert "error: " in refused.stderr
    printed += replaced.stdout + replaced.stderr + refused.stdout + refused.stderr
    assert not search.find(printed.encode())
    assert stack.cli("credentials", "delete", name).returncode == 0
    gone = stack.cli("credentials", "show", name)
    assert gone.returncode == 1
    assert name in gone.stderr


def test_a_secret_is_never_taken_as_an_argument(stack: Stack) -> None:
    done = stack.cli("credentials", "create", "--name", "x", "--kind", "token", "--secret", "hunter2hunter2")
    assert done.returncode == 2
    assert "hunter2" not in done.stdout + done.stderr
    without = subprocess.run(
        stack.command("credentials", "create", "--name", "x", "--kind", "token"),
        env=stack.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert without.returncode == 2
    assert "--secret-stdin" in without.stderr
