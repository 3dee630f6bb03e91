"""A payload of the agent's own account and its credentials: what it is given, and where nothing of them is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.supervision.handle import SpawnFailed
from services.sis_agent.agent.supervision.lost import finish_lost
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2
from tests.support.attempts import Attempts
from tests.support.fault_points import FaultPoints
from tests.support.files import contents
from tests.support.sealed import SSH_KEY, TOKEN, SealedIdentity

SECRET = b"correct horse battery staple"
# Says what it finds without saying it: the output is masked.
FINGERPRINTS = """
for name in $(env | sed -n 's/^\\(SIS_CREDENTIAL_[A-Z_]*\\)=.*/\\1/p' | sort); do
    eval value=\\"\\$$name\\"
    case $name in *_FILE) printf '%s %s\\n' $name "$(cksum < "$value") $(stat -c %a "$value")" ;;
                  *) printf '%s %s\\n' $name "$(printf %s "$value" | cksum)" ;; esac
done
echo stdin "$(cksum)"
"""


def cksum(data: bytes) -> str:
    """As POSIX has it, with the length."""
    crc = 0
    length = len(data)
    tail = bytearray()
    while length:
        tail.append(length & 0xFF)
        length >>= 8
    for byte in data + tail:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        crc &= 0xFFFFFFFF
    return f"{crc ^ 0xFFFFFFFF} {len(data)}"


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Every command line on this machine, looked at again and again."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try:
                        seen.add(Path(f"/proc/{name}/cmdline").read_bytes())
                    except OSError:
                        continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def files_with(root: Path, secret: bytes) -> list[Path]:
    return [path for path, content in contents(root) if secret in content]


async def test_credentials_arrive_as_the_operation_says(attempts: Attempts, identity: SealedIdentity) -> None:
    def leases(assignment: dispatch.Assignment) -> None:
        identity.lease(assignment, "credential.db", SECRET, username="reader", domain="CORP")
        identity.lease(assignment, "credential.repo", b"a private key\n", SSH_KEY, username="git", passphrase=SECRET)
        identity.lease(assignment, "credential.api", SECRET * 10, TOKEN)
        identity.lease(assignment, "credential.vault", b"x" * 65_536)

    credentials = {
        "db": {},
        "repo": {"kinds": ["ssh-key"]},
        "api": {"delivery": "file"},
        "vault": {"delivery": "stdin"},
        "absent": {},
    }
    attempt = await attempts.run(FINGERPRINTS, credentials=credentials, leases=leases)
    assert attempt.output().decode().splitlines() == [
        f"SIS_CREDENTIAL_API_TOKEN_FILE {cksum(SECRET * 10)} 600",
        f"SIS_CREDENTIAL_DB_DOMAIN {cksum(b'CORP')}",
        f"SIS_CREDENTIAL_DB_PASSWORD {cksum(SECRET)}",
        f"SIS_CREDENTIAL_DB_USERNAME {cksum(b'reader')}",
        f"SIS_CREDENTIAL_REPO_PASSPHRASE {cksum(SECRET)}",
        f"SIS_CREDENTIAL_REPO_PRIVATE_KEY_FILE {cksum(b'a private key' + bytes([10]))} 600",
        f"SIS_CREDENTIAL_REPO_USERNAME {cksum(b'git')}",
        f"stdin {cksum(b'x' * 65_536 + bytes([10]))}",
    ]
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED
    assert f"No Run As: the payload runs as the agent's own account {own()}" in attempt.text()


async def test_a_sensitive_input_is_a_variable(attempts_anyhow: Attempts, identity: SealedIdentity) -> None:
    def leases(assignment: dispatch.Assignment) -> None:
        identity.lease(assignment, "param.pin", SECRET)
        assignment.parameters["pin"].credential_ref = "the-param.pin"

    inputs = {"pin": {"type": "string", "sensitive": True, "required": True}}
    attempt = await attempts_anyhow.run('printf %s "$SIS_PARAM_PIN" | cksum', inputs=inputs, leases=leases)
    assert attempt.output().decode().strip() == cksum(SECRET)
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED


async def test_the_log_says_as_whom_the_payload_runs(attempts_anyhow: Attempts, identity: SealedIdentity) -> None:
    attempt = await attempts_anyhow.run("true")
    assert f"No credentials: the payload runs as the agent's own account {own()}" in attempt.text()

    def own_account(assignment: dispatch.Assignment) -> None:
        identity.lease(assignment, "run_as", SECRET, username=own(), credential="ops")

    attempt = await attempts_anyhow.run("id -un", leases=own_account)
    assert f"Run as {own()} (credential ops), the agent's own account" in attempt.text()
    assert attempt.output().decode().strip() == own()
    roles = [notice.process_started.process.role for notice in attempt.notices("process_started")]
    assert roles[:2] == [job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR, job_pb2.PROCESS_ROLE_PAYLOAD]
    assert job_pb2.PROCESS_ROLE_RUN_AS_EXECUTOR not in roles


async def test_no_secret_is_on_a_command_line_on_the_disk_or_left(
    attempts: Attempts, identity: SealedIdentity, tmp_path: Path
) -> None:
    def leases(assignment: dispatch.Assignment) -> None:
        identity.lease(assignment, "credential.env", SECRET)
        identity.lease(assignment, "credential.file", SECRET, TOKEN)
        identity.lease(assignment, "credential.input", SECRET)
        identity.lease(assignment, "param.pin", SECRET)
        assignment.parameters["pin"].credential_ref = "the-param.pin"

    credentials = {"env": {}, "file": {"delivery": "file"}, "input": {"delivery": "stdin"}}
    inputs = {"pin": {"type": "string", "sensitive": True}}
    script = """
