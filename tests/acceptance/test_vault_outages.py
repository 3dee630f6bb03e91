"""Vault killed, sealed, held up and cut off while a hundred jobs need it: none is lost, none starts as somebody else,
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
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sis.client import Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.acceptance.test_cut_connections import proxied
from tests.support.enrolled import enrolled_agent, far_credentials, far_hub
from tests.support.numbered_job import until
from tests.support.stack import Stack

JOBS = 100
AWAY = {
    job_pb2.WAIT_REASON_VAULT_SEALED,
    job_pb2.WAIT_REASON_VAULT_UNREACHABLE,
    job_pb2.WAIT_REASON_VAULT_SLOW,
    job_pb2.WAIT_REASON_CREDENTIALS_UNREACHABLE,
}


class Outage:
    """A way for Vault to be away."""

    def __init__(
        self, group: str, begin: Callable[[], object], end: Callable[[], object], reason: job_pb2.WaitReason.ValueType
    ) -> None:
        self.group, self.begin, self.end, self.reason = group, begin, end, reason


@contextmanager
def killed(stack: Stack, directory: Path) -> Iterator[Outage]:
    """It dies again as soon as it is started again, until it may stay."""
    dead = True

    def end() -> None:
        nonlocal dead
        dead = False

    stack.wait_healthy()

    def begin() -> None:
        # Held as long as it is down: the stack starts it again with growing delays.
        for _ in range(3):
            former = stack.pid("vault")
            stack.kill("vault")
            stack.wait_restarted("vault", former)

    yield Outage("local", begin, end, job_pb2.WAIT_REASON_VAULT_UNREACHABLE)


@contextmanager
def sealed(stack: Stack, directory: Path) -> Iterator[Outage]:
    """An administrator seals it; a restart opens the embedded one again."""

    def end() -> None:
        former = stack.pid("vault")
        stack.kill("vault")
        stack.wait_restarted("vault", former)

    yield Outage("local", lambda: seal(stack), end, job_pb2.WAIT_REASON_VAULT_SEALED)


@contextmanager
def held_up(stack: Stack, directory: Path) -> Iterator[Outage]:
    """It takes connections and answers nothing."""
    yield Outage(
        "local",
        lambda: stack.kill("vault", signal.SIGSTOP),
        lambda: stack.kill("vault", signal.SIGCONT),
        job_pb2.WAIT_REASON_VAULT_SLOW,
    )


@contextmanager
def cut_off(stack: Stack, directory: Path) -> Iterator[Outage]:
    """A credential service, a hub and an agent of their own, with a proxy before Vault."""
    address = stack.process_environment("credentials")["SIS_CREDENTIALS_VAULT_ADDRESS"]
    with ExitStack() as parts:
        proxy = parts.enter_context(proxied(address.removeprefix("https://")))
        credentials = parts.enter_context(
            far_credentials(
                stack, directory / "credentials", SIS_CREDENTIALS_VAULT_ADDRESS=f"https://{proxy.proxy.endpoint}"
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

        yield Outage("cut", begin, end, job_pb2.WAIT_REASON_VAULT_SLOW)


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
@pytest.mark.parametrize("way", [killed, sealed, held_up, cut_off])
def test_vault_is_away_for_a_while(
    stack: Stack, tmp_path: Path, way: Callable[[Stack, Path], contextmanager[Outage]]
) -> None:
    account = getpass.getuser()
    with way(stack, tmp_path) as outage, stack.client() as client:  # type: ignore[attr-defined]
        credential = store(client, account)
        ids = [create(client, credential, outage.group) for _ in range(JOBS)]
        until(lambda: len(succeeded(client, ids)) >= 5, "the first jobs")
        reasons: set[job_pb2.WaitReason.ValueType] = set()
        outage.begin()
        began = time.monotonic()
        while time.monotonic() - began < 20 and (outage.reason not in reasons or time.monotonic() - began < 3):
            waiting = client.jobs.list(pb.JobFilter(statuses=[job_pb2.JOB_STATUS_WAITING]), page_size=JOBS)
            reasons |= {each.wait.reason for each in waiting.jobs if each.HasField("wait")}
            time.sleep(0.1)
        outage.end()
        if way is not killed:  # it may be back before anybody asks it
            assert outage.reason in reasons, f"{reasons}{stack.logs()}"
        assert reasons <= AWAY, reasons
        until(lambda: len(succeeded(client, ids)) == JOBS, "all jobs", seconds=120)
        for job_id in ids:
            said = b"".join(each.chunk.data for each in client.jobs.output(job_id) if each.HasField("chunk"))
            assert said == f"{account} ***\n".encode()
            started = [each for each in client.jobs.history(job_id) if each.event == "FIRST_PROCESS"]
            assert len(started) == 1
        until(
            lambda: all(each.HasField("end_time") for each in client.credentials.usage(credential)), "the leases' end"
        )
        client.credentials.delete(credential)
    stack.wait_healthy()


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
