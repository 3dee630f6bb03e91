"""A hub that is killed while it does what no job has it do."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.integration.hub.conftest import Bench, HubProcess
from tests.integration.hub.test_enrolment import SECOND_HOLDER, refusal, rejoin, stub
from tests.support.fault_points import FaultPoints


@pytest.mark.parametrize(("point", "kept"), [("hub.quarantine.committing", False), ("hub.quarantine.committed", True)])
async def test_killed_around_the_commit_of_a_quarantine_it_is_there_or_proven_again(
    bench: Bench, tmp_path: Path, point: str, kept: bool
) -> None:
    tls = bench.where.authority.agent("g", "a1")
    agent = await bench.agent(tls=tls)
    offered = await agent.hello()
    faults = FaultPoints(tmp_path / "faults")
    bench.credentials.failures["RenewAgentCertificate"].append(SECOND_HOLDER)
    async with HubProcess.running({**bench.where.of_hub("hub-2"), **faults.environment}) as hub:
        client = await stub(bench, hub.endpoints)
        faults.arm(point)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.Rejoin(rejoin(tls), timeout=10)
        assert not faults.is_armed(point), "the hub was not killed there"
    asked = len(bench.credentials.renewals)
    bench.credentials.failures["RenewAgentCertificate"].append(SECOND_HOLDER)
    assert (await refusal((await stub(bench)).Rejoin(rejoin(tls), timeout=5))).reason == "AGENT_QUARANTINED"
    # Where the hubs know it, the credential service is not even asked.
    assert len(bench.credentials.renewals) - asked == (0 if kept else 1)
    again = await bench.agent(tls=tls)
    ended = await again.refused(offered)
    assert ended is not None and ended.reason == "AGENT_QUARANTINED"
