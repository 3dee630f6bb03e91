"""Every process runs from its image under what a careful operator takes from it: no root, no capability, nothing to
write but its volumes, a quarter of a GiB."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.runtime.probes import LIVENESS
from sis.client import Client
from sis.client.endpoints import Endpoints, Token
from sis.packages import archive, shipped
from sis.queue.v1 import job_pb2, job_service_pb2
from sis.stack.ports import Reservations
from tests.support.openbao import OpenBaoServer, until
from tests.support.podman import AGENT, POSTGRES, ROOT, SERVER, Podman
from tests.support.probes import SERVING, heard

pytestmark = pytest.mark.timeout(900)

CONFINED = (
    *("--read-only", "--cap-drop", "ALL", "--user", "10001", "--security-opt", "no-new-privileges"),
    *("--memory", "256m", "--network", "host"),
)
JOINING = ("queue", "hub", "gateway")
SERVER_ONLY = {"alembic", "bcrypt", "hvac", "psycopg", "sqlalchemy", "starlette", "uvicorn", "grpc_reflection"}
AGENT_ONLY = {"ahocorasick_rs", "OpenSSL", "setproctitle"}
_SECONDS = 90.0


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass
class Site:
    """A PostgreSQL and an OpenBao of this machine, and the suite in containers beside them."""

    podman: Podman
    directory: Path
    openbao: OpenBaoServer
    ports: Reservations
    token: str = field(default_factory=secrets.token_urlsafe)
    listeners: dict[str, int] = field(default_factory=dict)

    def port(self, name: str) -> int:
        if name not in self.listeners:
            self.listeners[name] = self.ports.take(0)
        return self.listeners[name]

    def at(self, name: str) -> str:
        return f"127.0.0.1:{self.port(name)}"

    def environment(self, service: str) -> dict[str, str]:
        """What only it needs to know, without its prefix."""
        own = {
            "queue": {"INTERNAL_LISTEN": self.at("queue-internal")},
            "credentials": {
                "INTERNAL_LISTEN": self.at("credentials-internal"),
                "VAULT_ADDRESS": self.openbao.address,
                "VAULT_CA": "/etc/sis/vault.pem",
                "VAULT_ROLE_ID_FILE": "/etc/sis/role-id",
                "VAULT_SECRET_ID_FILE": "/etc/sis/secret-id",
                "JOIN_TOKENS": ",".join(f"{name}={digest(self.token + name)}" for name in JOINING),
            },
            "hub": {
                "NAME": "hub-1",
                "AGENT_LISTEN": self.at("hub-agents"),
                "ENROLMENT_LISTEN": self.at("hub-enrolment"),
                "QUEUE_ENDPOINT": f"dns:///{self.at('queue-internal')}",
                "CREDENTIALS_ENDPOINT": f"dns:///{self.at('credentials-internal')}",
            },
            "gateway": {
                "QUEUE_ENDPOINT": f"dns:///{self.at('queue-internal')}",
                "CREDENTIALS_ENDPOINT": f"dns:///{self.at('credentials-internal')}",
                "HUB_ENDPOINT": f"dns:///{self.at('hub-agents')}",
            },
        }[service]
        shared = {
            "DATABASE_URL": f"postgresql+psycopg://sis:{self.token}@{self.at('postgres')}/sis",
            "ADMIN_TOKEN_SHA256": digest(self.token),
            "LISTEN": self.at(service),
            "PROBE_LISTEN": self.at(f"{service}-probe"),
            "TLS_CA": "/etc/sis/ca.pem",
            "IDENTITY": "/var/lib/sis/identity",
            "HOST_NAMES": "localhost,127.0.0.1",
            "JOIN_ENDPOINT": f"dns:///{self.at('credentials')}",
            "JOIN_TOKEN_FILE": f"/etc/sis/{service}.token",
        }
        return {f"SIS_{service.upper()}_{name}": value for name, value in {**shared, **own}.items()}

    def mounted(self) -> list[str]:
        return ["--volume", f"{self.directory}:/etc/sis:ro", "--volume", "/var/lib/sis"]

    def start_postgres(self) -> None:
        variables = {"USER": "sis", "DB": "sis", "PASSWORD_FILE": "/etc/sis/token", "INITDB_ARGS": "--encoding=UTF8"}
        words = [f"--env=POSTGRES_{name}={value}" for name, value in variables.items()]
        places = ("--env=PGDATA=/data/cluster", "--volume=/data")
        volume = f"--volume={self.directory}:/etc/sis:ro"
        settings = {"listen_addresses": "127.0.0.1", "port": str(self.port("postgres"))}
        words += [POSTGRES, "/usr/local/bin/postgres.sh", *(f"--{key}={value}" for key, value in settings.items())]
        self.podman.run("run", "--detach", "--name=postgres", *CONFINED, volume, *places, *words)

    def start(self, service: str) -> None:
        variables = [f"--env={name}={value}" for name, value in self.environment(service).items()]
        self.podman.run(
            "run", "--detach", f"--name={service}", *CONFINED, *self.mounted(), *variables, SERVER, f"sis-{service}"
        )

    def until_serving(self, name: str) -> None:
        """Wait until it says that it serves; what it printed otherwise is in the failure."""
        try:
            until(lambda: heard(self.at(f"{name}-probe")) == SERVING, f"{name} to serve", _SECONDS)
        except AssertionError as error:
            said = self.podman.run("logs", "--tail", "20", name, check=False)
            raise AssertionError(f"{error}\n{said.stdout}{said.stderr}") from None

    def client(self) -> Client:
        ca = (self.directory / "ca.pem").read_bytes()
        return Client(
            Endpoints(self.at("queue"), Token(self.token), ca, hub=self.at("hub"), credentials=self.at("credentials"))
        )


@pytest.fixture(scope="module")
def site(images: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The servers are started in the order in which each waits for the next."""
    directory = tmp_path_factory.mktemp("site")
    with (
        OpenBaoServer(tmp_path_factory.mktemp("openbao"), auto_unseal=True) as openbao,
        Reservations() as ports,
    ):
        site = Site(images, directory, openbao, ports)
        (directory / "token").write_text(site.token)
        for service in JOINING:
            (directory / f"{service}.token").write_text(site.token + service)
        (directory / "vault.pem").write_bytes(openbao.server.ca.read_bytes())
        for name in ("ca.pem", "role-id", "secret-id"):
            (directory / name).write_bytes((openbao.output / name).read_bytes())
        directory.chmod(0o755)
        for file in directory.iterdir():
            file.chmod(0o644)  # the account in the containers is nobody's here
        site.start_postgres()
        for service in ("gateway", "hub", "queue", "credentials"):
            site.start(service)
        yield site
        images.run("rm", "--all", "--force", "--volumes", "--time", "5")
        images.run("volume", "rm", "--all", "--force")


