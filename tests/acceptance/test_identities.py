"""Agents come by a pairing code, go by a revocation, and cannot be copied."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from sis.agent.v1 import agent_admin_service_pb2 as admin
from sis.client import ApiError, Client
from tests.acceptance.test_leases import ended, output, start_plain
from tests.support.enrolled import EnrolledAgent, enrolled_agent, far_credentials, far_hub, pairing_code
from tests.support.numbered_job import until
from tests.support.stack import Stack


def find(client: Client, name: str) -> admin.Agent | None:
    try:
        return client.agents.get(name)
    except ApiError as error:
        assert error.reason == "AGENT_NOT_FOUND"
        return None


def is_online(client: Client, name: str) -> bool:
    agent = find(client, name)
    return agent is not None and agent.online


def test_an_agent_enrols_by_its_code_and_takes_jobs(stack: Stack, tmp_path: Path) -> None:
    with stack.client() as client:
        code = pairing_code(stack, "new-1", "new")
        agent = EnrolledAgent(stack, tmp_path / "new-1", slots=2)
        done = agent.enrol(code)
        assert done.returncode == 0, done.stderr
        assert "new-1" in done.stdout
        # The code is used up; a second program that has copied it gets nothing.
        thief = EnrolledAgent(stack, tmp_path / "thief", slots=2)
        refused = thief.enrol(code)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ")
        assert not (thief.state / "identity" / "certificate.pem").exists()
        agent.start()
        try:
            until(lambda: is_online(client, "new-1"), "the new agent")
            job_id = start_plain(client, "echo here", "agent:new-1")
            ended(client, job_id)
            assert output(client, job_id) == b"here\n"
        finally:
            agent.close()


def test_a_code_that_is_none_is_refused_in_words(stack: Stack, tmp_path: Path) -> None:
    agent = EnrolledAgent(stack, tmp_path / "agent", slots=2)
    code = pairing_code(stack, "odd-1", "odd")
    identifier, secret, fingerprint = code.removeprefix("sis1-").split("-")
    other = secret.translate(str.maketrans("abc", "bca")) if set(secret) & set("abc") else f"a{secret[1:]}"
    for wrong, word in (
        ("nonsense", "pairing code"),
        (f"sis1-{identifier}-{other}-{fingerprint}", ""),
        (f"sis1-{identifier}-{secret}-{'a' * 32}", ""),
    ):
        done = agent.enrol(wrong)
        assert done.returncode != 0
        assert done.stderr.startswith("error: ")
        assert word in done.stderr
        assert secret not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_a_revoked_agent_is_cut_off_at_once_and_comes_back_only_by_a_new_code(stack: Stack, tmp_path: Path) -> None:
    with (
        stack.client() as client,
        enrolled_agent(stack, tmp_path / "bad-1", name="bad-1", group="bad") as agent,
    ):
        process = agent.start()
        until(lambda: is_online(client, "bad-1"), "the agent")
        assert stack.cli("agents", "revoke", "bad-1", "--reason", "stolen").returncode == 0
        until(lambda: not is_online(client, "bad-1"), "the end of its stream", seconds=10)
        until(lambda: "this agent is refused" in process.log, "its word of it")
        assert not is_online(client, "bad-1")
        shown = stack.cli("agents", "identities")
        assert "revoked by administrator" in shown.stdout
        # The new identity is noticed by the process that runs, which stands aside for the enrolment.
        again = agent.enrol(pairing_code(stack, "bad-1", "bad"))
        assert again.returncode == 0, again.stderr
        until(lambda: is_online(client, "bad-1"), "the agent with its new identity")


@pytest.mark.long
def test_a_certificate_is_renewed_over_the_stream_and_again_after_its_end(stack: Stack, tmp_path: Path) -> None:
    """With the real PKI, whose certificates live for ten seconds here."""

    def certified() -> tuple[str, float]:
        known = next(each for each in client.identities.all() if each.name == "short-1")
        return known.serial, known.not_after.ToNanoseconds() / 1e9

    life = {"SIS_CREDENTIALS_AGENT_CERTIFICATE_SECONDS": "10"}
    with (
        stack.client() as client,
        far_credentials(stack, tmp_path / "credentials", **life) as credentials,
        far_hub(stack, tmp_path / "hub", SIS_HUB_CREDENTIALS_ENDPOINT=credentials) as hub,
    ):
        agent = EnrolledAgent(stack, tmp_path / "short-1", slots=2)
        done = agent.enrol(pairing_code(stack, "short-1", "short"), hub.enrolment)
        assert done.returncode == 0, done.stderr
        first, _ = certified()
        process = agent.start()
        try:
            until(lambda: is_online(client, "short-1"), "the agent")
            connected = client.agents.get("short-1").connect_time
            until(lambda: certified()[0] != first, "another certificate")
            assert client.agents.get("short-1").connect_time == connected, "the stream was cut for it"
            process.kill()
            last, end = certified()
            until(lambda: time.time() > end + 1, "the end of its certificate")
            process.start()
            until(lambda: is_online(client, "short-1") and certified()[0] != last, "the agent that has rejoined")
            job_id = start_plain(client, "echo back", "agent:short-1")
            ended(client, job_id)
            assert output(client, job_id) == b"back\n"
        finally:
            agent.close()


@pytest.mark.long
def test_a_copy_of_an_agent_puts_both_into_quarantine(stack: Stack, tmp_path: Path) -> None:
    with (
        stack.client() as client,
        enrolled_agent(stack, tmp_path / "one", name="twin-1", group="twin") as agent,
    ):
        first = agent.start()
        until(lambda: is_online(client, "twin-1"), "the agent")
        shutil.copytree(agent.state, tmp_path / "copy", ignore=shutil.ignore_patterns("agent.lock"))
        copy = EnrolledAgent(stack, tmp_path / "copy", slots=4)
        copy.start()
        try:

            def quarantined() -> bool:
                found = find(client, "twin-1")
                return found is not None and found.HasField("quarantine_time")

            until(quarantined, "the quarantine", seconds=60)
            until(lambda: not is_online(client, "twin-1"), "that neither is heard", seconds=20)
            assert "quarantined" in stack.cli("agents", "show", "twin-1").stdout
        finally:
            copy.close()
        first.kill()
        done = agent.enrol(pairing_code(stack, "twin-1", "twin"))
        assert done.returncode == 0, done.stderr
        agent.start()
        until(lambda: is_online(client, "twin-1"), "the one that has enrolled again")
        assert not quarantined()
