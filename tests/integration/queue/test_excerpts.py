"""Parts of a log, what is found in it, and a monitor of its end, against the whole."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.queue import excerpts
from services.queue.convert import excerpts as convert
from services.queue.errors import JobNotFound
from services.queue.excerpts import Findings, Place
from services.queue.frames import Channel
from services.queue.log_search import Match
from services.runtime.fields import to_timestamp
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import SECONDS, Api, fields, refusal
from tests.integration.queue.rig import Rig, of
from tests.integration.queue.test_api_logs import items
from tests.integration.queue.test_api_logs import until as until_told
from tests.support.frames import Spool
from tests.unit.queue import test_log_search as naive

OUT, ERR = job_pb2.CHANNEL_STDOUT, job_pb2.CHANNEL_STDERR
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SIZES = [0, 1, 300, 10, 10, 2_000, 5, 0, 64, 1, 1, 40]
TIMES = [0, 0, 1, 2, 2, 2, 5, 6, 8, 8, 9, 10]
"""When each frame was cut, in seconds after noon."""


async def written(rig: Rig) -> tuple[int, list[bytes]]:
    """A job that runs, with frames of these sizes and times: its id, and they themselves."""
    await rig.hello()
    await rig.create(agent="a")
    (key,) = await rig.claim()
    await rig.accept(key)
    times = iter(TIMES)
    spool = Spool(lambda: NOON + next(times) * SECOND)
    frames = [spool.output(b"%d" % n * size, ERR if n % 3 == 2 else OUT) for n, size in enumerate(SIZES)]
    for batch in (frames[:5], frames[5:]):
        await rig.report(key, of(*batch))
    return key.job_id, spool.bodies


async def read(api: Api, job_id: int, **fields: Any) -> pb.ReadLogResponse:
    response: pb.ReadLogResponse = await api(api.jobs.ReadLog, pb.ReadLogRequest(job_id=job_id, **fields))
    return response


def bodies(response: pb.ReadLogResponse) -> list[bytes]:
    return [frame.SerializeToString() for frame in response.frames.frames]


def until(frames: Sequence[bytes], max_bytes: int) -> list[bytes]:
    """The first ones, until there are so many bytes; at least one."""
    before = itertools.accumulate((len(frame) for frame in frames), initial=0)
    return [frame for frame, size in zip(frames, before, strict=False) if size < max_bytes]


BYTES = [1, 20, 50, 400, 2_300, 100_000]


@pytest.mark.parametrize("max_bytes", BYTES)
async def test_frames_from_each_one_on(api: Api, served: Rig, max_bytes: int) -> None:
    job_id, frames = await written(served)
    for first in range(1, len(frames) + 3):
        response = await read(api, job_id, first_sequence=first, max_bytes=max_bytes)
        assert bodies(response) == until(frames[first - 1 :], max_bytes), first
        assert response.total_frames == len(frames)
        assert response.frames.attempt == (1 if first <= len(frames) else 0)


@pytest.mark.parametrize("max_bytes", BYTES)
async def test_frames_before_each_one(api: Api, served: Rig, max_bytes: int) -> None:
    job_id, frames = await written(served)
    for before in range(1, len(frames) + 3):
        response = await read(api, job_id, before_sequence=before, max_bytes=max_bytes)
        assert bodies(response) == until(frames[: before - 1][::-1], max_bytes)[::-1], before
        assert response.total_frames == len(frames)


@pytest.mark.parametrize("max_bytes", [1, 400])
async def test_frames_from_each_time_on(api: Api, served: Rig, max_bytes: int) -> None:
    job_id, frames = await written(served)
    for moment in range(-1, TIMES[-1] + 2):
        for shift in (-timedelta(microseconds=1), timedelta(0), timedelta(microseconds=1)):
            asked = NOON + moment * SECOND + shift
            first = sum(NOON + at * SECOND < asked for at in TIMES)
            response = await read(api, job_id, time=to_timestamp(asked), max_bytes=max_bytes)
            assert bodies(response) == until(frames[first:], max_bytes), asked


async def test_without_a_place_it_begins_at_the_beginning(api: Api, served: Rig) -> None:
    job_id, frames = await written(served)
    assert bodies(await read(api, job_id)) == frames
    largest = 2**63 - 1
    assert bodies(await read(api, job_id, before_sequence=largest)) == frames
    assert bodies(await read(api, job_id, first_sequence=largest)) == []


async def test_so_many_bytes_unless_asked_for_others(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.report(key, of(*(spool.output(b"x" * 60_000) for _ in range(30))))
    found = {}
    for asked in (0, 1, 1 << 20):
        job_id, place, max_bytes = convert.read_log(pb.ReadLogRequest(job_id=key.job_id, max_bytes=asked))
        async with rig.database.begin() as connection:
            found[asked] = len((await excerpts.read(connection, job_id, place, max_bytes)).rows)
    assert found == {0: 1 + 5, 1: 1, 1 << 20: 1 + 18}


async def test_of_small_frames_there_are_no_more_than_so_many(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpts, "ROWS", 3)
    job_id, frames = await written(rig)
    async with rig.database.begin() as connection:
        forward = await excerpts.read(connection, job_id, Place(first=2), 10**6)
        backward = await excerpts.read(connection, job_id, Place(before=len(frames)), 10**6)
    assert [row.body for row in forward.rows] == frames[1:4]
    assert [row.body for row in backward.rows] == frames[-4:-1]


async def test_a_job_without_a_log(api: Api, served: Rig) -> None:
    waiting = await served.create(deferred=True)
    await served.hello()
    claimed = await served.create(agent="a")
    assert [key.job_id for key in await served.claim()] == [claimed]
    for job_id in (waiting, claimed):
        for place in ({}, {"first_sequence": 5}, {"before_sequence": 5}, {"time": to_timestamp(NOON)}):
            assert await read(api, job_id, **place) == pb.ReadLogResponse()
        found = await api(api.jobs.SearchLog, pb.SearchLogRequest(job_id=job_id, text="x", first_sequence=3))
        assert found == pb.SearchLogResponse()


async def test_it_is_the_log_of_the_current_attempt(api: Api, served: Rig) -> None:
    await served.hello()
    job_id = await served.create()
    (first,) = await served.claim()
    await served.decline(first)
    (key,) = await served.claim()
    spool = Spool()
    await served.accept(key)
    await served.report(key, of(spool.process_started(1), spool.output(b"found here\n")))
    response = await read(api, job_id)
    assert (response.frames.attempt, bodies(response)) == (2, spool.bodies)
    found = await api(api.jobs.SearchLog, pb.SearchLogRequest(job_id=job_id, text="found"))
    assert [match.sequence for match in found.matches] == [2]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ReadLogRequest(first_sequence=0), "first_sequence"),
        (pb.ReadLogRequest(first_sequence=-1), "first_sequence"),
        (pb.ReadLogRequest(before_sequence=0), "before_sequence"),
        (pb.ReadLogRequest(before_sequence=-(2**63)), "before_sequence"),
        (pb.ReadLogRequest(time=to_timestamp(datetime(1969, 1, 1, tzinfo=UTC))), "time"),
        (pb.ReadLogRequest(max_bytes=-1), "max_bytes"),
        (pb.ReadLogRequest(max_bytes=(1 << 20) + 1), "max_bytes"),
        (pb.SearchLogRequest(), "text"),
        (pb.SearchLogRequest(text=" "), "text"),
        (pb.SearchLogRequest(text="x" * 201), "text"),
        (pb.SearchLogRequest(text="a\nb"), "text"),
        (pb.SearchLogRequest(text="x", first_sequence=-1), "first_sequence"),
        (pb.MonitorJobRequest(tail_bytes=-1), "tail_bytes"),
        (pb.MonitorJobRequest(tail_bytes=(1 << 20) + 1), "tail_bytes"),
    ],
    ids=lambda value: str(value).strip().replace("\n", " ")[:40],
)
async def test_a_wrong_field_is_named(api: Api, served: Rig, request_: Any, field: str) -> None:
    request_.job_id = await served.create()
    method = getattr(api.jobs, type(request_).__name__.removesuffix("Request"))
    error = await refusal(api(method, request_))
    assert (error.reason, fields(error)) == ("INVALID_FIELD", [field])


async def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    error = await refusal(api(api.jobs.ReadLog, pb.ReadLogRequest(job_id=1, first_sequence=-1, max_bytes=-1)))
    assert fields(error) == ["first_sequence", "max_bytes"]
    error = await refusal(api(api.jobs.SearchLog, pb.SearchLogRequest(job_id=1, first_sequence=-1)))
    assert fields(error) == ["text", "first_sequence"]


async def test_a_job_that_is_not_there_has_no_log(api: Api, served: Rig) -> None:
    deleted = await served.create()
    await served.delete(deleted)
    for job_id in (deleted, 2**40):
        for request in (
            pb.ReadLogRequest(job_id=job_id),
            pb.SearchLogRequest(job_id=job_id, text="x"),
            pb.MonitorJobRequest(job_id=job_id, tail_bytes=1),
        ):
            method = getattr(api.jobs, type(request).__name__.removesuffix("Request"))
            assert (await refusal(api(method, request))).reason == "JOB_NOT_FOUND"


# Searching.


async def logged(rig: Rig, frames: Sequence[tuple[Any, bytes]]) -> int:
    """A job whose log has these frames of output, and nothing else."""
    await rig.hello()
    await rig.create()
    (key,) = await rig.claim()
    await rig.accept(key)
    spool = Spool()
    cut = [spool.output(data, channel) for channel, data in frames]
    for start in range(0, len(cut), 100):
        await rig.report(key, of(*cut[start : start + 100]))
    return key.job_id


async def searched(rig: Rig, job_id: int, wanted: str, first: int = 1) -> list[Findings]:
    """All parts of a search."""
    parts = []
    while first:
        parts.append(await excerpts.search(rig.database, job_id, wanted, first, convert.feed))
        assert not parts[-1].next or parts[-1].next > first
        first = parts[-1].next
    return parts


def matches(parts: Sequence[Findings]) -> list[Match]:
    return [match for part in parts for match in part.matches]


def places(parts: Sequence[Findings]) -> list[tuple[int, str]]:
    return [(match.sequence, match.line) for match in matches(parts)]


async def test_a_search_over_the_api(api: Api, served: Rig) -> None:
    job_id = await logged(served, [(OUT, b"Disk fu"), (ERR, b"disk \xe6\xbc"), (OUT, b"ll\nmore"), (ERR, b"\xa2")])
    request = pb.SearchLogRequest(job_id=job_id, text="disk FULL")
    found: pb.SearchLogResponse = await api(api.jobs.SearchLog, request)
    (match,) = found.matches
    assert (match.sequence, match.channel, match.line) == (3, OUT, "Disk full")
    (frame,) = (await read(api, job_id, first_sequence=3, max_bytes=1)).frames.frames
    assert match.time.ToMicroseconds() == frame.time.ToMicroseconds()
    assert (found.next_sequence, found.total_frames) == (0, 4)
    found = await api(api.jobs.SearchLog, pb.SearchLogRequest(job_id=job_id, text="漢"))
    assert [(each.sequence, each.channel, each.line) for each in found.matches] == [(4, ERR, "disk 漢")]


async def test_every_channel_is_searched(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.report(
        key,
        of(
            spool.notice("word", frame_pb2.SEVERITY_DEBUG),
            spool.notice("word", frame_pb2.SEVERITY_WARNING),
            spool.output(b"word", ERR),
            spool.output(b"word", OUT),
        ),
    )
    (part,) = await searched(rig, key.job_id, "word")
    channels = [Channel.DEBUG, Channel.SYSTEM, Channel.STDERR, Channel.STDOUT]
    assert [(match.sequence, match.channel) for match in part.matches] == list(enumerate(channels, 2))
    assert places(await searched(rig, key.job_id, "PROCESSING")) == [(1, "Payload processing started")]


async def test_more_than_enough_matches_come_in_parts(rig: Rig) -> None:
    job_id = await logged(rig, [(OUT, b"match %d\n" % n) for n in range(250)])
    parts = await searched(rig, job_id, "match")
    assert [len(part.matches) for part in parts] == [100, 100, 50]
    assert [part.next for part in parts] == [101, 201, 0]
    assert places(parts) == [(n + 1, f"match {n}") for n in range(250)]


async def test_a_part_ends_with_a_frame_however_many_matches_that_has(rig: Rig) -> None:
    """Also where a search goes on behind such frames: what is read again of them is not given again."""
    job_id = await logged(rig, [(OUT, b"a\n" * 20_000), (OUT, b"a\n" * 3), (OUT, b"b\n"), (OUT, b"a")])
    parts = await searched(rig, job_id, "a")
    assert [len(part.matches) for part in parts] == [20_000, 4]
    assert places(parts[1:]) == [(2, "a")] * 3 + [(4, "a")]
    assert places(await searched(rig, job_id, "a", first=3)) == [(4, "a")]


async def test_a_part_ends_after_so_much_of_the_log(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpts, "ROWS", 5)
    monkeypatch.setattr(excerpts, "READS", 2)
    job_id = await logged(rig, [(OUT, b"%d\n" % n) for n in range(28)])
    parts = await searched(rig, job_id, "27")
    assert [part.next for part in parts] == [11, 21, 0]
    assert places(parts) == [(28, "27")]
    assert {part.total for part in parts} == {28}


@pytest.mark.parametrize("wanted", ["needle", "NEED", "e", "🎉"])
async def test_what_is_cut_between_two_parts_is_found_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    """A byte in each frame, a few frames in each part, another channel in between."""
    monkeypatch.setattr(excerpts, "READS", 1)
    data = "one needle 🎉\nno\r\nNEEDLES\x1b[1m🎉\n🎉".encode()
    frames = [(channel, bytes([byte])) for byte in data for channel in (OUT, ERR)]
    job_id = await logged(rig, frames)
    expected = naive.reference(wanted, _frames(frames))
    for rows in (1, 2, 3, 7, 50):
        monkeypatch.setattr(excerpts, "BYTES", rows * 30)
        parts = await searched(rig, job_id, wanted)
        assert len(parts) > 1
        found = matches(parts)
        assert [(m.sequence, m.channel) for m in found] == [(m.sequence, m.channel) for m in expected]
        for match, whole in zip(found, expected, strict=True):
            assert whole.line.startswith(match.line) and wanted.lower() in match.line.lower()


def _frames(frames: Sequence[tuple[Any, bytes]]) -> list[naive.Frame]:
    return [naive.Frame(Channel(channel), data) for channel, data in frames]


@pytest.mark.parametrize("seed", range(6))
async def test_a_search_from_any_frame_finds_what_ends_from_there_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    frames = [(dice.choice((OUT, ERR)), b"".join(dice.choices(naive.PIECES, k=dice.randint(0, 5)))) for _ in range(60)]
    job_id = await logged(rig, frames)
    monkeypatch.setattr(excerpts, "MATCHES", 3)
    monkeypatch.setattr(excerpts, "READS", 2)
    monkeypatch.setattr(excerpts, "BYTES", dice.choice((1, 200, 2_000)))
    for wanted in ("a", "ab", "É", "xx"):
        whole = naive.reference(wanted, _frames(frames))
        assert whole
        for first in (1, 2, 17, 43, 60, 61, 100):
            expected = [(m.sequence, m.channel) for m in whole if m.sequence >= first]
            found = matches(await searched(rig, job_id, wanted, first))
            assert sorted((m.sequence, m.channel) for m in found) == sorted(expected), (wanted, first)


async def test_a_line_that_began_long_before_is_not_given_twice(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as is read again; and what occurs for the first time behind that is never lost."""
    monkeypatch.setattr(excerpts, "READS", 1)
    monkeypatch.setattr(excerpts, "BYTES", 1)
    job_id = await logged(rig, [(OUT, b"x. "), *[(OUT, b". ")] * 20, (OUT, b"x. "), *[(OUT, b". ")] * 5, (OUT, b"y\n")])
    assert [sequence for sequence, _ in places(await searched(rig, job_id, "x"))] == [1]
    assert [sequence for sequence, _ in places(await searched(rig, job_id, "y"))] == [28]
    monkeypatch.setattr(excerpts, "BEFORE_BYTES", 100)
    assert [sequence for sequence, _ in places(await searched(rig, job_id, "x"))] == [1, 22]
    assert [sequence for sequence, _ in places(await searched(rig, job_id, "y"))] == [28]


