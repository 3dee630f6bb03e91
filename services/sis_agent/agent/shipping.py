"""What this agent has to tell its hub, in which order and how much at a time: answers to assignments, and the
frames of the spools.

A report that is under way is remembered only as far as it is needed: frames are never kept in memory, they are read
from the spool again when they have to be sent again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.runtime import faults
from services.sis_agent.agent.attempts import AttemptKey
from services.sis_agent.agent.recording.milestones import Milestones
from services.sis_agent.agent.recording.spool import SpoolReader
from sis.agent.v1.agent_service_pb2 import AgentReport
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1.frame_pb2 import Finished

log = logging.getLogger(__name__)

MESSAGE_BYTES: Final = 1 << 20
"""So many bytes of frames go into one message, or one frame that is longer."""
LANE_BYTES: Final = 256 << 10
"""So many bytes of one attempt go into one message while others wait."""
_DISK_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _UnderWay:
    last_sequence: int
    size: int
    since: float


@dataclass(slots=True, eq=False)
class _Lane:
    """One spool on its way to the hub."""

    reader: SpoolReader
    # The last sequence that was sent, and the last that was acknowledged; None until it is known where to begin.
    sent: int | None = None
    acknowledged: int = 0
    under_way: deque[_UnderWay] = field(default_factory=deque)
    # A report was refused: nothing is sent until all others under way are answered, for they are refused as well.
    refused: bool = False
    # Whether the spool was seen to reach as far as the server's log does.
    verified: bool = False
    # How often the end of the spool was cut off, for damage, and how much was sent that is gone since.
    cuts: int = 0
    gone: int = 0
    # Whether it was said that the spool is damaged.
    stuck: bool = False
    # A thread is reading the spool.
    busy: bool = False
    # Seconds to wait before sending again, and whether that wait is on.
    delay: float = 0.0
    resting: asyncio.TimerHandle | None = None

    @property
    def may_send(self) -> bool:
        return self.sent is not None and not self.refused and self.resting is None


@dataclass(slots=True)
class _Load:
    """What a thread reads of one spool for one message."""

    key: AttemptKey
    lane: _Lane
    after: int
    frames: list[bytes] = field(default_factory=list)
    # There is no room for what comes next.
    full: bool = False
    # The server has frames that the spool has not, or has not any more.
    behind: bool = False
    failed: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))


class Shipping:
    """The outgoing side of the stream. `answer` and `look` say that there is something; `wait` and `take` are for
    the one task that writes the stream; `settle` and `refuse` for the one that reads it."""

    def __init__(self, threads: Executor) -> None:
        """Spools are read in `threads`, which should have nothing else to do: signs of life wait for the same task."""
        self._threads = threads
        self._limit = MESSAGE_BYTES
        self._bytes_under_way = 0
        self._answers: list[AgentReport] = []
        self._lanes: dict[AttemptKey, _Lane] = {}
        # The lanes that may have something to send; the first goes first. (A dictionary for its order.)
        self._waiting: dict[AttemptKey, None] = {}
        self._wake = asyncio.Event()

    def begin(self, limit_bytes: int) -> None:
        """A new stream begins: nothing is under way on it, and each lane waits for `resume`."""
        self._limit = max(limit_bytes, 1)
        self._bytes_under_way = 0
        self._answers.clear()
        self._waiting.clear()
        for lane in self._lanes.values():
            lane.sent = None
            lane.refused = lane.verified = False
            lane.gone = 0
            lane.under_way.clear()
            _rise(lane)

    def open(self, key: AttemptKey, spool: Path) -> None:
        """Take a spool on board; nothing of it is sent before `resume`."""
        self._lanes[key] = _Lane(SpoolReader(spool))

    def close(self, key: AttemptKey) -> None:
        """Send nothing more of a spool. Repeatable."""
        lane = self._lanes.pop(key, None)
        if lane is not None:
            self._waiting.pop(key, None)
            self._bytes_under_way -= sum(report.size for report in lane.under_way)
            _rise(lane)
            if not lane.busy:
                lane.reader.close()
            self._wake.set()

    def resume(self, key: AttemptKey, after_sequence: int) -> None:
        """Send the frames that follow a sequence, those that are there and those to come."""
        lane = self._lanes[key]
        lane.sent = lane.acknowledged = after_sequence
        self.look(key)

    def answer(self, report: AgentReport) -> None:
        """Send the answer to an assignment, before any frames."""
        self._answers.append(report)
        self._wake.set()

    def look(self, key: AttemptKey) -> None:
        """There may be new frames in a spool."""
        if key in self._lanes:
            self._waiting[key] = None
            self._wake.set()

    def reports(self, key: AttemptKey) -> bool:
        """Whether frames of the spool are sent on this stream."""
        lane = self._lanes.get(key)
        return lane is not None and lane.sent is not None

    def acknowledged(self, key: AttemptKey) -> int:
        """The last sequence that is known to be committed."""
        lane = self._lanes.get(key)
        return lane.acknowledged if lane else 0

    def told(self, key: AttemptKey) -> tuple[Milestones, Finished] | None:
        """When what happened that was sent, and how it ended; None before the last frame was sent."""
        lane = self._lanes.get(key)
        if lane is None or lane.reader.finished is None:
            return None
        return lane.reader.milestones, lane.reader.finished

    def settle(self, key: AttemptKey, sequence: int) -> None:
        """All frames up to the sequence are committed."""
        lane = self._lanes.get(key)
        if lane is None or lane.sent is None:
            return
        lane.acknowledged = max(lane.acknowledged, sequence)
        lane.sent = max(lane.sent, sequence)
        while lane.under_way and lane.under_way[0].last_sequence <= sequence:
            self._answered(lane)
        self._go_on(key, lane)

    def refuse(self, key: AttemptKey, sequence: int | None, delay: float) -> None:
        """The oldest report under way was refused, not for good: send it again after a delay in seconds.

        `sequence` is where the server's log ends, if it said so.
        """
        lane = self._lanes.get(key)
        if lane is None or lane.sent is None:
            return
        if lane.under_way:
            self._answered(lane)
        if sequence is not None:
            lane.acknowledged = sequence
        lane.refused = True
        lane.delay = max(lane.delay, delay)
        self._go_on(key, lane)

    @property
    def bytes_under_way(self) -> int:
        """Of frames that were sent and not acknowledged."""
        return self._bytes_under_way

    def silence(self) -> float:
        """For how many seconds the oldest report under way has had no answer; 0 without one."""
        oldest = [lane.under_way[0].since for lane in self._lanes.values() if lane.under_way]
        return asyncio.get_running_loop().time() - min(oldest) if oldest else 0.0

    def nudge(self) -> None:
        """Let `wait` return."""
        self._wake.set()

    async def wait(self, timeout: float) -> None:
        """Return when there may be something to take, or after so many seconds."""
        try:
            async with asyncio.timeout(max(timeout, 0)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def take(self) -> tuple[list[AgentReport], list[AttemptKey]]:
        """The next reports to send, at most one message full; they count as under way from now on.

        Beside them the attempts of which the server has more than the spool: that cannot be put right here.
        """
        reports, self._answers = self._answers, []
        room = self._limit - self._bytes_under_way
        loads = self._choose() if room > 0 else []
        if loads:
            # The disk may be slow, and a spool long that is read for the first time.
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(self._threads, _read, loads, room, self._bytes_under_way == 0)
            try:
                await asyncio.shield(reading)
            finally:
                if reading.done():
                    self._release(loads)
                else:
                    reading.add_done_callback(functools.partial(self._released_late, loads))
            reports.extend(report for load in loads if (report := self._send(load)) is not None)
            if reports and self._waiting:
                self._wake.set()
        return reports, [load.key for load in loads if load.behind and self._lanes.get(load.key) is load.lane]

    def _choose(self) -> list[_Load]:
        """The lanes to read for the next message; they wait no longer."""
        loads = []
        for key in list(self._waiting):
            lane = self._lanes[key]
            if lane.busy:
                continue  # still read for a stream that has ended; `_release` wakes us
            del self._waiting[key]
            if lane.sent is not None and lane.may_send:
                lane.busy = True
                loads.append(_Load(key, lane, lane.sent))
        return loads

    def _released_late(self, loads: list[_Load], _reading: asyncio.Future[None]) -> None:
        self._release(loads)
        self._wake.set()

    def _release(self, loads: list[_Load]) -> None:
        """The lanes can be read again. Those for which there was no room go first the next time."""
        full = []
        for load in loads:
            load.lane.busy = False
            if self._lanes.get(load.key) is not load.lane:
                load.lane.reader.close()
            elif load.full:
                full.append(load.key)
        self._waiting = {**dict.fromkeys(full), **self._waiting}

    def _send(self, load: _Load) -> AgentReport | None:
        lane = load.lane
        if self._lanes.get(load.key) is not lane:
            return None
        if load.failed:
            self._rest(load.key, lane, _DISK_RETRY_SECONDS)
            return None
        if not load.frames:
            return None
        self._waiting[load.key] = None  # there may be more
        if lane.sent != load.after or not lane.may_send:
            return None
        lane.sent = load.after + len(load.frames)
        lane.under_way.append(_UnderWay(lane.sent, load.size, asyncio.get_running_loop().time()))
        self._bytes_under_way += load.size
        return AgentReport(attempt=load.key.to_proto(), frames=dispatch.FrameBatch(frames=load.frames))

    def _answered(self, lane: _Lane) -> None:
        self._bytes_under_way -= lane.under_way.popleft().size
        if self._waiting:
            self._wake.set()

    def _go_on(self, key: AttemptKey, lane: _Lane) -> None:
        if lane.refused and not lane.under_way:
            lane.refused = False
            lane.sent = lane.acknowledged
            lane.gone = min(lane.gone, lane.sent)
            delay, lane.delay = lane.delay, 0.0
            self._rest(key, lane, delay)

    def _rest(self, key: AttemptKey, lane: _Lane, delay: float) -> None:
        _rise(lane)
        if delay <= 0:
            self.look(key)
        else:
            lane.resting = asyncio.get_running_loop().call_later(delay, self._rested, key, lane)

    def _rested(self, key: AttemptKey, lane: _Lane) -> None:
        lane.resting = None
        if self._lanes.get(key) is lane:
            self.look(key)


def _rise(lane: _Lane) -> None:
    if lane.resting is not None:
        lane.resting.cancel()
        lane.resting = None


def _read(loads: list[_Load], limit: int, may_exceed: bool) -> None:
    """Read the frames of one message, for a thread. They take no more than the limit, and no more than a message but
    for a first frame that is longer. Only if nothing is under way may that one exceed the limit as well.

    A frame for which there is no room ends the message, so that what is under way grows less until it fits, however
    much others have to send.

    What the server gets is made durable here first: if this site lost it, the frames that follow would contradict it.
    """
    room = min(MESSAGE_BYTES, limit)
    longest = sys.maxsize if may_exceed else limit
    for load in loads:
        reader = load.lane.reader
        try:
            frames = reader.read(load.after, min(room, LANE_BYTES)) if room > 0 else []
            size = sum(map(len, frames))
            if reader.cuts != load.lane.cuts:
                load.lane.cuts, load.lane.gone = reader.cuts, load.after
            if room <= 0 or size > max(room, longest):
                load.full = True
                room = 0
                continue
            if frames:
                faults.point("agent.spool.syncing")
                reader.sync()
                faults.point("agent.spool.synced")
                load.frames = frames
                room -= size
                longest = 0
            elif not load.lane.verified or load.lane.gone:
                load.behind = _behind(load)
            if not frames and not load.lane.stuck and reader.stuck:
                load.lane.stuck = True
                log.error("the spool of attempt %s is damaged; what follows cannot be reported", load.key)
            load.lane.verified = True
        except OSError:
            log.exception("the spool of attempt %s cannot be read or made durable", load.key)
            load.failed = True


def _behind(load: _Load) -> bool:
    """Whether the server has more of the log, or something else in the place of its end: it seals a log that it has the
    end of, and asks for nothing more."""
    reader, lane = load.lane.reader, load.lane
    last = reader.last_sequence
    if lane.verified:
        return reader.finished is not None and last <= lane.gone
    return last < load.after or (reader.finished is not None and last == load.after > 0)
