"""The attempts in the hands of this agent: takes assignments, answers them once and for all, and turns what the hub
says into what becomes of each attempt. Everything here is called from the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from services.runtime import faults
from services.runtime.backoff import Backoff
from services.runtime.errors import SisError
from services.sis_agent.agent import spans
from services.sis_agent.agent.attempts import AttemptKey
from services.sis_agent.agent.errors import JournalUnwritable
from services.sis_agent.agent.journal import Step
from services.sis_agent.agent.life import Life, Site, patience
from services.sis_agent.agent.package_cache import is_digest
from services.sis_agent.agent.supervision import stage
from services.sis_agent.agent.supervision.handle import StopKind, SupervisorHandle, SupervisorUnreachable
from services.sis_agent.agent.supervision.supervisor_identity import SPOOL, SupervisorUnknown, was_supervised
from sis.agent.v1 import agent_service_pb2 as agent
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as frame

log = logging.getLogger(__name__)

ENDED: Final = frozenset({"STALE_ATTEMPT", "LOG_SEALED"})
"""Refusals of a report by which the server wants nothing more of the attempt."""
CONTRADICTED: Final = frozenset({"MALFORMED_FRAME", "CONFLICTING_FRAME"})
"""Refusals by which the server's log and the spool cannot be brought together again."""
LIVES: Final = 5
"""So often an attempt is tried again that meets faults of the agent, and for no shorter a time than so many lives take
that try what is faulty (`life.patience`), before it is left to people."""
APART_SECONDS: Final = 3_600.0
"""Faults that lie further apart are not one that does not pass."""
UNWANTED: Final = 16
"""So many attempts more than twice the slots may be on their way out while new ones are taken."""
MORE: Final = "the server has more of its log than this site"
RETRY_SECONDS: Final = 1.0
"""Before a report is sent again, where the refusal names no time."""


def _key(assignment: dispatch.Assignment) -> AttemptKey:
    return AttemptKey.of(assignment.attempt)