def test_what_waits_is_alive_and_serves_once_it_has_what_it_needs(site: Site) -> None:
    services = ("queue", "credentials", "hub", "gateway")
    for service in services:
        until(
            lambda service=service: heard(site.at(f"{service}-probe"), LIVENESS) == SERVING,
            f"{service} to live",
            _SECONDS,
        )
    stored = ("credentials", "queue", "hub")
    assert all(heard(site.at(f"{service}-probe")) != SERVING for service in stored), "no schema is there yet"
    for service in stored:
        for _ in range(2):  # the second time it changes nothing
            site.podman.run("exec", service, f"sis-{service}", "migrate")
    for service in services:
        site.until_serving(service)
        found = site.podman.inspect("inspect", service)
        assert found["State"]["Running"], service
        assert found["RestartCount"] == 0, service


def test_an_agent_enrols_and_runs_a_job(site: Site) -> None:
    with site.client() as client:
        client.packages.push(archive.pack(shipped() / "core.shell"))
        code = client.identities.pair("boxed", "local").code
        agent = ("--volume", "state:/var/lib/sis-agent", f"--env=SIS_AGENT_PROBE_LISTEN={site.at('agent-probe')}")
        enrol = ("sis-agent", "enrol", "--hub", site.at("hub-enrolment"), "--code", "-")
        site.podman.run("run", "--rm", "--interactive", *CONFINED, *agent, AGENT, *enrol, given=code)
        site.podman.run("run", "--detach", "--init", "--name=agent", *CONFINED, *agent, AGENT)
        site.until_serving("agent")
        assert heard(site.at("agent-probe"), LIVENESS) == SERVING
        created = client.jobs.create(
            job_service_pb2.CreateJobRequest(
                display_name="Who am I",
                type=job_pb2.JOB_TYPE_PACKAGE,
                package=job_pb2.PackageReference(name="core.shell"),
                operation="run",
                parameters={
                    "script": job_pb2.ParameterValue(
                        plain="id -un; id -u; (sleep 60 &); touch /x 2>&1; grep Cap /proc/self/status"
                    )
                },
                site_target=job_pb2.SiteTarget(group="local"),
            )
        )
        for _ in client.jobs.monitor(created.job_id):
            pass
        job = client.jobs.get(created.job_id)
        output = b"".join(each.chunk.data for each in client.jobs.output(created.job_id)).decode()
    assert job.status == job_pb2.JOB_STATUS_SUCCEEDED, job
    assert output.startswith("sis\n10001\n")
    assert "Read-only file system" in output
    assert "CapEff:\t0000000000000000" in output


