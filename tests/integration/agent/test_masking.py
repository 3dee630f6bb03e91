"""Real payloads that say their secrets: no form of one is in the spool."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.secrecy.secret_forms import forms
from services.sis_agent.agent.supervision.lost import finish_lost
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2
from tests.support.attempts import PYTHON, UNTIL_GO, Attempt, Attempts, eventually, is_alive
from tests.support.files import contents
from tests.support.sealed import SSH_KEY, TOKEN, SealedIdentity
from tests.support.stopping import stop

SECRET = b"It's $ecret/1!"
KEY = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
CREDENTIALS = {"api": {"kinds": ["token"]}, "key": {"kinds": ["ssh-key"]}}
NAME_ITSELF = 'printf %s "$SIS_CREDENTIAL_API_TOKEN" > /proc/$$/comm'


def leases(identity: SealedIdentity, secret: bytes = SECRET, key: bytes = KEY) -> object:
    def put(assignment: dispatch.Assignment) -> None:
        identity.lease(assignment, "credential.api", secret, TOKEN)
        identity.lease(assignment, "credential.key", key, SSH_KEY, username="git", passphrase=b"for the private key")

    return put


def assert_clean(attempt: Attempt, *secrets: bytes) -> None:
    """Nothing that the supervisor has written into the attempt's directory holds a secret."""
    for secret in secrets:
        for path, content in contents(attempt.directory):
            assert not [form for form in forms(secret) if form in content], path


async def test_secrets_in_many_forms_are_masked(attempts: Attempts, identity: SealedIdentity) -> None:
    script = """
S=$SIS_CREDENTIAL_API_TOKEN
echo "plain $S"; printf %s "user:$S" | base64; printf %s "$S" | od -An -v -tx1 | tr -d ' \\n'; echo
echo "to stderr $S" >&2
printf %s "${S%????}"; sleep 0.1; echo "${S#??????????}"
while read -r line; do echo "> $line"; done < "$SIS_CREDENTIAL_KEY_PRIVATE_KEY_FILE"
base64 < "$SIS_CREDENTIAL_KEY_PRIVATE_KEY_FILE"
cat "$SIS_CREDENTIAL_KEY_PRIVATE_KEY_FILE"
echo "$SIS_CREDENTIAL_KEY_PASSPHRASE"
echo "12 at $S" > "$SIS_PROGRESS"
echo "answer=<$S>" >> "$SIS_OUTPUT"
sleep 1.2
echo "last ${S%????}"
exit 3
"""
    options = {"credentials": CREDENTIALS, "outputs": {"answer": True}, "leases": leases(identity)}
    attempt = await attempts.run(script, **options)
    lines = attempt.output().decode().splitlines()
    assert (lines[0], lines[2], lines[3]) == ("plain ***", "***", "***")
    assert lines[1].endswith("***") and len(lines[1]) <= 11
    assert set(lines[4:-1]) <= {"> ***", "***"}
    # Not whole, so shown.
    assert lines[-1] == f"last {SECRET[:-4].decode()}"
    assert attempt.output(job_pb2.CHANNEL_STDERR) == b"to stderr ***\n"
    finished = attempt.finished()
    assert (finished.failure_reason, finished.result_code) == ("EXIT_CODE", 3)
    assert "Progress: 12 % at ***" in attempt.text()
    assert_clean(attempt, SECRET, KEY)


async def test_output_parameters_are_masked(attempts_anyhow: Attempts, identity: SealedIdentity) -> None:
    script = 'S=$SIS_CREDENTIAL_API_TOKEN; printf "a=<%s>\\nb<<END\\nx\\n%s\\nEND\\n" "$S" "$S" >> "$SIS_OUTPUT"'
    outputs = {"a": True, "b": True}
    attempt = await attempts_anyhow.run(script, credentials=CREDENTIALS, outputs=outputs, leases=leases(identity))
    assert {each.name: each.value for each in attempt.finished().outputs} == {"a": "<***>", "b": "x\n***"}
    assert_clean(attempt, SECRET)


async def test_names_of_processes_are_masked(attempts: Attempts, identity: SealedIdentity) -> None:
    """Also where the kernel keeps 15 bytes of a longer one."""
    script = f"{NAME_ITSELF}; ({UNTIL_GO}) & wait"
    for secret in (SECRET, SECRET * 2):
        attempt = await attempts.start(script, credentials=CREDENTIALS, leases=leases(identity, secret))
        await attempt.until_started(3)
        attempt.go()
        await attempt.end()
        names = {process.name for process in attempt.finished().evidence.processes}
        assert "***" in names
        assert not [name for name in names if name.startswith(SECRET[:6].decode())]
        assert_clean(attempt, secret)


