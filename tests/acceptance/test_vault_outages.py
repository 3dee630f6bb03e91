"""Vault killed, sealed and cut off while a hundred jobs need it: none is lost, none starts as somebody else,
each says what it waits for, and all are done soon after it is back."""

from __future__ import annotations

import getpass
import json
import secrets
import signal
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sis.client import Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.support.enrolled import enrolled_agent, far_credentials, far_hub
from tests.support.numbered_job import until
from tests.support.stack import Stack
from tests.support.tcp_proxy import proxied

SEEN_SECONDS = 30.0
"""For the reason of an outage to be what a job waits for."""
AWAY = {
    job_pb2.WAIT_REASON_VAULT_SEALED,
    job_pb2.WAIT_REASON_VAULT_UNREACHABLE,
    job_pb2.WAIT_REASON_VAULT_SLOW,
    job_pb2.WAIT_REASON_CREDENTIALS_UNREACHABLE,
}


@dataclass(frozen=True)
class Outage:
    """A way for Vault to be away."""

    group: str
    """Whose agents feel it."""
    reason: job_pb2.WaitReason.ValueType
    begin: Callable[[], object]
    hold: Callable[[], object]
    """Called again and again while it lasts."""
    end: Callable[[], object]


Way = Callable[[Stack, Path], AbstractContextManager[Outage]]


def nothing() -> None:
    pass


@contextmanager
def killed(stack: Stack, directory: Path) -> Iterator[Outage]:
    """It dies, as does whatever the stack starts in its place."""

    def kill() -> None:
        stack.process("vault").identity.signal(signal.SIGKILL)

    yield Outage("local", job_pb2.WAIT_REASON_VAULT_UNREACHABLE, begin=kill, hold=kill, end=nothing)


@contextmanager
def sealed(stack: Stack, directory: Path) -> Iterator[Outage]:
    """An administrator seals it; a restart opens the embedded one again."""

    def end() -> None:
        former = stack.pid("vault")
        stack.kill("vault")
        stack.wait_restarted("vault", former)

    yield Outage("local", job_pb2.WAIT_REASON_VAULT_SEALED, begin=lambda: seal(stack), hold=nothing, end=end)


@contextmanager
def cut_off(stack: Stack, directory: Path) -> Iterator[Outage]:
    """A credential service, a hub and an agent of their own, with a proxy before Vault."""
    address = stack.process_environment("credentials")["SIS_CREDENTIALS_VAULT_ADDRESS"]
    with ExitStack() as parts:
        proxy = parts.enter_context(proxied(address.removeprefix("https://")))
        credentials = parts.enter_context(
            far_credentials(
                stack,
                directory / "credentials",
                SIS_CREDENTIALS_VAULT_ADDRESS=f"https://{proxy.proxy.endpoint}",
                SIS_CREDENTIALS_VAULT_TIMEOUT_SECONDS="1",
            )
        )
        hub = parts.enter_context(far_hub(stack, directory / "hub", SIS_HUB_CREDENTIALS_ENDPOINT=credentials))
        agent = parts.enter_context(enrolled_agent(stack, directory / "cut-1", name="cut-1", group="cut", slots=8))
        agent.start(hub.agents)

        def begin() -> None:
            proxy(lambda p: p.black_hole())

        def end() -> None:
            proxy(lambda p: p.heal())
            proxy(lambda p: p.cut())

        yield Outage("cut", job_pb2.WAIT_REASON_VAULT_SLOW, begin=begin, hold=nothing, end=end)


def seal(stack: Stack) -> None:
    """Through Vault's API, with the administrator's token that the stack keeps."""
    environment = stack.process_environment("credentials")
    keys = json.loads((stack.data / "vault" / "keys.json").read_bytes())
    request = urllib.request.Request(
        f"{environment['SIS_CREDENTIALS_VAULT_ADDRESS']}/v1/sys/seal",
        method="PUT",
        headers={"X-Vault-Token": keys["root_token"]},
    )
    context = ssl.create_default_context(cafile=environment["SIS_CREDENTIALS_VAULT_CA"])
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        assert answer.status == 204