async def test_a_search_of_a_log_that_grows_goes_on_behind_its_last_frame(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.report(key, of(spool.output(b"word, "), spool.output(b"wo")))
    (part,) = await searched(rig, key.job_id, "word")
    assert places([part]) == [(2, "word, wo")] and part.total == 3
    assert places(await searched(rig, key.job_id, "word", part.total + 1)) == []
    await rig.report(key, of(spool.output(b"rd\nwor"), spool.output(b"d")))
    # That line was given already, the next one was not.
    assert places(await searched(rig, key.job_id, "word", part.total + 1)) == [(5, "word")]


async def test_a_search_in_a_job_that_is_deleted_is_refused(rig: Rig) -> None:
    job_id = await rig.create()
    await rig.delete(job_id)
    with pytest.raises(JobNotFound):
        await excerpts.search(rig.database, job_id, "x", 1, convert.feed)


# The end of a log, followed.


async def monitored(api: Api, job_id: int, **fields: Any) -> list[pb.MonitorJobResponse]:
    found: list[pb.MonitorJobResponse] = await api(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=job_id, **fields))
    return found


@pytest.fixture
async def ended(served: Rig) -> tuple[int, Spool]:
    """A job that has ended, with a log of a few hundred frames."""
    key, spool = await served.started()
    for n in range(0, 300, 100):
        await served.report(key, of(*(spool.output(b"line %d\n" % (n + m)) for m in range(100))))
    await served.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    return key.job_id, spool