async def test_the_output_of_a_payload_that_writes_byte_by_byte_is_masked(
    attempts_anyhow: Attempts, identity: SealedIdentity
) -> None:
    script = """
import os, time
secret = os.environ["SIS_CREDENTIAL_API_TOKEN"].encode()
for number in range(40):
    for at in range(len(secret)):
        os.write(1, secret[at:at + 1])
        if number % 10 == 0:
            time.sleep(0.005)
    os.write(2, b"|")
    os.write(1, b"\\n")
"""
    attempt = await attempts_anyhow.run(script, command=PYTHON, credentials=CREDENTIALS, leases=leases(identity))
    assert attempt.output() == b"***\n" * 40
    assert attempt.output(job_pb2.CHANNEL_STDERR) == b"|" * 40
    assert_clean(attempt, SECRET)


async def test_much_output_with_secrets_on_any_boundary_is_masked(
    attempts_anyhow: Attempts, identity: SealedIdentity
) -> None:
    script = """
import os, sys
secret = os.environ["SIS_CREDENTIAL_API_TOKEN"].encode()
for number in range(4000):
    sys.stdout.buffer.write(b"x" * (number % 997) + secret + b"\\n")
"""
    attempt = await attempts_anyhow.run(script, command=PYTHON, credentials=CREDENTIALS, leases=leases(identity))
    assert attempt.output() == b"".join(b"x" * (number % 997) + b"***\n" for number in range(4000))
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED


async def until_asleep(payload: int) -> None:
    """Wait until a child of a payload has become its `sleep 60`."""

    def asleep() -> bool:
        for process in processes.descendants(processes.read_all(), [payload]):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"sleep\x0060\0":
                    return True
        return False

    await eventually(asleep)


async def lose(attempts: Attempts, identity: SealedIdentity, secret: bytes = SECRET) -> tuple[Attempt, Path]:
    """An attempt with a process that has named itself after its secret since anybody looked, without its supervisor;
    and its private directory."""
    script = f'trap "" TERM; echo "$SIS_OUTPUT"; echo ready; {UNTIL_GO}; {NAME_ITSELF}; sleep 60; true'
    attempt = await attempts.start(script, credentials=CREDENTIALS, leases=leases(identity, secret))
    await attempt.until_output(b"rea")  # the rest may be held back: some form may begin with it
    private = Path(attempt.output().split(b"\n")[0].decode()).parent
    assert private.is_dir()
    payload = (await attempt.until_started(2))[1].pid
    supervisor = SupervisorIdentity.read(attempt.directory)
    assert supervisor is not None
    with attempt.handle() as handle:
        assert stop(supervisor.pid)
        attempt.go()
        await until_asleep(payload)
        handle.kill()
        await handle.wait_gone()
    await eventually(lambda: not is_alive(supervisor.pid))
    return attempt, private


def rest(attempt: Attempt) -> list[job_pb2.Process]:
    return list(attempt.finished().evidence.processes)


async def test_what_is_found_of_a_lost_attempt_is_masked(attempts: Attempts, identity: SealedIdentity) -> None:
    attempt, private = await lose(attempts, identity)
    await asyncio.to_thread(finish_lost, attempt.directory, identity.directory)
    assert attempt.finished().failure_reason == "SUPERVISOR_LOST"
    assert not private.exists()
    assert_clean(attempt, SECRET, KEY)


async def test_processes_of_a_lost_attempt_have_no_names_where_its_secrets_are_unknown(
    attempts: Attempts, identity: SealedIdentity
) -> None:
    attempt, private = await lose(attempts, identity)
    seen = {
        process.process.pid for process in (notice.process_started for notice in attempt.notices("process_started"))
    }
    identity.key_file.unlink()
    await asyncio.to_thread(finish_lost, attempt.directory, identity.directory)
    found = [process for process in rest(attempt) if process.pid not in seen]
    assert found
    assert {process.name for process in found} == {"?"}
    assert not private.exists()
    assert_clean(attempt, SECRET, KEY)


async def test_without_leases_processes_of_a_lost_attempt_have_names(attempts: Attempts) -> None:
    attempt = await attempts.start("sleep 60; true")
    await until_asleep((await attempt.until_started(2))[1].pid)
    with attempt.handle() as handle:
        handle.kill()
        await handle.wait_gone()
    await asyncio.to_thread(finish_lost, attempt.directory)
    assert "sleep" in {process.name for process in rest(attempt)}
