"""A stack is backed up while it works, goes on, is destroyed and restored: what of it is there, and what runs."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sis.client import Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2
from tests.support import promises
from tests.support.numbered_job import shell_job, until
from tests.support.stack import Stack

TOKEN = credential_pb2.CREDENTIAL_KIND_TOKEN


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own, whose agent takes four jobs at once."""
    stack = Stack(tmp_path_factory.mktemp("backup") / "data")
    try:
        stack.up("--slots", "4")
        yield stack
    finally:
        stack.close()


class Site:
    """What payloads leave at their site, whatever becomes of the suite: who was started how often, with what secret."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory

    @property
    def starts(self) -> Counter[int]:
        path = self._directory / "starts"
        return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()

    def script(self, name: str) -> str:
        """Runs until `end` is called with the name."""
        return (
            f"echo $SIS_JOB_ID >> '{self._directory}/starts'; echo begun; "
            f"until [ -e '{self._directory}/end-{name}' ]; do sleep 0.1; done; echo {name} is done"
        )

    def end(self, *names: str) -> None:
        for name in names:
            (self._directory / f"end-{name}").touch()

    def reading(self) -> str:
        """Shows its secret, and leaves its SHA-256."""
        return (
            f"printf %s \"$SIS_CREDENTIAL_SECRET_TOKEN\" | sha256sum | cut -c -64 > '{self._directory}/'$SIS_JOB_ID; "
            'echo "it is $SIS_CREDENTIAL_SECRET_TOKEN"'
        )

    def read(self, job_id: int) -> str:
        return (self._directory / str(job_id)).read_text().strip()


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Churn:
    """Credentials that are created, replaced and deleted as fast as it goes, until the block ends."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self.secrets: dict[str, set[str]] = {}
        self.rounds = 0

    def __enter__(self) -> Churn:
        self._running = self._pool.submit(self._run)
        until(lambda: self.rounds > 2 or self._running.done(), "some churn")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._running.result()
        self._pool.shutdown()

    def _run(self) -> None:
        while not self._over.is_set():
            name = f"churn-{self.rounds}"
            create(self._client, name, self._secret(name))
            older = f"churn-{self.rounds // 2}"
            replace(self._client, older, self._secret(older))
            gone = f"gone-{self.rounds}"
            create(self._client, gone, self._secret(gone))
            self._client.credentials.delete(gone)
            self.rounds += 1

    def _secret(self, name: str) -> str:
        secret = secrets.token_hex(12)
        self.secrets.setdefault(name, set()).add(sha256(secret))
        return secret


def create(client: Client, name: str, secret: str) -> None:
    value = credential_pb2.SecretValue(secret=secret.encode())
    client.credentials.create(credentials_pb.CreateCredentialRequest(name=name, kind=TOKEN, value=value))


def replace(client: Client, name: str, secret: str) -> None:
    value = credential_pb2.SecretValue(secret=secret.encode())
    client.credentials.replace(credentials_pb.ReplaceCredentialRequest(name=name, value=value))


def status(client: Client, job_id: int) -> str:
    return job_pb2.JobStatus.Name(client.jobs.get(job_id).status).removeprefix("JOB_STATUS_")


def output(client: Client, job_id: int) -> str:
    return b"".join(e.chunk.data for e in client.jobs.output(job_id) if e.WhichOneof("content") == "chunk").decode()


def start(client: Client, script: str, credential: str = "") -> int:
    request = shell_job(script)
    if credential:
        request.credentials["secret"] = credential
    return client.jobs.create(request).job_id


def reach(client: Client, wanted: str, *job_ids: int) -> None:
    for job_id in job_ids:
        until(lambda job_id=job_id: status(client, job_id) == wanted, f"job {job_id} to be {wanted}")


