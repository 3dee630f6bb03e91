"""The life of one attempt at this site, from the record that it is accepted to the record that it is forgotten.

    ACCEPTED   the package is fetched while the acceptance is committed; then
    SPAWNING   a supervisor is asked for, once; it is followed until it is gone; what it left unfinished is finished
               in its stead
               the spool is shipped all the while; once the server has all of it, or wants none of it,
    FORGOTTEN  the directory is removed

A life can end with its process at any point and be taken up by the next one: what matters is in the journal and in
the spool, and everything here looks there first.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from services.runtime import faults
from services.sis_agent.agent.attempts import AttemptDirectories, AttemptKey
from services.sis_agent.agent.errors import JournalUnwritable, PackageUnavailable
from services.sis_agent.agent.journal import Journal, Step
from services.sis_agent.agent.package_cache import PackageCache, is_digest
from services.sis_agent.agent.recording.spool import SpoolBusy, SpoolReader, SpoolWriter
from services.sis_agent.agent.shipping import Shipping
from services.sis_agent.agent.state_directory import StateDirectory
from services.sis_agent.agent.supervision.handle import (
    SpawnFailed,
    StopKind,
    SupervisorHandle,
    SupervisorUnreachable,
    Zygote,
)
from services.sis_agent.agent.supervision.lost import finish_lost
from services.sis_agent.agent.supervision.supervisor_identity import SPOOL, was_supervised
from services.sis_agent.agent.threads import Removals
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as frame

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
"""Between tries to write where the disk is full or faulty."""
TRIES: Final = 30
"""Where it is faulty; where it is full, for as long as it takes."""
START_SECONDS: Final = 300.0
"""The start timeout of an assignment that names none."""
LOOK_SECONDS: Final = 0.05
"""Between looks for a supervisor that has begun to write and cannot be found yet."""
GROWTH_SECONDS: Final = 5.0
"""The spool is looked at this often even if nobody says that it grew."""
EARLIER_BYTES: Final = 1 << 20
"""More than the few lines that an agent itself writes into a spool."""
REFUSALS: Final = 5
"""A supervisor that does not take an abort this many times in a row hangs, and is killed."""


def patience() -> float:
    """For how many seconds one life of an attempt tries what is faulty."""
    return (TRIES - 1) * RETRY_SECONDS


@dataclass(frozen=True, slots=True)
class Site:
    """What all attempts of this agent share."""

    journal: Journal
    directories: AttemptDirectories
    shipping: Shipping
    packages: PackageCache
    zygote: Zygote
    identity_directory: Path
    state: StateDirectory
    removals: Removals


class Ending(NamedTuple):
    """The end of an attempt that never had a process."""

    outcome: frame.Outcome.ValueType
    failure_reason: str
    text: str


STOPPED: Final = Ending(frame.OUTCOME_STOPPED, "", "Stopped before anything was started")


class Life:
    """One attempt in hand. `run` lives it; the other methods say what the server wants, at any time and repeatably."""

    def __init__(self, site: Site, key: AttemptKey, assignment: dispatch.Assignment, received_at: float) -> None:
        self.key: Final = key
        self.assignment: Final = assignment
        self._site = site
        self._directory = site.directories.path(key)
        self.received_at: Final = received_at
        self._confirmed = asyncio.Event()
        self._stop = dispatch.StopCommand()
        self._stopping = asyncio.Event()
        # The stop that the spool says was begun, where an agent itself has to carry it out.
        self._begun: frame.StopKind.ValueType = frame.STOP_KIND_UNSPECIFIED
        # Whether the spool says that there was a supervisor.
        self._supervised = False
        self._done = asyncio.Event()
        if self._spawned:
            self._confirmed.set()

    @property
    def confirmed(self) -> bool:
        """Whether the server has committed the acceptance."""
        return self._confirmed.is_set()

    @property
    def spooled(self) -> int:
        """How many frames there are of it at this site."""
        with SpoolReader(self._directory / SPOOL) as spool:
            return spool.last_sequence

    @property
    def done(self) -> bool:
        """Whether the server wants nothing more of the attempt; it takes no slot then."""
        return self._done.is_set()

    @property
    def _step(self) -> Step:
        return self._site.journal.entries[self.key].step

    @property
    def _spawned(self) -> bool:
        """Whether a supervisor was asked for; also where the journal has lost what it said of that."""
        return self._step is Step.SPAWNING or self._supervised or was_supervised(self._directory)

    def confirm(self) -> None:
        """The acceptance is committed: the attempt may start."""
        self._confirmed.set()

    def stop(self, command: dispatch.StopCommand) -> None:
        """End the attempt. A stronger stop overtakes a weaker one; a repeated one is said to the supervisor again."""
        if command.kind == frame.STOP_KIND_ABORT or self._stop.kind != frame.STOP_KIND_ABORT:
            self._stop = command
            self._stopping.set()

    def settle(self) -> None:
        """The server has everything: forget the attempt once its supervisor is gone."""
        self._done.set()

    def dismiss(self, reason: str) -> None:
        """The server wants nothing of the attempt: end what is left of it, then forget it."""
        self._done.set()
        self.stop(dispatch.StopCommand(attempt=self.key.to_proto(), kind=frame.STOP_KIND_ABORT, reason=reason))

    async def run(self) -> None:
        """Live until the attempt is forgotten. Cancelled, it leaves the supervisor running; run again, it goes on."""
        with self._site.packages.holding(self.assignment.package.digest):
            if not self._spawned:
                await self._start()
            if self._spawned:
                await self._follow()
            await self._done.wait()
        self._site.shipping.close(self.key)
        await self._persist(functools.partial(self._site.journal.append, Step.FORGOTTEN, [self.key]))
        await self._site.removals.remove(self._site.directories.path(self.key))

    async def _start(self) -> None:
        """Have the attempt spawned, or end it here."""
        if self._earlier_end() or self._spawned:
            return
        while True:
            if is_digest(self.assignment.package.digest):
                ready = await self._ready_to_start()
            else:
                ready = Ending(frame.OUTCOME_FAILED, "AGENT_ERROR", "This site has lost the assignment")
            # Nothing is awaited between this look at the wish to stop and the record: after it, the supervisor stops.
            if self._stopping.is_set():
                ready = STOPPED
            if isinstance(ready, Ending):
                await self._persist(functools.partial(self._end, ready))
                return
            try:
                self._site.journal.append(Step.SPAWNING, [self.key])
            except JournalUnwritable as error:
                self._site.state.failed(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                break
        try:
            await self._site.zygote.spawn(self._directory, ready)
            faults.point("agent.spawned")
        except SpawnFailed as error:
            log.exception("attempt %s was not spawned", self.key)
            if not error.may_have_started:
                # If this cannot be written, `_follow` finds out what became of the attempt.
                with contextlib.suppress(OSError, SpoolBusy):
                    self._end(Ending(frame.OUTCOME_FAILED, "AGENT_ERROR", f"No supervisor: {error}"))

    def _earlier_end(self) -> bool:
        """Whether an earlier process of this agent has ended the attempt; if it had only begun to, take that up. Where
        there was none, the log begins here."""
        with SpoolReader(self._directory / SPOOL) as spool:
            for raw in spool.read(0, EARLIER_BYTES):
                notice = frame.Frame.FromString(raw).notice
                self._supervised |= notice.HasField("process_started")
                if notice.HasField("stop_begun"):
                    begun = notice.stop_begun
                    self.stop(dispatch.StopCommand(kind=begun.kind, reason=begun.reason))
                    self._begun = begun.kind
            first = not spool.last_sequence
            finished = spool.finished is not None
        if first:
            self._note("Assignment received", frame.SEVERITY_DEBUG)
        return finished

    async def _ready_to_start(self) -> Path | Ending:
        """The package's directory, once the attempt may start with it; else why it ends."""
        package = asyncio.create_task(self._package())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            async with asyncio.timeout(self._time_to_start()):
                await asyncio.wait({package, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return package.result() if package.done() else STOPPED
        except TimeoutError:
            waiting = "the package" if self.confirmed else "the server's word that the acceptance is committed"
            text = f"Not started in time: still waiting for {waiting}"
            return Ending(frame.OUTCOME_FAILED, "START_TIMEOUT", text)
        except PackageUnavailable as error:
            return Ending(frame.OUTCOME_FAILED, "PACKAGE_UNAVAILABLE", f"The package is not available: {error}")
        finally:
            for task in (package, stopping):
                task.cancel()
            await asyncio.gather(package, stopping, return_exceptions=True)

    async def _package(self) -> Path:
        wanted = self.assignment.package
        path = self._site.packages.find(wanted.digest)
        if path is None:
            self._note(f"Package {wanted.name} {wanted.version} is not cached, downloading")
            path = await self._stored(wanted.digest)
        await self._confirmed.wait()
        return path

    async def _stored(self, digest: str) -> Path:
        """The directory of a package that is not cached. Waits for room where there is too little."""
        state = self._site.state
        try:
            while True:
                try:
                    return await self._site.packages.get(digest)
                except OSError as error:
                    if not state.failed(error):
                        raise PackageUnavailable(f"package {digest} cannot be stored at this site: {error}") from error
                state.waiting.add(self.key)
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            state.waiting.discard(self.key)

    def _time_to_start(self) -> float:
        given = self.assignment.start_timeout
        limit = given.ToNanoseconds() / 1e9 if self.assignment.HasField("start_timeout") else START_SECONDS
        # The site's clock may have been set since: never more than the whole, never less than nothing.
        return min(max(self.received_at + limit - time.time(), 0.0), limit)

    def _note(self, text: str, severity: frame.Severity.ValueType = frame.SEVERITY_INFO) -> None:
        try:
            with SpoolWriter.open(self._directory / SPOOL) as spool:
                spool.append_notice(severity, text)
        except OSError as error:
            log.warning("a line of attempt %s is lost: %s", self.key, error, extra={"text": text})
        self._site.shipping.look(self.key)

    def _end(self, ending: Ending) -> None:
        """Write the end of an attempt whose spool nobody else writes. Durable when it returns; repeatable."""
        failed = ending.outcome == frame.OUTCOME_FAILED
        finished = frame.Finished(outcome=ending.outcome, failure_reason=ending.failure_reason)
        finished.evidence.tree_empty = True
        finished.evidence.verify_time.GetCurrentTime()
        with SpoolWriter.open(self._directory / SPOOL) as spool:
            if spool.finished is None:
                if ending.outcome == frame.OUTCOME_STOPPED and self._begun != self._stop.kind:
                    begun = frame.StopBegun(kind=self._stop.kind, reason=self._stop.reason)
                    spool.append_notice(frame.SEVERITY_INFO, f"Stopping: {self._stop.reason}", begun)
                    self._begun = self._stop.kind
                severity = frame.SEVERITY_ERROR if failed else frame.SEVERITY_INFO
                spool.append_notice(severity, ending.text, finished)
            faults.point("agent.end.syncing")
            spool.sync()
            faults.point("agent.end.synced")
        self._site.shipping.look(self.key)

    async def _follow(self) -> None:
        """Return when the supervisor is gone and the spool has its end, written by it or in its stead."""
        spawned_in = self._site.journal.entries[self.key].spawned_in
        tries = 0
        # The end is shipped before all that the payload has left is removed, which can take long.
        told = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, self._site.shipping.look, self.key)
        while True:
            try:
                handle = SupervisorHandle.adopt(self._directory)
                if handle is not None:
                    since = time.monotonic()
                    try:
                        with handle:
                            await self._watch(handle)
                    finally:
                        # Faults that lie further apart than these tries are not one that does not pass.
                        if time.monotonic() - since > patience():
                            tries = 0
                identities = self._site.identity_directory
                finish = functools.partial(finish_lost, spawned_in=spawned_in, told=told)
                await asyncio.to_thread(finish, self._directory, identities)
            except SpoolBusy:
                # A supervisor is just coming to life; or everything by which it could be found is lost.
                self._site.shipping.look(self.key)
                await asyncio.sleep(LOOK_SECONDS)
            except OSError as error:
                tries += 1
                await self._recover(error, tries)
            else:
                return

    async def _watch(self, handle: SupervisorHandle) -> None:
        """Pass on what the supervisor writes and what the server wants of it, until it is gone. Raises OSError; may be
        repeated."""
        if self._stop.kind != frame.STOP_KIND_UNSPECIFIED:
            # The one watched before may have been let go while it was being told.
            self._stopping.set()
        stops = asyncio.create_task(self._pass_on_stops(handle))
        try:
            while handle.alive:
                try:
                    await handle.wait_growth(GROWTH_SECONDS)
                except ConnectionError:
                    # The supervisor has broken the connection off: nothing but its end can follow.
                    await handle.wait_gone()
                self._site.shipping.look(self.key)
                if stops.done():
                    stops.result()
        finally:
            stops.cancel()
            await asyncio.gather(stops, return_exceptions=True)

    async def _pass_on_stops(self, handle: SupervisorHandle) -> None:
        refusals = 0
        while True:
            await self._stopping.wait()
            self._stopping.clear()
            kind = StopKind.ABORT if self._stop.kind == frame.STOP_KIND_ABORT else StopKind.CANCEL
            try:
                await handle.stop(kind, self._stop.reason)
            except SupervisorUnreachable as error:
                refusals += 1
                log.warning("attempt %s was not told to stop (%s): %s", self.key, kind, error)
                if kind is StopKind.ABORT and refusals >= REFUSALS:
                    log.error("the supervisor of attempt %s hangs and is killed", self.key)  # noqa: TRY400
                    handle.kill()
                    return
                await asyncio.sleep(RETRY_SECONDS)
                self._stopping.set()
            else:
                refusals = 0

    async def _persist(self, write: Callable[[], None]) -> None:
        """Write, and try again for as long as it takes: nothing that follows is true before it is written. Raises
        OSError where it is not for want of room, and does not pass."""
        tries = 0
        while True:
            try:
                write()
            except SpoolBusy:
                log.warning("attempt %s cannot go on while its spool is written by another process", self.key)
                await asyncio.sleep(RETRY_SECONDS)
            except (OSError, JournalUnwritable) as error:
                tries += 1
                await self._recover(error, tries)
            else:
                return

    async def _recover(self, error: OSError | JournalUnwritable, tries: int) -> None:
        """Return when it is time for another try. What is this attempt's own trouble, and does not pass, is raised."""
        if not self._site.state.failed(error):
            log.warning("attempt %s cannot go on: %s", self.key, error)
            if tries >= TRIES:
                raise error
        await asyncio.sleep(RETRY_SECONDS)
