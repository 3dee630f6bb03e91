"""Output on its way from the pipes to the spool: order, cap and masks."""

from __future__ import annotations

import os
import selectors
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from services.sis_agent.agent.recording.output_pipes import OutputPipes
from services.sis_agent.agent.recording.outputs import Outputs
from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.recording.spool import MAX_CHUNK_BYTES, SpoolReader, SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

SECRET = b"correct horse"
OUT, ERR = job_pb2.CHANNEL_STDOUT, job_pb2.CHANNEL_STDERR


class Rig:
    """Pipes whose writing ends the test holds."""

    def __init__(self, path: Path, secrets: Sequence[bytes] = (SECRET,), cap: int = 1 << 30) -> None:
        self._path = path
        self._selector = selectors.DefaultSelector()
        self._writer = SpoolWriter.open(path)
        masker = Masker(secrets)
        self.pipes = OutputPipes(self._selector, Recorder(self._writer, masker), cap, masker)
        self.pipes.watch(True)
        self._ends = {OUT: self.pipes.stdout, ERR: self.pipes.stderr}

    def write(self, channel: job_pb2.Channel.ValueType, data: bytes) -> None:
        """Have the data go through the pipe, however little fits at once."""
        os.set_blocking(self._ends[channel], False)
        while data:
            data = data[os.write(self._ends[channel], data[: 48 << 10]) :]
            self.turn()

    def turn(self) -> None:
        """Read what is there."""
        for key, _ in self._selector.select(0):
            key.data()

    def end(self, channel: job_pb2.Channel.ValueType) -> None:
        os.close(self._ends.pop(channel))
        self.turn()

    def chunks(self) -> list[tuple[job_pb2.Channel.ValueType, bytes]]:
        with SpoolReader(self._path) as reader:
            frames = [pb.Frame.FromString(raw) for raw in reader.read(0, 1 << 30)]
        return [(frame.chunk.channel, frame.chunk.data) for frame in frames if frame.HasField("chunk")]

    def output(self, channel: job_pb2.Channel.ValueType) -> bytes:
        return b"".join(data for found, data in self.chunks() if found == channel)

    def close(self) -> None:
        for descriptor in self._ends.values():
            os.close(descriptor)
        self.pipes.close()
        self._selector.close()
        self._writer.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "spool")
    yield rig
    rig.close()


def test_a_secret_in_pieces_is_masked_and_channels_are_not_mixed_up(rig: Rig) -> None:
    rig.write(OUT, b"it is corr")
    rig.write(ERR, b"an error ")
    rig.write(OUT, b"ect ho")
    rig.write(ERR, b"correct horse")
    rig.write(OUT, b"rse, really")
    rig.pipes.flush()
    assert rig.chunks() == [(OUT, b"it is "), (ERR, b"an error "), (ERR, b"***"), (OUT, b"***, really")]


def test_nothing_is_due_while_only_the_beginning_of_a_secret_is_held(rig: Rig) -> None:
    rig.write(OUT, b"x co")
    due = rig.pipes.flush_at
    assert due is not None
    rig.pipes.flush()
    assert rig.pipes.flush_at is None
    assert rig.chunks() == [(OUT, b"x ")]


def test_what_is_held_is_shown_when_its_stream_ends(rig: Rig) -> None:
    rig.write(OUT, b"x corr")
    rig.write(ERR, b"y")
    rig.end(OUT)
    rig.write(ERR, b"z correct h")
    rig.pipes.flush()
    assert rig.chunks() == [(OUT, b"x "), (ERR, b"y"), (OUT, b"corr"), (ERR, b"z ")]
    rig.end(ERR)
    assert not rig.pipes.open
    assert rig.output(ERR) == b"yz correct h"


def test_the_beginning_of_a_secret_is_not_shown_when_the_pipes_are_closed_before_they_end(rig: Rig) -> None:
    rig.write(OUT, b"x correct hors")
    rig.write(ERR, b"x corr")
    rig.pipes.close()
    assert (rig.output(OUT), rig.output(ERR)) == (b"x ***", b"x corr")


def test_the_cap_counts_what_is_masked(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", cap=10)
    rig.write(OUT, SECRET + b" 12345")
    rig.pipes.flush()
    assert (rig.output(OUT), rig.pipes.discarded) == (b"*** 12345", 0)
    rig.write(OUT, b"67" + SECRET)
    rig.pipes.flush()
    assert (rig.output(OUT), rig.pipes.discarded) == (b"*** 123456", 4)
    rig.write(OUT, SECRET)
    rig.pipes.flush()
    assert (rig.output(OUT), rig.pipes.discarded) == (b"*** 123456", 4 + len(SECRET))
    rig.close()


def test_what_was_held_back_and_what_follows_may_be_more_than_a_chunk(tmp_path: Path) -> None:
    secret = b"a" * (60 << 10) + b"b"
    rig = Rig(tmp_path / "spool", [secret])
    text = secret[:-2] + b"c" * (64 << 10)
    rig.write(OUT, text)
    rig.pipes.flush()
    assert rig.output(OUT) == text
    assert max(len(data) for _, data in rig.chunks()) <= MAX_CHUNK_BYTES
    rig.close()


def test_without_secrets_nothing_is_held(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", [])
    rig.write(OUT, SECRET)
    rig.pipes.flush()
    assert rig.chunks() == [(OUT, SECRET)]
    rig.close()


START, END = b"{{SISJobOutputParameterStart:a}}", b"{{SISJobOutputParameterEnd}}"
MARKED = START + b"<" + SECRET + b"> corr" + END + b"\n"


@pytest.mark.parametrize("size", [1, 7, 31, len(MARKED)])
def test_a_marked_output_is_masked_and_found_in_whatever_pieces_it_comes(rig: Rig, size: int) -> None:
    for place in range(0, len(MARKED), size):
        rig.write(OUT, MARKED[place : place + size])
        rig.write(ERR, b"x")
        rig.pipes.flush()
    rig.end(OUT)
    assert rig.output(OUT) == MARKED.replace(SECRET, b"***")
    assert rig.pipes.markers.end() == Outputs({"a": "<***> corr"})


def test_a_secret_that_looks_like_a_marker_is_masked(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", [b"SISJobOutputParameterEnd}}"])
    rig.write(OUT, START + b"1" + END + START.replace(b"a", b"b") + b"2 corr")
    rig.pipes.close()
    assert rig.output(OUT) == START + b"1{{***" + START.replace(b"a", b"b") + b"2 corr"
    assert rig.pipes.markers.end().values == {}
    rig.close()


def test_markers_on_standard_error_and_beyond_the_cap_are_text(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", cap=2 * len(START + END) + 2)
    rig.write(ERR, START + b"1" + END)
    rig.write(OUT, START + b"2" + END)
    rig.write(OUT, START + b"3" + END)
    rig.pipes.flush()
    assert rig.pipes.discarded == len(START + END) + 1
    assert rig.pipes.markers.end() == Outputs({"a": "2"})
    rig.close()