@pytest.mark.timeout(400)
def test_a_stack_is_destroyed_and_restored(own: Stack, tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    backup = tmp_path / "backup"
    kept, former, later = (secrets.token_hex(12) for _ in range(3))
    with own.client() as client:
        create(client, "kept", kept)
        create(client, "replaced", former)
        create(client, "deleted", kept)
        ended = start(client, site.reading(), "kept")
        reach(client, "SUCCEEDED", ended)
        # Two run from before to after, one of which ends in between; two fill the agent, and two wait behind them.
        through, ends = start(client, site.script("through")), start(client, site.script("ends"))
        fillers = [start(client, site.script("fillers")) for _ in range(2)]
        reach(client, "RUNNING", through, ends, *fillers)
        waited, ran = start(client, site.script("waited")), start(client, site.script("ran"))
        with own.database() as database:
            before = promises.read(database)
        with Churn(client) as churn:
            done = own.cli("backup", backup)
        assert done.returncode == 0, done.stderr
        assert stat_modes(backup) == {0o600}

        site.end("ends", "fillers", "ran")
        reach(client, "SUCCEEDED", ends, *fillers, ran)
        reach(client, "RUNNING", waited)
        new = start(client, site.script("new"))
        reach(client, "RUNNING", new)
        replace(client, "replaced", later)
        client.credentials.delete("deleted")
        create(client, "created", later)
    key = (own.layout.agent("local-1") / "identity" / "identity.json").read_bytes()
    own.down()
    for path in own.data.iterdir():
        if path.name != "agents":
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    done = own.cli("restore", backup, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "restored: what was acknowledged before" in done.stdout
    own.up()
    with own.client() as client, own.database() as database:
        # What was acknowledged is there, byte by byte, and nothing has been started twice.
        after = promises.read(database)
        promises.check(after)
        still = {job_id: job for job_id, job in before.jobs.items() if job_id in (ended, through)}
        known = promises.Record(before.now, still, {k: a for k, a in before.attempts.items() if k[0] in still},
                                before.histories, before.logs)  # fmt: skip
        promises.check_kept(known, after)
        assert output(client, ended) == "it is ***\n"
        assert site.starts == Counter([through, ends, *fillers, waited, ran, new])

        # What runs came home, also what was claimed after the backup. What ended since is for people, and so is what
        # ran since and is not known to have.
        reach(client, "RUNNING", through, waited)
        reach(client, "AWOL", ends, *fillers)
        assert status(client, ran) == "DEFERRED"
        site.end("through", "waited")
        reach(client, "SUCCEEDED", through, waited)
        assert output(client, through) == "begun\nthrough is done\n"
        assert output(client, waited) == "begun\nwaited is done\n"
        assert (own.layout.agent("local-1") / "identity" / "identity.json").read_bytes() == key
        # Nobody knows the job that was created since, so it was ended, and no other gets its number.
        assert own.cli("jobs", "get", str(new)).returncode == 1
        assert start(client, "true") > 1_000_000
        client.jobs.activate(ran, "somebody wants it run again")
        reach(client, "SUCCEEDED", ran)
        assert site.starts == Counter([through, ends, *fillers, waited, ran, ran, new])

        # Credentials are those of the backup, and each that it calls ready works.
        states = {each.name: each.state for each in client.credentials.all()}
        assert {"kept", "replaced", "deleted"} < states.keys()
        assert "created" not in states
        ready = [name for name, state in states.items() if state == credential_pb2.CREDENTIAL_STATE_READY]
        assert len([name for name in ready if name.startswith("churn-")]) > 1
        readers = {name: start(client, site.reading(), name) for name in ready}
        reach(client, "SUCCEEDED", *readers.values())
        expected = {"kept": {sha256(kept)}, "replaced": {sha256(former)}, "deleted": {sha256(kept)}, **churn.secrets}
        for name, job_id in readers.items():
            assert site.read(job_id) in expected[name], name
            assert output(client, job_id) == "it is ***\n"
        promises.check(promises.read(database))


def stat_modes(directory: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()}


def test_what_is_no_whole_backup_is_refused(own: Stack, tmp_path: Path) -> None:
    backup, elsewhere = tmp_path / "backup", tmp_path / "elsewhere"
    assert own.cli("backup", backup).returncode == 0
    done = own.cli("backup", backup)
    assert (done.returncode, "is there already" in done.stderr) == (1, True)
    done = own.cli("restore", backup)
    assert done.returncode == 1
    assert "is up already" in done.stderr

    def refused(*words: str) -> None:
        done = own.cli("restore", backup, "--data", elsewhere)
        assert done.returncode == 1, done.stdout
        for word in words:
            assert word in done.stderr
        assert not (elsewhere / "postgres").exists()

    manifest = backup / "manifest.json"
    whole = manifest.read_bytes()
    snapshot = backup / "vault.snapshot"
    content = snapshot.read_bytes()
    snapshot.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("vault.snapshot", "is damaged")
    snapshot.write_bytes(content)
    manifest.write_text(json.dumps({**json.loads(whole), "format": 2}))
    refused("manifest.json", "format")
    manifest.write_text(json.dumps({**json.loads(whole), "postgresql": 99}))
    refused("PostgreSQL here is", "99")
    manifest.unlink()
    refused("is no backup")


def test_a_failed_backup_leaves_nothing(own: Stack, tmp_path: Path) -> None:
    keys = own.layout.vault / "keys.json"
    whole = keys.read_bytes()
    keys.write_text(json.dumps({"root_token": "not this one"}))
    try:
        done = own.cli("backup", tmp_path / "backup")
    finally:
        keys.write_bytes(whole)
    assert done.returncode == 1
    assert "raft snapshot" in done.stderr
    assert list(tmp_path.iterdir()) == []