@pytest.mark.parametrize("tail_bytes", [1, 100, 1_000, 5_000, 1 << 20])
async def test_a_monitor_of_the_end_has_the_last_frames_and_all_of_the_history(
    api: Api, served: Rig, ended: tuple[int, Spool], tail_bytes: int
) -> None:
    job_id, spool = ended
    told = await monitored(api, job_id, tail_bytes=tail_bytes)
    frames = [frame.SerializeToString() for response in told for frame in response.frames.frames]
    assert frames == until(spool.bodies[::-1], tail_bytes)[::-1]
    events = [response.history.event for response in told if response.HasField("history")]
    assert events == await served.events(job_id)
    assert told[0].job.status == job_pb2.JOB_STATUS_SUCCEEDED
    if tail_bytes == 1 << 20:
        assert items(told) == items(await monitored(api, job_id))


async def test_what_is_before_the_end_can_be_read(api: Api, ended: tuple[int, Spool]) -> None:
    job_id, spool = ended
    told = await monitored(api, job_id, tail_bytes=1_000)
    frames = [frame for response in told for frame in response.frames.frames]
    while frames[0].sequence > 1:
        before = await read(api, job_id, before_sequence=frames[0].sequence, max_bytes=2_000)
        frames[:0] = before.frames.frames
    assert [frame.SerializeToString() for frame in frames] == spool.bodies