def test_the_gateway_serves_the_console(site: Site) -> None:
    fetch = "import urllib.request as r, sys; print(r.urlopen(sys.argv[1], timeout=20).read().decode()[:200000])"
    for path, expected in (("/", "<title>"), ("/readyz", '"ready"'), ("/openapi.json", "ListJobs")):
        done = site.podman.run("exec", "gateway", "python3", "-c", fetch, f"http://{site.at('gateway')}{path}")
        assert expected in done.stdout, path


@pytest.mark.parametrize("name", ["gateway", "hub", "queue", "credentials", "agent"])
def test_a_process_drains_when_it_is_told_to(site: Site, name: str) -> None:
    site.podman.run("stop", "--time", "40", name)
    assert site.podman.inspect("inspect", name)["State"]["ExitCode"] == 0


def test_the_agents_image_has_no_dependency_of_the_servers(images: Podman) -> None:
    names = sorted(SERVER_ONLY | AGENT_ONLY)
    find = "import importlib.util as u, sys, json; print(json.dumps([n for n in sys.argv[1:] if u.find_spec(n)]))"
    here = json.loads(images.run("run", "--rm", "--network=none", AGENT, "python3", "-c", find, *names).stdout)
    assert set(here) == AGENT_ONLY
    there = json.loads(images.run("run", "--rm", "--network=none", SERVER, "python3", "-c", find, *names).stdout)
    assert set(there) == SERVER_ONLY


@pytest.mark.parametrize("image", [SERVER, AGENT])
def test_an_image_has_neither_root_nor_installer(images: Podman, image: str) -> None:
    found = images.inspect("image", "inspect", image)
    assert found["Config"]["User"] == "10001:10001"
    ask = "import importlib.util as u, os; print(u.find_spec('pip'), os.path.exists('/wheels'))"
    assert images.run("run", "--rm", "--network=none", image, "python3", "-c", ask).stdout.split() == ["None", "False"]


def test_each_requirement_is_installed_by_its_hash(images: Podman) -> None:
    for extra in ("server", "agent"):
        requirements = (ROOT / "build" / "image" / f"requirements-{extra}.txt").read_text()
        pinned = [line for line in requirements.replace("\\\n", "").splitlines() if line.strip()]
        assert len(pinned) > 20
        assert all("==" in line and "--hash=sha256:" in line for line in pinned)