class Executor:
    """All attempts of one agent. Its tasks are those of the group that it is given."""

    def __init__(self, site: Site, slots: int, group: asyncio.TaskGroup) -> None:
        self._site = site
        self._slots = slots
        self._group = group
        self._lives: dict[AttemptKey, Life] = {}
        self._tasks: dict[AttemptKey, asyncio.Task[None]] = {}
        self._beat_wanted = False
        self._clearing: asyncio.Task[None] | None = None

    def resume(self) -> None:
        """Take up the attempts that the journal has in hand, and begin to clear away what it has forgotten."""
        leftovers = self._site.directories.aside()
        for key, entry in self._site.journal.entries.items():
            if entry.step in (Step.ACCEPTED, Step.SPAWNING):
                self._begin(self._site.directories.assignment(key), entry.received_at)
        for key in self._site.directories:
            if key not in self._lives:
                self._remove_abandoned(key)
            if self._site.directories.is_orphaned(key):
                log.warning("attempt %s is not reported any more; its directory is kept", key)
            elif key in self._lives:
                continue
            elif key not in self._site.journal.entries and was_supervised(self._site.directories.path(key)):
                self._keep(key)
            else:
                leftovers.append(self._set_aside(key))
        self._clearing = self._group.create_task(self._clear(leftovers), name="clearing")

    async def close(self) -> None:
        """Let go of all attempts; their supervisors go on. Repeatable."""
        tasks = [*self._tasks.values(), *([self._clearing] if self._clearing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _set_aside(self, key: AttemptKey) -> Path:
        try:
            return self._site.directories.set_aside(key)
        except OSError as error:
            log.warning("attempt %s: its directory cannot be set aside: %s", key, error)
            return self._site.directories.path(key)

    async def _clear(self, leftovers: list[Path]) -> None:
        for path in leftovers:
            await self._site.removals.remove(path)

    # What the agent says of itself

    def describe(self, hello: dispatch.AgentHello) -> None:
        """Fill in what the journal and the attempts in hand have to say when a stream begins."""
        hello.journal_id = self._site.journal.journal_id
        hello.record_number = self._site.journal.record_number
        hello.slots = self._slots
        hello.draining = self._site.state.full
        for key in self._in_hand():
            hello.attempts.add(attempt=key.to_proto(), acknowledged_sequence=self._site.shipping.acknowledged(key))

    def beat(self) -> agent.Beat:
        """The sign of life that is due now."""
        self._beat_wanted = False
        keys = self._in_hand()
        free_slots = max(self._slots - len(keys), 0)
        # As it was: what failed since the last beat is said, although there is room for the next trial.
        draining = self._site.state.full
        self._site.state.look()
        return agent.Beat(attempts=[key.to_proto() for key in keys], free_slots=free_slots, draining=draining)

    @property
    def beat_wanted(self) -> bool:
        """Whether a slot has become free since the last beat."""
        return self._beat_wanted

    @property
    def load(self) -> tuple[int, int]:
        """How many attempts are in hand, and how many may be. From any thread."""
        return sum(not life.done for life in list(self._lives.values())), self._slots

    @property
    def sealing_keys(self) -> set[str]:
        """The ids of the sealing keys that attempts in hand may still need."""
        return {lease.sealing_key_id for life in self._lives.values() for lease in life.assignment.leases}

    # What the hub says

    def welcome(self, found: Iterable[dispatch.AttemptVerdict], limit_bytes: int) -> None:
        """A stream has begun: take up each attempt as its verdict says, and say again what may have been lost."""
        self._site.shipping.begin(limit_bytes)
        verdicts = {AttemptKey.of(each.attempt): each for each in found}
        for key in self._in_hand():
            verdict = verdicts.get(key)
            if verdict is None:
                log.error("the welcome has no verdict for attempt %s; it goes on", key)
                verdict = dispatch.AttemptVerdict(acknowledged_sequence=self._site.shipping.acknowledged(key))
            self._resume_reporting(key, self._lives[key], verdict.verdict, verdict.acknowledged_sequence)
        for key, entry in self._site.journal.entries.items():
            if entry.step is Step.DECLINED:
                self._decline(key, entry.reason)

    def assign(self, assignments: Iterable[dispatch.Assignment]) -> None:
        """Put new attempts into the journal and answer; one that is there already is answered again.

        Raises:
            JournalUnwritable, OSError: the disk does not take them; no new one was taken and none is answered.
        """
        assignments, accepted = list(assignments), list[dispatch.Assignment]()
        try:
            self._record(assignments, accepted)
        except (JournalUnwritable, OSError) as error:
            if not self._site.state.failed(error):
                log.error("no attempt of %s can be taken: %s", ", ".join(map(str, map(_key, assignments))), error)  # noqa: TRY400
            for assignment in accepted:
                self._site.directories.remove(_key(assignment))
            raise
        for assignment in accepted:
            key = _key(assignment)
            self._accept(key)
            self._begin(assignment, self._site.journal.entries[key].received_at)

    def _record(self, assignments: Iterable[dispatch.Assignment], accepted: list[dispatch.Assignment]) -> None:
        """Put into the journal what becomes of each, and into the list what is accepted."""
        for assignment in assignments:
            key = _key(assignment)
            entry = self._site.journal.entries.get(key)
            if entry is not None or key in map(_key, accepted):
                self._answer_again(key)
            elif self._site.directories.is_orphaned(key):
                log.error("attempt %s has been here before, under another journal; it is not started again", key)
            elif reason := self._objection(assignment, len(accepted)):
                log.warning("attempt %s is declined: %s", key, reason)
                self._site.journal.append(Step.DECLINED, [key], reason)
                self._decline(key, reason)
            else:
                faults.point("agent.assigned")
                accepted.append(assignment)
                self._site.directories.create(assignment)
        self._site.journal.append(Step.ACCEPTED, map(_key, accepted))

    def acknowledge(self, answer: agent.Acknowledgement, error: SisError | None) -> None:
        """Take note of the answer to a report; `error` is the one in it."""
        key = AttemptKey.of(answer.attempt)
        life = self._lives.get(key)
        if life is None:
            self._acknowledge_decline(key, error)
        elif error is None:
            if answer.accepted and not life.confirmed:
                life.confirm()
                self._site.shipping.resume(key, answer.acknowledged_sequence)
            else:
                self._site.shipping.settle(key, answer.acknowledged_sequence)
            if answer.sealed:
                self._trace(life)
                life.settle()
                self._site.shipping.close(key)
                self._want_beat()
        else:
            self._acknowledge_refusal(key, life, answer, error)

    def stop(self, command: dispatch.StopCommand) -> None:
        """End an attempt. One that is not in hand is left to the verdicts of the next hello."""
        key = AttemptKey.of(command.attempt)
        life = self._lives.get(key)
        if life is not None:
            life.stop(command)
        elif self._site.directories.is_orphaned(key):
            self._group.create_task(self._stop_orphan(key, command))
        else:
            log.info("a stop for attempt %s, which is not in hand, is ignored", key)

    # What is to be said to the hub

    async def wait(self, timeout: float) -> None:
        """Return when there may be something to `take`, or a beat is wanted, or after so many seconds."""
        await self._site.shipping.wait(timeout)

    async def take(self) -> list[agent.AgentReport]:
        """The next reports to send."""
        reports, behind = await self._site.shipping.take()
        for key in behind:
            self._abandon(key, MORE)
        return reports

    def silence(self) -> float:
        """For how many seconds the oldest frames under way have had no answer."""
        return self._site.shipping.silence()

    # Behind it

    def _remove_abandoned(self, key: AttemptKey) -> None:
        """The secrets of an attempt that nobody takes up must not stay where its supervisor had them."""
        try:
            stage.remove_abandoned(self._site.directories.path(key))
        except (OSError, SupervisorUnknown):
            log.exception("what attempt %s has left outside of its directory cannot be found", key)

    def _keep(self, key: AttemptKey) -> None:
        """The journal has lost its records of an attempt: it must not be started again, and can still be stopped."""
        log.error("attempt %s was started, and the journal does not know it; its directory is kept", key)
        try:
            self._site.directories.orphan(key)
        except OSError:
            log.exception("that cannot be written down")

    def _in_hand(self) -> list[AttemptKey]:
        return [key for key, life in self._lives.items() if not life.done]

    def _objection(self, assignment: dispatch.Assignment, taken: int) -> str:
        """Why an assignment cannot be taken; "" if it can."""
        # Those that nobody wants any more take no slot, and yet they may take a while to end.
        if len(self._in_hand()) + taken >= self._slots or len(self._lives) + taken >= 2 * self._slots + UNWANTED:
            return f"all {self._slots} slots of this agent are taken"
        if assignment.attempt.job_id < 1 or assignment.attempt.number < 1:
            return "the assignment has no job id and attempt number"
        if not is_digest(assignment.package.digest):
            return "the assignment names its package by something that is not a SHA-256"
        return ""

    def _begin(self, assignment: dispatch.Assignment, received_at: float) -> None:
        key = _key(assignment)
        life = self._lives[key] = Life(self._site, key, assignment, received_at)
        self._site.shipping.open(key, self._site.directories.path(key) / SPOOL)
        self._tasks[key] = self._group.create_task(self._live(life), name=f"attempt {key}")

    async def _live(self, life: Life) -> None:
        """Have an attempt live, and live again after a fault, as it would in a new process of this agent."""
        backoff = Backoff()
        faults, first, last = 0, 0.0, 0.0
        try:
            while not await self._lived(life):
                now = time.monotonic()
                if not faults or now - last > APART_SECONDS:
                    faults, first = 0, now
                    backoff.reset()
                faults, last = faults + 1, now
                # Some faults are met at once, and what is behind them, a lack of memory say, can take a while to pass.
                if faults >= LIVES and now - first >= (LIVES - 1) * patience():
                    self._abandon(life.key, f"this agent has failed {faults} times at it")
                await asyncio.sleep(backoff.next_delay())
        finally:
            if self._lives.get(life.key) is life:
                self._site.shipping.close(life.key)
                del self._lives[life.key], self._tasks[life.key]

    async def _lived(self, life: Life) -> bool:
        try:
            await life.run()
        except Exception:  # one attempt's fault must not become that of all
            log.exception("a fault at attempt %s", life.key)
            return False
        return True

    def _abandon(self, key: AttemptKey, why: str) -> None:
        """Report nothing more of an attempt and keep all of it for people; the server will see that it is AWOL."""
        log.error("attempt %s is not reported any more and its directory is kept: %s", key, why)
        try:
            self._site.directories.orphan(key)
            self._site.journal.append(Step.FORGOTTEN, [key])
        except (OSError, JournalUnwritable):
            log.exception("that cannot be written down; the next start takes the attempt up again")
        self._site.shipping.close(key)
        del self._lives[key]
        self._tasks.pop(key).cancel()
        self._want_beat()

    async def _stop_orphan(self, key: AttemptKey, command: dispatch.StopCommand) -> None:
        kind = StopKind.ABORT if command.kind == frame.STOP_KIND_ABORT else StopKind.CANCEL
        try:
            handle = SupervisorHandle.adopt(self._site.directories.path(key))
            if handle is not None:
                with handle:
                    await handle.stop(kind, command.reason)
        except (OSError, SupervisorUnreachable) as error:
            log.warning("attempt %s, which is not reported any more, was not told to stop: %s", key, error)

    def _resume_reporting(
        self, key: AttemptKey, life: Life, verdict: dispatch.Verdict.ValueType, sequence: int
    ) -> None:
        if verdict == dispatch.VERDICT_FORGET:
            self._dismiss(life, "the server has no more use for it")
        elif verdict == dispatch.VERDICT_KILL:
            kill = dispatch.StopCommand(kind=frame.STOP_KIND_ABORT, reason="the server has given the job up")
            life.stop(kill)
            self._site.shipping.resume(key, sequence)
        elif life.confirmed:
            self._site.shipping.resume(key, sequence)
        else:
            self._accept_again(key, life, sequence)

    def _accept_again(self, key: AttemptKey, life: Life, sequence: int) -> None:
        try:
            forgotten = life.spooled < sequence
        except OSError as error:
            self._abandon(key, f"its log cannot be read: {error}")
            return
        if forgotten:
            # The journal is an older one again: it has forgotten that the attempt was started.
            self._abandon(key, MORE)
        else:
            self._accept(key)

    def _dismiss(self, life: Life, reason: str) -> None:
        log.warning("attempt %s is ended and forgotten: %s", life.key, reason)
        self._trace(life)
        life.dismiss(reason)
        self._site.shipping.close(life.key)
        self._want_beat()

    def _trace(self, life: Life) -> None:
        """Have the traces show an attempt of which the server wants nothing more."""
        if not life.done and (told := self._site.shipping.told(life.key)):
            spans.record(life.assignment, life.received_at, *told, time.time())

    def _want_beat(self) -> None:
        self._beat_wanted = True
        self._site.shipping.nudge()

    def _accept(self, key: AttemptKey) -> None:
        self._site.shipping.answer(agent.AgentReport(attempt=key.to_proto(), accepted=dispatch.Accepted()))

    def _decline(self, key: AttemptKey, reason: str) -> None:
        declined = dispatch.Declined(reason=reason)
        self._site.shipping.answer(agent.AgentReport(attempt=key.to_proto(), declined=declined))

    def _answer_again(self, key: AttemptKey) -> None:
        entry = self._site.journal.entries.get(key)
        if entry is not None and entry.step is Step.DECLINED:
            self._decline(key, entry.reason)
        elif key in self._lives or entry is None:
            self._accept(key)
        else:
            log.warning("attempt %s was assigned again after it was forgotten; it is not started again", key)

    def _acknowledge_decline(self, key: AttemptKey, error: SisError | None) -> None:
        entry = self._site.journal.entries.get(key)
        if entry is None or entry.step is not Step.DECLINED:
            return
        if error is None or error.reason in ENDED:
            try:
                self._site.journal.append(Step.FORGOTTEN, [key])
            except JournalUnwritable as unwritable:
                # The next welcome has it declined, and forgotten, again.
                self._site.state.failed(unwritable)
        else:
            log.warning("the decline of attempt %s was not taken: %s", key, error)
            delay = error.retry_after or RETRY_SECONDS
            asyncio.get_running_loop().call_later(delay, self._decline, key, entry.reason)

    def _acknowledge_refusal(self, key: AttemptKey, life: Life, answer: agent.Acknowledgement, error: SisError) -> None:
        log.warning("a report of attempt %s was refused: %s", key, error, extra={"reason": error.reason})
        if error.reason in ENDED:
            self._dismiss(life, error.message)
        elif error.reason in CONTRADICTED:
            self._abandon(key, error.message)
        elif error.reason == "SEQUENCE_GAP":
            self._site.shipping.refuse(key, answer.acknowledged_sequence, 0)
        else:
            delay = error.retry_after or RETRY_SECONDS
            if self._site.shipping.reports(key):
                self._site.shipping.refuse(key, None, delay)
            else:
                asyncio.get_running_loop().call_later(delay, self._answer_again, key)
