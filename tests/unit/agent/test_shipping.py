"""What is sent, in which order, and how much of it at a time."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.sis_agent.agent import shipping as module
from services.sis_agent.agent.attempts import AttemptKey
from services.sis_agent.agent.recording.spool import SpoolWriter
from services.sis_agent.agent.shipping import Shipping
from sis.agent.v1.agent_service_pb2 import AgentReport
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2, job_pb2

ONE, TWO = AttemptKey(1, 1), AttemptKey(2, 1)


@pytest.fixture
def spools(tmp_path: Path) -> dict[AttemptKey, SpoolWriter]:
    return {key: SpoolWriter.open(tmp_path / str(key)) for key in (ONE, TWO)}


@pytest.fixture
def shipping(tmp_path: Path, spools: dict[AttemptKey, SpoolWriter]) -> Shipping:
    shipping = Shipping(ThreadPoolExecutor(1))
    for key in spools:
        shipping.open(key, tmp_path / str(key))
    shipping.begin(10_000)
    for key in spools:
        shipping.resume(key, 0)
    return shipping


def fill(spool: SpoolWriter, frames: int, size: int = 1_000) -> None:
    for _ in range(frames):
        spool.append_chunk(job_pb2.CHANNEL_STDOUT, bytes(size))


async def take(shipping: Shipping) -> list[tuple[AttemptKey, list[int]]]:
    """The attempts and the sequences of what is to be sent next."""
    reports, _ = await shipping.take()
    return [
        (AttemptKey.of(report.attempt), [frame_pb2.Frame.FromString(raw).sequence for raw in report.frames.frames])
        for report in reports
    ]


async def test_nothing_is_said_of_an_empty_spool(shipping: Shipping) -> None:
    assert await take(shipping) == []
    await shipping.wait(0.01)


async def test_answers_go_before_frames(shipping: Shipping, spools: dict[AttemptKey, SpoolWriter]) -> None:
    fill(spools[ONE], 1)
    shipping.look(ONE)
    shipping.answer(AgentReport(attempt=TWO.to_proto(), accepted=dispatch.Accepted()))
    assert await take(shipping) == [(TWO, []), (ONE, [1])]


async def test_what_is_under_way_stays_below_the_limit_and_attempts_take_turns(
    shipping: Shipping, spools: dict[AttemptKey, SpoolWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LANE_BYTES", 2_100)
    for key, spool in spools.items():
        fill(spool, 20)
        shipping.look(key)
    assert await take(shipping) == [(ONE, [1, 2]), (TWO, [1, 2])]
    assert await take(shipping) == [(ONE, [3, 4]), (TWO, [3, 4])]
    assert await take(shipping) == [(ONE, [5])]
    assert await take(shipping) == []
    shipping.settle(ONE, 2)
    await shipping.wait(1)
    assert await take(shipping) == [(TWO, [5, 6])]
    shipping.settle(TWO, 6)
    await shipping.wait(1)
    assert await take(shipping) == [(ONE, [6, 7]), (TWO, [7, 8])]


async def test_a_frame_beyond_the_limit_goes_alone(shipping: Shipping, spools: dict[AttemptKey, SpoolWriter]) -> None:
    fill(spools[ONE], 1, 500)
    fill(spools[ONE], 2, 20_000)
    shipping.look(ONE)
    assert await take(shipping) == [(ONE, [1])]
    assert await take(shipping) == []
    for sequence in (1, 2):
        shipping.settle(ONE, sequence)
        await shipping.wait(1)
        assert await take(shipping) == [(ONE, [sequence + 1])]
        assert await take(shipping) == []


@pytest.mark.parametrize("window", [4 << 20, 1 << 20])
@pytest.mark.parametrize("size", [260 << 10, 900 << 10, 1_100 << 10, 2_000 << 10])
async def test_a_large_frame_is_not_overtaken_for_ever(
    shipping: Shipping, spools: dict[AttemptKey, SpoolWriter], window: int, size: int
) -> None:
    """The end of a job with long outputs came only after all that a busy neighbour had to say."""
    shipping.begin(window)
    for key in spools:
        shipping.resume(key, 0)
    total = 256
    fill(spools[ONE], total, 64 << 10)
    shipping.look(ONE)
    under_way: deque[tuple[AttemptKey, int]] = deque()

    async def send() -> list[AttemptKey]:
        """Send what the window has room for; returns whose it was."""
        keys = []
        while reports := await take(shipping):
            under_way.extend((key, sequences[-1]) for key, sequences in reports)
            keys += [key for key, _ in reports]
        return keys

    await send()
    outputs = [job_pb2.OutputParameter(name="long", value="x" * size)]
    last = frame_pb2.Finished(outcome=frame_pb2.OUTCOME_SUCCEEDED, outputs=outputs)
    spools[TWO].append_notice(frame_pb2.SEVERITY_INFO, "over", last)
    shipping.look(TWO)
    # One answer after the other, as over a slow link: as long as something is sent, the window is never empty.
    sent: list[AttemptKey] = []
    while TWO not in sent:
        shipping.settle(*under_way.popleft())
        sent += await send()
    assert sent.index(TWO) <= 1, "before it goes what had its turn, and no more"
    if size < window:
        assert shipping.bytes_under_way <= window
        assert len(under_way) > 1 or size > window // 2, "the window need not be empty for it"
    else:
        assert len(under_way) == 1, "it goes alone"
    while under_way:
        shipping.settle(*under_way.popleft())
        await send()
    assert [shipping.acknowledged(key) for key in spools] == [total, 1], "its neighbour goes on"


async def test_a_refusal_waits_for_all_answers_before_it_sends_again(
    shipping: Shipping, spools: dict[AttemptKey, SpoolWriter]
) -> None:
    for _ in range(3):
        fill(spools[ONE], 2)
        shipping.look(ONE)
        await take(shipping)
    shipping.refuse(ONE, 1, 0)
    fill(spools[ONE], 1)
    shipping.look(ONE)
    assert await take(shipping) == []
    shipping.refuse(ONE, 1, 0)
    assert await take(shipping) == []
    shipping.refuse(ONE, 1, 0)
    assert await take(shipping) == [(ONE, [2, 3, 4, 5, 6, 7])]
    shipping.settle(ONE, 7)
    assert (shipping.acknowledged(ONE), shipping.silence()) == (7, 0)


async def test_a_refusal_that_names_a_time_is_heeded(shipping: Shipping, spools: dict[AttemptKey, SpoolWriter]) -> None:
    fill(spools[ONE], 1)
    shipping.look(ONE)
    await take(shipping)
    shipping.refuse(ONE, None, 0.05)
    shipping.look(ONE)
    assert await take(shipping) == []
    await shipping.wait(5)
    while not (found := await take(shipping)):
        await shipping.wait(5)
    assert found == [(ONE, [1])]


async def test_a_new_stream_forgets_what_was_under_way(
    shipping: Shipping, spools: dict[AttemptKey, SpoolWriter]
) -> None:
    fill(spools[ONE], 10)
    shipping.look(ONE)
    await take(shipping)
    shipping.answer(AgentReport(attempt=TWO.to_proto(), accepted=dispatch.Accepted()))
    shipping.begin(3_100)
    assert await take(shipping) == []
    assert not shipping.reports(ONE)
    shipping.resume(ONE, 4)
    assert await take(shipping) == [(ONE, [5, 6, 7])]
    shipping.settle(ONE, 3)  # the answer to something older
    assert shipping.acknowledged(ONE) == 4


async def test_a_server_that_has_more_than_the_spool_is_noticed(
    shipping: Shipping, spools: dict[AttemptKey, SpoolWriter]
) -> None:
    fill(spools[ONE], 2)
    shipping.begin(1_000)
    shipping.resume(ONE, 3)
    shipping.resume(TWO, 0)
    assert await shipping.take() == ([], [ONE])


FINISHED = frame_pb2.Finished(outcome=frame_pb2.OUTCOME_FAILED)


def damage(spools: dict[AttemptKey, SpoolWriter], path: Path, frame: int) -> SpoolWriter:
    """Have the spool of the first attempt, of six frames and more, damaged in this one, and open it again: it is cut
    there, and says so."""
    spools[ONE].close()
    content = bytearray(path.read_bytes())
    content[len(content) // 7 * frame - 10] ^= 1
    path.write_bytes(content)
    writer = SpoolWriter.open(path)
    assert (writer.sequence, writer.damaged) == (frame, True)
    return writer


@pytest.mark.parametrize(("frame", "rest", "behind"), [(6, [7], []), (5, [], [ONE]), (4, [], [ONE]), (1, [], [ONE])])
async def test_damage_in_what_was_sent_before_keeps_no_attempt_in_hand_for_ever(
    shipping: Shipping,
    spools: dict[AttemptKey, SpoolWriter],
    tmp_path: Path,
    frame: int,
    rest: list[int],
    behind: list[AttemptKey],
) -> None:
    """Its end is sent, or it is noticed that the server has more than the spool."""
    fill(spools[ONE], 6)
    shipping.look(ONE)
    assert await take(shipping) == [(ONE, [1, 2, 3, 4, 5, 6])]
    shipping.settle(ONE, 6)
    assert await take(shipping) == []
    fill(spools[ONE], 1)  # which nobody looks at before it is gone
    with damage(spools, tmp_path / str(ONE), frame) as writer:
        shipping.look(ONE)
        assert await shipping.take() == ([], []), "its writer may still be at it"
        writer.append_notice(frame_pb2.SEVERITY_ERROR, "over", FINISHED)
    shipping.look(ONE)
    reports, found = await shipping.take()
    frames = [frame_pb2.Frame.FromString(raw).sequence for report in reports for raw in report.frames.frames]
    assert (frames, found) == (rest, behind)
    if rest:
        shipping.settle(ONE, rest[-1])
        shipping.look(ONE)
        assert await shipping.take() == ([], [])


async def test_what_the_server_has_not_taken_of_a_damaged_spool_is_sent_as_it_is_now(
    shipping: Shipping, spools: dict[AttemptKey, SpoolWriter], tmp_path: Path
) -> None:
    fill(spools[ONE], 6)
    shipping.look(ONE)
    await take(shipping)
    fill(spools[ONE], 1)
    with damage(spools, tmp_path / str(ONE), 5) as writer:
        writer.append_notice(frame_pb2.SEVERITY_ERROR, "over", FINISHED)
    shipping.begin(10_000)
    shipping.resume(ONE, 4)
    assert await take(shipping) == [(ONE, [5, 6])]
    assert await shipping.take() == ([], [])


async def test_a_server_that_has_something_else_in_the_place_of_the_end_is_noticed(
    shipping: Shipping, spools: dict[AttemptKey, SpoolWriter]
) -> None:
    fill(spools[ONE], 2)
    spools[ONE].append_notice(frame_pb2.SEVERITY_ERROR, "over", FINISHED)
    shipping.begin(1_000)
    shipping.resume(ONE, 3)
    assert await shipping.take() == ([], [ONE])


async def test_a_spool_that_is_closed_is_sent_no_longer_and_frees_its_room(
    shipping: Shipping, spools: dict[AttemptKey, SpoolWriter]
) -> None:
    fill(spools[ONE], 20)
    shipping.look(ONE)
    assert len((await take(shipping))[0][1]) >= 9
    fill(spools[TWO], 1)
    shipping.look(TWO)
    assert await take(shipping) in ([], [(TWO, [1])])
    shipping.close(ONE)
    shipping.close(ONE)
    shipping.look(ONE)
    shipping.settle(ONE, 5)
    shipping.refuse(ONE, 5, 1)
    shipping.look(TWO)
    fill(spools[TWO], 1)
    assert (await take(shipping))[0][0] == TWO