@pytest.mark.timeout(240)
@pytest.mark.long
@pytest.mark.parametrize("way", [sealed, killed, cut_off])
def test_vault_is_away_for_a_while(stack: Stack, tmp_path: Path, way: Way) -> None:
    own = getpass.getuser()
    endure(stack, tmp_path, way, own, f"Run as {own} (credential {{}}), the agent's own account", 100)


@pytest.mark.root
@pytest.mark.timeout(240)
def test_nothing_runs_as_the_agent_while_the_account_is_not_to_be_had(stack: Stack, tmp_path: Path) -> None:
    endure(stack, tmp_path, sealed, "nobody", "Run as nobody (credential {})", 20)


def endure(stack: Stack, directory: Path, way: Way, account: str, line: str, jobs: int) -> None:
    """Have an outage while so many jobs are to run as an account, each of whose logs is to have this line once."""
    with way(stack, directory) as outage, stack.client() as client:
        credential = store(client, account)
        ids = [create(client, credential, outage.group) for _ in range(jobs // 2)]
        until(lambda: len(succeeded(client, ids)) >= 5, "the first jobs")
        reasons: set[job_pb2.WaitReason.ValueType] = set()
        outage.begin()
        try:
            ids += [create(client, credential, outage.group) for _ in range(jobs - len(ids))]
            deadline = time.monotonic() + SEEN_SECONDS
            while outage.reason not in reasons:
                assert time.monotonic() < deadline, f"{reasons}{stack.logs()}"
                outage.hold()
                reasons |= waited_for(client)
        finally:
            outage.end()
        until(lambda: len(succeeded(client, ids)) == jobs, "all jobs", seconds=120)
        assert reasons <= AWAY, reasons
        for job_id in ids:
            check(client, job_id, account, line.format(credential))

        def ended() -> bool:
            usage = list(client.credentials.usage(credential))
            return {each.job_id for each in usage} == set(ids) and all(each.HasField("end_time") for each in usage)

        until(ended, "the leases' end")
        client.credentials.delete(credential)
    stack.wait_healthy()


def waited_for(client: Client) -> set[job_pb2.WaitReason.ValueType]:
    """What jobs wait for."""
    waiting = client.jobs.list(pb.JobFilter(statuses=[job_pb2.JOB_STATUS_WAITING]), page_size=1_000)
    return {each.wait.reason for each in waiting.jobs if each.HasField("wait")}


def check(client: Client, job_id: int, account: str, line: str) -> None:
    """It was started once, as this account, by its own word and by its log's."""
    output, said = b"", []
    for response in client.jobs.debug_log(job_id):
        for frame in response.frames.frames:
            output += frame.chunk.data
            said += [frame.notice.text] if frame.notice.text.startswith("Run as ") else []
    assert output == f"{account} ***\n".encode()
    assert said == [line]
    assert [each.event for each in client.jobs.history(job_id)].count("FIRST_PROCESS") == 1


def store(client: Client, account: str) -> str:
    name = f"outage-{secrets.token_hex(4)}"
    client.credentials.create(
        credentials_pb.CreateCredentialRequest(
            name=name,
            kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
            username=account,
            value=credential_pb2.SecretValue(secret=secrets.token_hex(10).encode()),
        )
    )
    return name


def create(client: Client, credential: str, group: str) -> int:
    request = pb.CreateJobRequest(
        display_name="In need of Vault",
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name="core.shell"),
        operation="run",
        parameters={
            "script": job_pb2.ParameterValue(plain='sleep 0.1; echo "$(id -un) $SIS_CREDENTIAL_SECRET_PASSWORD"')
        },
        run_as=credential,
        credentials={"secret": credential},
        site_target=job_pb2.SiteTarget(group=group),
    )
    request.run_timeout.FromSeconds(60)
    return client.jobs.create(request).job_id


def succeeded(client: Client, ids: list[int]) -> set[int]:
    found = client.jobs.list(
        pb.JobFilter(text="In need of Vault", statuses=[job_pb2.JOB_STATUS_SUCCEEDED]), page_size=1000
    )
    return {each.job_id for each in found.jobs} & set(ids)