async def test_a_monitor_of_the_end_is_resumed_without_a_gap(api: Api, ended: tuple[int, Spool]) -> None:
    job_id, _ = ended
    whole = await monitored(api, job_id, tail_bytes=500)
    for at, response in enumerate(whole):
        # The token counts, not how much was asked for.
        rest = await monitored(api, job_id, resume_token=response.resume_token, tail_bytes=1)
        assert items(whole[: at + 1]) + items(rest) == items(whole)


async def test_a_monitor_of_the_end_goes_on_live(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    await served.report(key, of(*(spool.output(b"%d" % n) for n in range(50))))
    stream = api.stream(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=key.job_id, tail_bytes=1))
    sequences: list[int] = []
    async with asyncio.timeout(SECONDS):
        async for response in stream:
            sequences += [frame.sequence for frame in response.frames.frames]
            if sequences == [51]:
                await served.report(key, of(spool.output(b"more"), spool.payload_ended(0)))
            elif sequences == [51, 52, 53]:
                await served.report(key, spool.finished("SUCCEEDED"))
    assert sequences == [51, 52, 53, 54]


async def test_a_monitor_of_the_end_of_what_has_no_log_yet(api: Api, served: Rig) -> None:
    await served.hello()
    job_id = await served.create()
    stream = api.stream(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=job_id, tail_bytes=1))
    told = await until_told(stream, "CREATE")
    (key,) = await served.claim()
    await served.accept(key)
    spool = Spool()
    await served.report(key, of(spool.process_started(1), spool.payload_ended(0), spool.finished("SUCCEEDED")))
    async with asyncio.timeout(SECONDS):
        told += [response async for response in stream]
    assert [item for item in items(told) if item[0] == "frame"] == [("frame", 1, n) for n in (1, 2, 3)]
