"""The spool: frames, their digest, torn ends, and disks that refuse."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.sis_agent.agent.recording.spool import (
    MAX_CHUNK_BYTES,
    NO_DIGEST,
    SpoolBusy,
    SpoolReader,
    SpoolSealed,
    SpoolWriter,
)
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

STDOUT = job_pb2.CHANNEL_STDOUT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def fill(path: Path, count: int = 3) -> None:
    with SpoolWriter.open(path) as spool:
        for number in range(count):
            spool.append_chunk(STDOUT, b"chunk %d" % number)


def read(path: Path) -> list[bytes]:
    with SpoolReader(path) as reader:
        return reader.read(0, 1 << 30)


def test_frames_are_numbered_and_read_back(path: Path) -> None:
    with SpoolWriter.open(path) as spool:
        spool.append_notice(pb.SEVERITY_INFO, "begun", pb.StopBegun(kind=pb.STOP_KIND_CANCEL, reason="why"))
        spool.append_chunk(STDOUT, b"\xff\0")
        spool.sync()
        assert (spool.sequence, spool.output_bytes) == (2, 2)
    first, second = (pb.Frame.FromString(raw) for raw in read(path))
    assert (first.sequence, first.notice.text, first.notice.stop_begun.reason) == (1, "begun", "why")
    assert (second.sequence, second.chunk.channel, second.chunk.data) == (2, STDOUT, b"\xff\0")
    assert first.time.seconds > 0


def test_the_digest_goes_on_with_the_next_writer(path: Path) -> None:
    fill(path)
    digest = NO_DIGEST
    for raw in read(path):
        digest = hashlib.sha256(digest + raw).digest()
    with SpoolWriter.open(path) as spool:
        assert (spool.sequence, spool.digest, spool.output_bytes) == (3, digest, 21)
        finished = pb.Finished(outcome=pb.OUTCOME_SUCCEEDED)
        spool.append_notice(pb.SEVERITY_INFO, "done", finished)
    assert pb.Frame.FromString(read(path)[-1]).notice.finished.digest == digest


def test_the_last_frame_seals_it(path: Path) -> None:
    with SpoolWriter.open(path) as spool:
        spool.append_notice(pb.SEVERITY_INFO, "done", pb.Finished(outcome=pb.OUTCOME_STOPPED))
        with pytest.raises(SpoolSealed):
            spool.append_chunk(STDOUT, b"more")
    with SpoolWriter.open(path) as spool:
        assert spool.finished is not None
        assert spool.finished.outcome == pb.OUTCOME_STOPPED
        with pytest.raises(SpoolSealed):
            spool.append_notice(pb.SEVERITY_INFO, "more")
    assert len(read(path)) == 1


def test_there_is_one_writer(path: Path) -> None:
    with SpoolWriter.open(path), pytest.raises(SpoolBusy):
        SpoolWriter.open(path)
    SpoolWriter.open(path).close()


def test_a_torn_end_is_cut_wherever_it_is_torn(path: Path) -> None:
    fill(path, 2)
    two = path.read_bytes()
    with SpoolWriter.open(path) as spool:
        digest = spool.digest
        spool.append_chunk(STDOUT, b"the last one")
    three = path.read_bytes()
    for size in range(len(two), len(three)):
        path.write_bytes(three[:size])
        assert len(read(path)) == 2
        with SpoolWriter.open(path) as spool:
            assert (spool.sequence, spool.digest) == (2, digest)
            assert path.read_bytes() == two
            spool.append_chunk(STDOUT, b"another")
        assert [pb.Frame.FromString(raw).chunk.data for raw in read(path)] == [b"chunk 0", b"chunk 1", b"another"]


def last_text(path: Path) -> str:
    return pb.Frame.FromString(read(path)[-1]).notice.text


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_spool_that_is_cut_at_any_byte_goes_on_behind_its_last_whole_frame(path: Path, frames: int) -> None:
    fill(path, frames)
    whole = path.read_bytes()
    raw = read(path)
    ends = list(itertools.accumulate(8 + len(each) for each in raw))
    for size in range(len(whole)):
        for zeros in (0, 1, 4096):
            path.write_bytes(whole[:size] + bytes(zeros))
            kept = sum(end <= size for end in ends)
            assert read(path) == raw[:kept]
            with SpoolWriter.open(path) as spool:
                assert (spool.sequence, spool.damaged) == (kept, False), (size, zeros)
            assert read(path) == raw[:kept]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.long), 7])
def test_a_spool_with_any_bit_flipped_keeps_what_is_before_it_and_says_so(path: Path, step: int) -> None:
    fill(path, 4)
    whole = path.read_bytes()
    raw = read(path)
    ends = list(itertools.accumulate(8 + len(each) for each in raw))
    for bit in range(0, len(whole) * 8, step):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        kept = sum(end <= bit // 8 for end in ends)
        with SpoolReader(path) as reader:
            assert reader.read(0, 1 << 20) == raw[:kept]
            # Of the last one, what is missing of it may still come.
            assert reader.stuck or kept == 3 or bit % 8 + (bit // 8 - (ends[kept - 1] if kept else 0)) * 8 < 32
        with SpoolWriter.open(path) as spool:
            if spool.damaged:
                assert spool.sequence == kept + 1
                assert "bytes of it, from here on, are lost" in last_text(path)
                finished = pb.Finished(outcome=pb.OUTCOME_FAILED)
                spool.append_notice(pb.SEVERITY_ERROR, "over", finished)
                assert finished.digest == b"", "nobody must call this log complete"
                path.with_name("spool.damaged").unlink()
            else:
                # A length that says more than there is, in the last frame: as one that was never finished.
                assert (kept, spool.sequence) == (3, 3)
        assert read(path)[:kept] == raw[:kept]


def test_damage_is_remembered_by_later_writers(path: Path) -> None:
    fill(path, 3)
    path.write_bytes(path.read_bytes().replace(b"chunk 1", b"chunk 7"))
    with SpoolWriter.open(path) as spool:
        assert (spool.sequence, spool.damaged) == (2, True)
    with SpoolWriter.open(path) as spool:
        assert (spool.sequence, spool.damaged) == (2, True)


@pytest.mark.parametrize("rubbish", [b"\xff" * 64, b"\1\0\0\0\0\0\0\0x", b"repeated", b"\xff" * (9 << 20)])
def test_rubbish_is_cut(path: Path, rubbish: bytes) -> None:
    fill(path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + (whole if rubbish == b"repeated" else rubbish))
    assert len(read(path)) == 1
    with SpoolWriter.open(path) as spool:
        assert (spool.sequence, spool.damaged) == (2, True)
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("zeros", [1, 64, 9 << 20])
def test_what_was_never_written_is_cut(path: Path, zeros: int) -> None:
    fill(path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(zeros))
    with SpoolWriter.open(path) as spool:
        assert (spool.sequence, spool.damaged) == (1, False)
    assert path.read_bytes() == whole


def test_a_write_that_fails_changes_nothing_and_can_be_repeated(path: Path, full_disk: int) -> None:
    fill(path, 1)
    with SpoolWriter.open(path) as spool:
        descriptor, before = os.dup(spool.fileno()), (spool.sequence, spool.digest, spool.output_bytes)
        os.dup2(full_disk, spool.fileno())
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                spool.append_chunk(STDOUT, b"lost?")
        assert (spool.sequence, spool.digest, spool.output_bytes) == before
        os.dup2(descriptor, spool.fileno())
        os.close(descriptor)
        spool.append_chunk(STDOUT, b"no")
    assert [pb.Frame.FromString(raw).chunk.data for raw in read(path)] == [b"chunk 0", b"no"]


@pytest.mark.parametrize("data", [b"", b"x" * (MAX_CHUNK_BYTES + 1)])
def test_the_size_of_a_chunk_is_bounded(path: Path, data: bytes) -> None:
    with SpoolWriter.open(path) as spool, pytest.raises(ValueError, match="a chunk is"):
        spool.append_chunk(STDOUT, data)


def test_texts_are_what_the_wire_permits(path: Path) -> None:
    with SpoolWriter.open(path) as spool:
        spool.append_notice(pb.SEVERITY_INFO, "a\0b\ud800c" + "x" * 10_000)
    text = pb.Frame.FromString(read(path)[0]).notice.text
    assert text.startswith("a\ufffdb?cx")
    assert len(text) == 4_000


def test_reading_begins_before_the_spool_does(path: Path) -> None:
    with SpoolReader(path) as reader:
        assert reader.read(0, 100) == []
        assert reader.last_sequence == 0
        fill(path, 2)
        assert len(reader.read(0, 1000)) == 2
        assert reader.last_sequence == 2


def test_reading_is_bounded_and_makes_headway(path: Path) -> None:
    with SpoolWriter.open(path) as spool:
        for _ in range(10):
            spool.append_chunk(STDOUT, b"x" * 1000)
    with SpoolReader(path) as reader:
        assert len(reader.read(0, 1)) == 1
        assert len(reader.read(1, 3500)) == 3
        assert len(reader.read(4, 1 << 20)) == 6
        assert reader.read(10, 1 << 20) == []
        assert reader.read(99, 1 << 20) == []
        assert [pb.Frame.FromString(raw).sequence for raw in reader.read(7, 1 << 20)] == [8, 9, 10]


def test_reading_from_anywhere_at_any_time(path: Path) -> None:
    chance = random.Random(7)
    with SpoolWriter.open(path) as spool, SpoolReader(path) as reader:
        for number in range(1, 601):
            spool.append_chunk(STDOUT, chance.randbytes(chance.choice([1, 100, 20_000])))
            if number % 5 == 0:
                after = chance.randrange(number)
                frames = reader.read(after, chance.choice([1, 5_000, 1 << 22]))
                sequences = [pb.Frame.FromString(raw).sequence for raw in frames]
                assert sequences == list(range(after + 1, after + 1 + len(frames)))
                assert frames
                assert reader.last_sequence == number


def test_a_reader_follows_a_frame_as_it_is_written(path: Path, tmp_path: Path) -> None:
    fill(path, 2)
    whole = path.read_bytes()
    growing = tmp_path / "growing"
    with growing.open("wb", buffering=0) as file, SpoolReader(growing) as reader:
        seen = []
        for byte in whole:
            file.write(bytes([byte]))
            seen.append(reader.last_sequence)
    assert seen == sorted(seen)
    assert (seen[len(whole) // 2 - 2], seen[-2], seen[-1]) == (0, 1, 2)


@pytest.mark.parametrize("frames", [1, 200])
@pytest.mark.parametrize("after", [0, 3, 5])
def test_a_reader_notices_that_what_it_has_read_was_cut_off(path: Path, frames: int, after: int) -> None:
    """Whether the new end lies before the place that it had come to, or behind."""
    fill(path, 5)
    with SpoolReader(path) as reader:
        assert len(reader.read(0, 1 << 20)) == 5
        path.write_bytes(path.read_bytes().replace(b"chunk 2", b"chunk x"))
        with SpoolWriter.open(path) as spool:
            assert spool.sequence == 3
            if frames == 1:
                assert reader.read(5, 1 << 20) == []
                assert reader.last_sequence == 3
            for _ in range(frames - 1):
                spool.append_chunk(STDOUT, b"more")
            spool.append_notice(pb.SEVERITY_ERROR, "over", pb.Finished(outcome=pb.OUTCOME_FAILED))
        assert reader.read(after, 1 << 20) == read(path)[after:]
        assert reader.last_sequence == 3 + frames
        assert reader.finished is not None
        assert not reader.stuck


def test_a_reader_takes_no_frame_twice_when_the_spool_is_cut_while_it_reads(path: Path) -> None:
    # What it has read ahead is not looked at again.
    with SpoolWriter.open(path) as spool:
        for number in range(8):
            spool.append_chunk(STDOUT, b"chunk %d" % number + bytes(60_000))
    with SpoolReader(path) as reader:
        assert len(reader.read(0, 1)) == 1
        path.write_bytes(path.read_bytes().replace(b"chunk 2", b"chunk x"))
        SpoolWriter.open(path).close()
        sequences = [pb.Frame.FromString(raw).sequence for raw in reader.read(1, 1 << 20)]
    assert sequences == [2, 3, 4][: len(sequences)]


def test_the_end_is_told(path: Path) -> None:
    with SpoolWriter.open(path) as spool, SpoolReader(path) as reader:
        spool.append_chunk(STDOUT, b"x")
        assert (reader.last_sequence, reader.finished) == (1, None)
        spool.append_notice(pb.SEVERITY_INFO, "done", pb.Finished(outcome=pb.OUTCOME_FAILED, failure_reason="SIGNAL"))
        reader.read(1, 100)
        assert reader.finished is not None
        assert reader.finished.failure_reason == "SIGNAL"
        reader.sync()
