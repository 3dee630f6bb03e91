"""Agents that do what the model tells them, honestly or not, over the real stream, each with a journal of its own.

An honest agent journals an attempt before it accepts it, starts it only once the acceptance is committed, and reports
it by one spool. What a site knows of starts and of living processes is noted here, whatever is said to the hubs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import grpc

from services.runtime.channels import from_status
from services.runtime.errors import SisError
from services.runtime.tls import TlsFiles
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue
from sis.queue.v1 import frame_pb2
from tests.acceptance.lifecycle.journals import (
    ENDED,
    Answer,
    Hand,
    Hello,
    Journal,
    Key,
    accepted,
    attempt,
    declined,
    frames,
)
from tests.acceptance.lifecycle.world import BEAT_SECONDS
from tests.integration.hub.agent_client import AgentClient
from tests.support.frames import Spool

SLOTS = 3
BACKUPS = 5
CONNECT_SECONDS = 50.0
OLD = timedelta(seconds=25)
"""Who hands in frames that are older may be handing in more; sweepers do not judge it meanwhile."""

_pids = itertools.count(1_000)


class Site:
    """One simulated agent."""

    def __init__(self, name: str, group: str, tls: TlsFiles, now: Callable[[], datetime]) -> None:
        self.name, self.group = name, group
        self.journal = Journal(f"journal {name} 1")
        self.backups = [self.journal.copied()]
        self.client: AgentClient | None = None
        self.ghost: AgentClient | None = None
        """An older stream that is still open at this end."""
        self.late: list[Key] = []
        """What was delivered over it and not answered."""
        self.offered: dict[Key, queue.Assignment] = {}
        """Delivered, and in no journal yet."""
        self.hub = 0
        self.silent = True
        self.quiet_since: datetime | None = None
        """Since when it was surely not heard."""
        self.heard_at = now()
        """When it was surely heard last."""
        self.starts: Counter[Key] = Counter()
        self.living: dict[Key, set[int]] = {}
        self.spools: dict[Key, list[Spool]] = {}
        """It went on with another one each time that it took an attempt, or found it in a journal that was restored."""
        self.written: dict[Key, bytes] = {}
        self.acknowledged: dict[Key, int] = {}
        """The highest frame of each attempt of which it was ever told that it is committed."""
        self.caught_up: dict[Key, datetime] = {}
        """When it last handed in what was old."""
        self.hellos: list[Hello] = []
        self.said: Counter[tuple[Key, str]] = Counter()
        """How often it has said what of which attempt over its newest stream."""
        self._tls, self._now = tls, now
        self._secret = b""
        self._read = self._stops_read = 0
        self._journals = itertools.count(2)
        self._beater: asyncio.Task[None] | None = None
        self._speaking = asyncio.Lock()
        self._over = False

    # Its streams

    @property
    def connected(self) -> bool:
        """Whether its newest stream is open."""
        return self.client is not None and not self.client.ended

    async def connect(self, endpoint: str, hub: int, *, keep: bool = False) -> Hello:
        """Open a stream and be welcomed, however often that has to be tried; with `keep` the older one stays."""
        former, self.client = self.client, None
        if self.ghost is not None:
            await _close(self.ghost)
            self.ghost = None
        if former is not None and keep and not former.ended:
            self.listen_to(former)
            self.ghost, self.late = former, sorted(self.offered)
        elif former is not None:
            await _close(former)
        async with asyncio.timeout(CONNECT_SECONDS):
            while True:
                client = AgentClient(endpoint, self._tls)
                await client.__aenter__()
                try:
                    return await self._greet(client, hub)
                except (SisError, TimeoutError, asyncio.InvalidStateError):
                    await _close(client)
                    await asyncio.sleep(0.1)

    async def _greet(self, client: AgentClient, hub: int) -> Hello:
        held = frozenset(self.journal.hands)
        await client.call.write(
            stream.ConnectRequest(
                hello=queue.AgentHello(
                    version="1.0.0",
                    boot_id="boot",
                    journal_id=self.journal.id,
                    record_number=self.journal.record,
                    slots=SLOTS,
                    platform="linux",
                    hostname=f"host-{self.name}",
                    attempts=[queue.AttemptInHand(attempt=attempt(key)) for key in sorted(held)],
                ),
                resume_secret=self._secret,
            )
        )
        await client.until(lambda: client.welcome or client.ended)
        if client.welcome is None:
            raise client.error or TimeoutError
        self._secret = client.welcome.resume_secret
        self.client, self.hub, self.offered = client, hub, {}
        self._read = self._stops_read = 0
        for each in client.welcome.verdicts:
            key = each.attempt.job_id, each.attempt.number
            if each.verdict == queue.VERDICT_FORGET:
                self.forget(key)
            else:
                hand = self.journal.hands[key]
                hand.acknowledged = each.acknowledged_sequence
                self._committed(key, each.acknowledged_sequence)
                if hand.acknowledged > hand.spool.sequence:
                    # The hub knows more of it than this journal: it is left to people.
                    del self.journal.hands[key]
                    self.write()
                if each.verdict == queue.VERDICT_KILL:
                    hand.stop = frame_pb2.STOP_KIND_ABORT
        self.silent, self.quiet_since = False, None
        self.heard_at = self._now()
        hello = Hello(self.heard_at, self.journal.id, self.journal.record, held, SLOTS)
        self.hellos.append(hello)
        if self._beater is None:
            self._beater = asyncio.create_task(self._beat_forever())
        return hello

    async def fall_silent(self, *, hang: bool) -> None:
        """Say nothing more; with `hang` the connection stays."""
        self.silent = True
        if not hang:
            await self.close()
        # A hub passes on what it heard before with its next beat.
        await asyncio.sleep(2 * BEAT_SECONDS)
        self.quiet_since = self._now()

    async def close(self) -> None:
        """Close the streams."""
        for client in (self.client, self.ghost):
            if client is not None:
                await _close(client)
        self.client = self.ghost = None

    async def end(self) -> None:
        """It is over."""
        self._over = True
        await self.close()
        if self._beater is not None:
            await self._beater

    async def _beat_forever(self) -> None:
        while not self._over:
            await asyncio.sleep(BEAT_SECONDS)
            if not self.silent and self.connected:
                assert self.client is not None
                # A call that has ended cancels whoever writes to it.
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                    async with self._speaking:
                        await self.client.beat(sorted(self.journal.hands), max(0, SLOTS - len(self.journal.hands)))

    def listen(self) -> None:
        """Take in what the hub has said."""
        if self.client is not None:
            self.listen_to(self.client)

    def listen_to(self, client: AgentClient) -> None:
        for assignment in client.assignments[self._read :]:
            key = assignment.attempt.job_id, assignment.attempt.number
            if key not in self.journal.hands:
                self.offered[key] = assignment
        self._read = len(client.assignments)
        for stop in client.stops[self._stops_read :]:
            key = stop.attempt.job_id, stop.attempt.number
            if (hand := self.journal.hands.get(key)) is not None:
                hand.stop = max(hand.stop, stop.kind)
        self._stops_read = len(client.stops)

    # Its journal

    def new_journal(self) -> None:
        """Its journal is set aside; what runs goes on unknown."""
        self.journal = Journal(f"journal {self.name} {next(self._journals)}")

    def back_up(self) -> None:
        """Copy the journal as it is, unless something is about to start: restored to that, it would start again."""
        if all(hand.phase != "ready" for hand in self.journal.hands.values()):
            self.backups = [*self.backups[-BACKUPS:], self.journal.copied()]

    def restore(self, which: int) -> None:
        """Its journal is an older one again, and what was spooled since is lost with the newer one."""
        self.journal = self.backups[which % len(self.backups)].copied()
        for key, hand in self.journal.hands.items():
            self.spools[key].append(hand.spool)
            self.written[key] = _output(hand.spool)

    def write(self) -> None:
        """One more record."""
        self.journal.record += 1
        self.back_up()

    def forget(self, key: Key) -> None:
        """End what is left of an attempt, without a report."""
        self.living.pop(key, None)
        if self.journal.hands.pop(key, None) is not None:
            self.write()

    def take(self, key: Key) -> Hand:
        """Journal an attempt that was delivered."""
        self.offered.pop(key, None)
        spool = Spool(self._now)
        self.spools.setdefault(key, []).append(spool)
        hand = self.journal.hands[key] = Hand(key, spool)
        self.write()
        return hand

    # What it says

    async def say(self, *reports: stream.AgentReport, ghost: bool = False) -> list[Answer]:
        """Report and wait for the answers; those that do not come are not known."""
        client = self.ghost if ghost else self.client
        if client is None or client.ended:
            return [Answer(None)] * len(reports)
        before = len(client.acknowledgements)
        try:
            async with self._speaking:
                await client.report(*reports)
            await client.until(lambda: client.ended or len(client.acknowledgements) >= before + len(reports))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            pass
        found = [
            Answer(from_status(a.error).reason if a.HasField("error") else "", a.acknowledged_sequence)
            for a in client.acknowledgements[before : before + len(reports)]
        ]
        for each, answer in zip(reports, found, strict=False):
            self._committed((each.attempt.job_id, each.attempt.number), answer.sequence)
        if found and not ghost:
            self.heard_at = self._now()
        return found + [Answer(None)] * (len(reports) - len(found))

    def _committed(self, key: Key, sequence: int) -> None:
        if sequence:
            self.acknowledged[key] = max(sequence, self.acknowledged.get(key, 0))

    async def accept(self, key: Key) -> Answer:
        """Say that an attempt of the journal is accepted."""
        self.said[key, "accept"] += 1
        (answer,) = await self.say(accepted(key))
        if answer.reason == "":
            self.journal.hands[key].confirmed = True
        elif answer.reason in ENDED:
            self.forget(key)
        return answer

    async def decline(self, key: Key) -> Answer:
        """Journal and say that an attempt is declined."""
        self.offered.pop(key, None)
        self.journal.declined.add(key)
        self.write()
        self.said[key, "decline"] += 1
        (answer,) = await self.say(declined(key))
        return answer

    async def ship(self, hand: Hand) -> Answer:
        """Send all frames that were not acknowledged."""
        bodies = hand.spool.bodies[hand.acknowledged :]
        if not bodies:
            return Answer("", hand.acknowledged)
        (answer,) = await self.say(frames(hand.key, bodies))
        if frame_pb2.Frame.FromString(bodies[0]).time.ToDatetime(UTC) < self._now() - OLD:
            self.caught_up[hand.key] = self._now()
        if answer.reason == "":
            hand.acknowledged = answer.sequence
            if hand.phase == "finished":
                self.forget(hand.key)
        elif answer.reason in ENDED:
            self.forget(hand.key)
        return answer

    # What happens at it

    def start(self, hand: Hand) -> None:
        """The payload starts."""
        assert hand.confirmed
        self.starts[hand.key] += 1
        pid = next(_pids)
        self.living.setdefault(hand.key, set()).add(pid)
        hand.spool.process_started(pid)
        hand.phase = "running"
        self.said[hand.key, "first"] += 1
        self.write()

    def print(self, hand: Hand, lines: int) -> None:
        """The payload writes."""
        for n in range(lines):
            data = b"attempt %d.%d line %d of %d\n" % (*hand.key, n, hand.spool.sequence)
            self.written[hand.key] = self.written.get(hand.key, b"") + data
            hand.spool.output(data)

    def payload_ends(self, hand: Hand, code: int) -> None:
        """The initial process is reaped; nothing is left of it."""
        self.living.pop(hand.key, None)
        hand.spool.payload_ended(code)
        hand.phase = "ended"
        self.said[hand.key, "ended"] += 1

    def stop_begins(self, hand: Hand, kind: str) -> None:
        """A stop is taken up."""
        hand.spool.stop_begun(kind)
        self.said[hand.key, f"stop {kind}"] += 1

    def finish(self, hand: Hand, outcome: str, *, survivors: bool = False) -> None:
        """The last frame; what survives lives on."""
        if not survivors:
            self.living.pop(hand.key, None)
        reason = "STOP_UNCONFIRMED" if survivors else "EXIT_CODE" if outcome == "FAILED" else ""
        hand.spool.finished(outcome, tree_empty=not survivors, reason=reason)
        hand.phase = "finished"
        self.said[hand.key, f"finish {outcome}"] += 1


def _output(spool: Spool) -> bytes:
    return b"".join(frame_pb2.Frame.FromString(body).chunk.data for body in spool.bodies)


async def _close(client: AgentClient) -> None:
    with contextlib.suppress(Exception):
        await client.__aexit__(None, None, None)