echo "pin=$SIS_PARAM_PIN" >> "$SIS_OUTPUT"; echo "40 $SIS_PARAM_PIN" >> "$SIS_PROGRESS"
echo "$SIS_CREDENTIAL_FILE_TOKEN_FILE"; cat; sleep 1.3; cat "$SIS_CREDENTIAL_FILE_TOKEN_FILE"
"""
    with command_lines() as seen:
        attempt = await attempts.start(
            script, credentials=credentials, inputs=inputs, leases=leases, outputs={"pin": True}
        )
        await attempt.until_output(b"\n")
        during = files_with(tmp_path, SECRET)
        finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert len(seen) > 3
    assert not [line for line in seen if SECRET in line]
    file = Path(attempt.output().decode().splitlines()[0])
    if not file.is_relative_to(tmp_path):
        # Where nothing is in memory, the private directory is on the disk while the job runs.
        assert during == []
    assert files_with(tmp_path, SECRET) == []
    assert not file.parent.exists()


WITHOUT_MEMORY = """
import sys
from pathlib import Path
from services.sis_agent.agent.supervision import guardian, private_directory, supervisor_process
from sis.packages import manifest
private_directory.memory_file_systems = tuple
directory, package, identity = map(Path, sys.argv[1:])
guarded = guardian.fork_guarded(0)
supervisor_process.detach(guarded.descriptors)
means = supervisor_process.Means(cgroups=False, process_limit=0, identity_directory=identity)
supervisor_process.supervise(directory, package, manifest.load(package), lambda _: None, guarded, means)
"""


@pytest.mark.parametrize("delivery", ["file", "environment"])
async def test_the_log_says_when_files_of_credentials_are_on_disk(
    attempts_anyhow: Attempts, identity: SealedIdentity, delivery: str
) -> None:
    attempt = attempts_anyhow.prepare(
        "true", credentials={"db": {"delivery": delivery}}, leases=lambda a: identity.lease(a, "credential.db", SECRET)
    )
    arguments = map(str, (attempt.directory, attempt.package, identity.directory))
    supervisor = await asyncio.create_subprocess_exec(sys.executable, "-c", WITHOUT_MEMORY, *arguments)
    async with asyncio.timeout(30):
        assert await supervisor.wait() == 0, attempt.faults()
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED
    warnings = [notice.text for notice in attempt.notices() if notice.severity == pb.SEVERITY_WARNING]
    on_disk = "No file system in memory can be had here: the files of the credentials are on disk until the job ends"
    assert warnings == ([on_disk] if delivery == "file" else [])


@pytest.mark.parametrize("broken", ["another key", "no lease", "damaged", "no identity"])
async def test_a_lease_that_cannot_be_opened(
    attempts: Attempts, identity: SealedIdentity, broken: str, tmp_path: Path
) -> None:
    def leases(assignment: dispatch.Assignment) -> None:
        lease = identity.lease(assignment, "credential.db", SECRET)
        if broken == "another key":
            lease.sealing_key_id = "0123456789abcdef"
        elif broken == "no lease":
            del assignment.leases[:]
        elif broken == "damaged":
            lease.ciphertext = lease.ciphertext[:-1] + b"?"
        else:
            (identity.directory / "identity.json").unlink()

    attempt = await attempts.run("touch started", credentials={"db": {}}, leases=leases)
    finished = attempt.finished()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "LEASE_UNREADABLE")
    assert finished.evidence.tree_empty
    assert attempt.notices()[-1].text.startswith("Failed: the ")
    assert list(tmp_path.rglob("started")) == []


async def test_more_secrets_than_can_be_masked_at_once(attempts_anyhow: Attempts, identity: SealedIdentity) -> None:
    def leases(assignment: dispatch.Assignment) -> None:
        for name in "abc":
            identity.lease(assignment, f"credential.{name}", name.encode() * (64 << 10))

    credentials: dict[str, object] = {name: {} for name in "abc"}
    attempt = await attempts_anyhow.run("touch started", credentials=credentials, leases=leases)
    finished = attempt.finished()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "CREDENTIAL_UNSUITABLE")
    assert "196,608 bytes" in attempt.notices()[-1].text


async def test_a_credential_that_does_not_fit(attempts_anyhow: Attempts, identity: SealedIdentity) -> None:
    attempt = await attempts_anyhow.run(
        credentials={"db": {"kinds": ["token"]}}, leases=lambda a: identity.lease(a, "credential.db", SECRET)
    )
    assert attempt.finished().failure_reason == "CREDENTIAL_UNSUITABLE"
    assert "the reference db: the credential the-credential.db is of the kind username-password" in attempt.text()
    assert SECRET not in b"".join(attempt.raw_frames())


async def test_an_unknown_account_is_refused(attempts: Attempts, identity: SealedIdentity) -> None:
    attempt = await attempts.run(
        "true", leases=lambda a: identity.lease(a, "run_as", SECRET, username="nobody-has-this-name", credential="ops")
    )
    finished = attempt.finished()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "RUN_AS_REFUSED")
    text = "Failed: the account nobody-has-this-name (credential ops) is not known on this machine"
    assert attempt.notices()[-1].text == text
    assert finished.evidence.tree_empty


async def test_an_account_of_a_domain_is_no_local_one(attempts_anyhow: Attempts, identity: SealedIdentity) -> None:
    attempt = await attempts_anyhow.run(
        "true", leases=lambda a: identity.lease(a, "run_as", SECRET, username=own(), domain="CORP")
    )
    assert attempt.finished().failure_reason == "RUN_AS_REFUSED"
    assert f"the account CORP\\{own()} (credential the-run_as) is not known" in attempt.text()


async def test_the_supervisor_s_memory_is_closed_and_its_log_masked(
    attempts_anyhow: Attempts, identity: SealedIdentity
) -> None:
    attempt = await attempts_anyhow.start(
        "echo begun; sleep 60", credentials={"db": {}}, leases=lambda a: identity.lease(a, "credential.db", SECRET)
    )
    await attempt.until_output(b"begun")
    found = SupervisorIdentity.read(attempt.directory)
    assert found is not None
    # Of a process that may not be dumped, and so not be attached to either, these files are root's.
    assert Path(f"/proc/{found.pid}/environ").stat().st_uid == 0
    assert processes.identity(found.pid) == own()
    with attempt.handle() as handle:
        handle.kill()
        await handle.wait_gone()
    assert SECRET.decode() not in attempt.faults()


async def test_a_supervisor_that_is_killed_with_open_leases_has_started_nothing(
    attempts_anyhow: Attempts, identity: SealedIdentity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = FaultPoints(tmp_path / "faults")
    faults.arm("supervisor.opened")
    monkeypatch.setenv("SIS_FAULTS", faults.environment["SIS_FAULTS"])
    attempt = attempts_anyhow.prepare(
        "touch started", credentials={"db": {}}, leases=lambda a: identity.lease(a, "credential.db", SECRET)
    )
    with pytest.raises(SpawnFailed) as caught:
        await attempts_anyhow.spawn(attempt)
    assert caught.value.may_have_started
    finish_lost(attempt.directory, identity.directory)
    assert attempt.finished().failure_reason == "SUPERVISOR_LOST"
    assert list(tmp_path.rglob("started")) == []


def test_a_fault_of_the_supervisor_is_logged_without_secrets() -> None:
    code = """
import sys
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision.supervisor_process import MaskedLog
secret = sys.stdin.buffer.read()
sys.stderr = MaskedLog(Masker([secret]))
print("said", secret.decode(), file=sys.stderr)
raise ValueError(f"a fault with {secret!r} in it")
"""
    ended = subprocess.run([sys.executable, "-c", code], input=SECRET, capture_output=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"said ***\nTraceback")
    assert b"a fault with b'***' in it" in ended.stderr
    assert SECRET not in ended.stderr


def own() -> str:
    return processes.account_name(os.geteuid())
