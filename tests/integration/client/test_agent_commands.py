"""`sis agents pair`, `revoke` and `identities` against a scripted server, as in a remote suite and in a local stack."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from services.runtime import errors
from services.runtime.tls import TlsFiles
from sis.credentials.v1 import agent_identity_service_pb2 as pb
from tests.fakes.job_service import Script
from tests.integration.client.conftest import Sis

CODE = "sis1-abc-def"
PAIR = ("agents", "pair", "--name", "web-1", "--group", "dmz")


class AgentNotFound(errors.NotFound):
    reason = "AGENT_NOT_FOUND"


def test_a_code_goes_to_standard_output_alone(sis: Sis, script: Script) -> None:
    script.answer("PairAgent", pb.PairAgentResponse(code=CODE), pb.PairAgentResponse(code=CODE))
    ran = sis(*PAIR)
    assert (ran.code, ran.out) == (0, f"{CODE}\n")
    assert CODE not in ran.err
    assert "sis-agent enrol --hub HOST:PORT --code -" in ran.err
    assert script.asked("PairAgent") == [pb.PairAgentRequest(name="web-1", group="dmz")]
    ran = sis(*PAIR, "--json")
    assert (json.loads(ran.out)["code"], ran.err) == (CODE, "")


def test_a_local_stack_says_where_to_enrol(
    sis: Sis, script: Script, endpoint: str, queue_tls: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIS_QUEUE_ENDPOINT")
    found = {f"{name}_endpoint": endpoint for name in ("queue", "hub", "credentials")}
    files = {"ca": str(queue_tls.ca), "token": str(tmp_path / "token")}
    (tmp_path / "stack.json").write_text(json.dumps({**found, **files, "enrolment_endpoint": "127.0.0.1:7443"}))
    script.answer("PairAgent", pb.PairAgentResponse(code=CODE))
    assert "  sis-agent enrol --hub 127.0.0.1:7443 --code -\n" in sis(*PAIR, "--data", str(tmp_path)).err


def test_revoke(sis: Sis, script: Script) -> None:
    script.answer("RevokeAgent", AgentNotFound("name: no agent 'x' has ever enrolled"), pb.RevokeAgentResponse())
    ran = sis("agents", "revoke", "x", "web-1", "--reason", "stolen")
    assert ran.code == 1
    assert ran.out == "Agent web-1 is revoked; any jobs in its hands become AWOL\n"
    assert ran.err == "error: no agent 'x' has ever enrolled\n"
    assert script.asked("RevokeAgent")[1] == pb.RevokeAgentRequest(name="web-1", reason="stolen")


def test_identities(sis: Sis, script: Script) -> None:
    valid, expired, revoked = (pb.AgentIdentity(name=name, group="dmz", pairer="eve") for name in ("a", "b", "c"))
    valid.not_after.FromSeconds(int(time.time()) + 3_600)
    expired.not_after.FromSeconds(1_000_000_000)
    revoked.revoked, revoked.revoker, revoked.revoke_reason = True, "eve", "stolen"
    script.answer("ListAgentIdentities", pb.ListAgentIdentitiesResponse(identities=[valid, expired, revoked]))
    _, *rows = sis("agents", "identities").out.splitlines()
    states = ("valid", "expired", "revoked by eve: stolen")
    assert [state in row for state, row in zip(states, rows, strict=True)] == [True] * 3
