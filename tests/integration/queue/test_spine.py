"""One job through the operations, without processes: created, claimed, accepted, reported, sealed."""

from __future__ import annotations

from services.queue import logs
from services.queue.reports import Accepted
from services.queue.wakes import Wakes
from tests.integration.queue.rig import Rig, check, of
from tests.support.frames import Spool


async def test_a_job_from_creation_to_its_sealed_log(rig: Rig) -> None:
    number = await rig.create()
    await rig.hello()
    (key,) = await rig.claim()
    assert (key.job_id, key.number) == (number, 1)

    spool = Spool()
    frames = of(
        spool.process_started(100), spool.output(b"hello\n"), spool.payload_ended(0),
        spool.finished("SUCCEEDED", outputs={"answer": "42"}),
    )  # fmt: skip
    first = await rig.report(key, Accepted(), frames[:2])
    assert (first.acknowledged_sequence, first.sealed, first.error) == (2, False, None)
    rest = await rig.report(key, frames[1:])
    assert (rest.acknowledged_sequence, rest.sealed, rest.error) == (4, True, None)

    job, attempt = await rig.job(number), await rig.attempt(key)
    assert (job.status, job.outputs, job.stop_state, job.result_code) == ("SUCCEEDED", {"answer": "42"}, "CONFIRMED", 0)
    assert (attempt.verdict, bytes(attempt.digest), attempt.output_bytes) == ("COMPLETE", spool.digest, 6)
    assert job.target == "host of a"
    news = [item async for item in logs.monitor(rig.database, Wakes(), number, logs.Position())]
    assert len(news) >= 3
    assert await rig.events(number) == [
        "CREATE", "CLAIM", "ACCEPT", "FIRST_PROCESS", "PAYLOAD_ENDED", "FINISH_SUCCEEDED",
    ]  # fmt: skip
    await check(rig.database, [number])
