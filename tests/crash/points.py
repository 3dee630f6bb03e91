"""The named moments (`services.runtime.faults`) as data: which scenario passes them, and in which of its phases.

The first word of a name is the process that passes it. A test holds the names against the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_REPORTED: Final = (
    "agent.spool.syncing",
    "agent.spool.synced",
    "agent.frames.sending",
    "agent.frames.sent",
)
_COMMITTED: Final = (
    "hub.report.sending",
    "queue.report.committing",
    "queue.report.committed",
    "hub.report.answered",
    "hub.acknowledgements.sending",
    "hub.acknowledgements.sent",
    "agent.acknowledgements.heard",
)

PASSAGES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = MappingProxyType(
    {
        ("job", "start"): (
            "queue.create.committing",
            "queue.create.committed",
            "queue.notified",
            "queue.work.sending",
            "queue.work.sent",
            "hub.claiming",
            "queue.claim.committing",
            "queue.claim.committed",
            "hub.claimed",
            "hub.leasing",
            "credentials.reading",
            "credentials.read",
            "credentials.lease.committing",
            "credentials.lease.committed",
            "hub.leased",
            "hub.assignments.sending",
            "hub.assignments.sent",
            "agent.assignments.heard",
            "agent.assigned",
            "agent.assignment.syncing",
            "agent.assignment.synced",
            "agent.accepted.journalling",
            "agent.accepted.journalled",
            "agent.accepted.sending",
            "agent.accepted.sent",
            *_COMMITTED,
            "agent.spawning.journalling",
            "agent.spawning.journalled",
            "zygote.asked",
            "zygote.handed",
            "supervisor.ordered",
            "supervisor.opened",
            "supervisor.announced",
            "agent.spawned",
            "supervisor.starting",
            "payload.executing",
            "supervisor.started",
            "supervisor.recorded",
            "zygote.forking",
            "zygote.forked",
            *_REPORTED,
        ),
        ("job", "end"): (
            "supervisor.reaped",
            "supervisor.end.writing",
            "supervisor.end.written",
            *_REPORTED,
            *_COMMITTED,
            "agent.forgotten.journalling",
            "agent.forgotten.journalled",
            "queue.leases.committing",
            "queue.leases.committed",
            "queue.leases.sending",
            "queue.leases.sent",
            "hub.lease_ends.sending",
            "credentials.end.committing",
            "credentials.end.committed",
            "hub.lease_ends.sent",
            "queue.acknowledgement.committing",
            "queue.acknowledgement.committed",
            "hub.lease_ends.acknowledged",
        ),
        ("cancel", "stop"): (
            "queue.cancel.committing",
            "queue.cancel.committed",
            "queue.stop.sending",
            "queue.stop.sent",
            "hub.stops.sending",
            "hub.stops.sent",
            "agent.stops.heard",
            "agent.stop.sending",
            "supervisor.stop.recording",
            "supervisor.stop.recorded",
            "supervisor.term.sending",
            "supervisor.term.sent",
            "agent.stop.answered",
            "supervisor.kill.sending",
            "supervisor.kill.sent",
        ),
        ("frozen", "stop"): ("supervisor.cont.sent",),
        ("abort", "stop"): (
            "queue.abort.committing",
            "queue.abort.committed",
            "supervisor.stop.recording",
            "supervisor.stop.recorded",
            "supervisor.kill.sending",
            "supervisor.kill.sent",
        ),
        ("timeout", "start"): (
            "supervisor.stop.recording",
            "supervisor.stop.recorded",
            "supervisor.term.sending",
            "supervisor.term.sent",
        ),
        ("due", "start"): (
            "queue.sweep.committing",
            "queue.sweep.committed",
        ),
        ("package", "start"): (
            "agent.package.fetching",
            "agent.package.unpacked",
            "agent.package.kept",
        ),
        ("unavailable", "start"): (
            "agent.end.syncing",
            "agent.end.synced",
        ),
        ("refused", "start"): (
            "hub.report.sending",
            "queue.report.committing",
            "queue.report.committed",
            "hub.report.answered",
        ),
        ("activate", "activate"): (
            "queue.activate.committing",
            "queue.activate.committed",
        ),
        ("rerun", "rerun"): (
            "queue.rerun.committing",
            "queue.rerun.committed",
        ),
        ("bulk", "cancel"): (
            "queue.bulk.committing",
            "queue.bulk.committed",
        ),
        ("bulk", "rerun"): (
            "queue.bulk.committing",
            "queue.bulk.committed",
        ),
        ("bulk", "delete"): (
            "queue.delete.committing",
            "queue.delete.committed",
        ),
        ("takeback", "end"): (
            "queue.take_back.committing",
            "queue.take_back.committed",
        ),
        ("anew", "loss"): (
            "agent.journal.syncing",
            "agent.journal.synced",
        ),
        ("return", "loss"): (
            "hub.session.closing",
            "queue.session_end.committing",
            "queue.session_end.committed",
            "hub.session.closed",
            "agent.hello.sending",
            "agent.hello.sent",
            "hub.resume.committing",
            "hub.resume.committed",
            "hub.session.opening",
            "queue.session.committing",
            "queue.session.committed",
            "hub.session.opened",
            "hub.welcome.sending",
            "hub.welcome.sent",
            "agent.welcome.heard",
            "agent.secret.writing",
            "agent.secret.written",
            "queue.beat.committing",
            "queue.beat.committed",
        ),
        ("lost", "loss"): (
            "agent.kill.sending",
            "agent.kill.sent",
            "guardian.emptied",
            "guardian.unmarked",
            "agent.lost.writing",
            "agent.lost.written",
        ),
    }
)

ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "agent.declined.journalling": "tests/integration/agent/test_restart.py",
        "agent.declined.journalled": "tests/integration/agent/test_restart.py",
        "hub.quarantine.committing": "tests/integration/hub/test_killed_hub.py",
        "hub.quarantine.committed": "tests/integration/hub/test_killed_hub.py",
        "queue.retention.written": "tests/integration/queue/test_retention.py",
        "queue.retention.exported": "tests/integration/queue/test_retention.py",
        "queue.retention.committing": "tests/integration/queue/test_retention.py",
        "queue.retention.committed": "tests/integration/queue/test_retention.py",
        "credentials.created": "tests/integration/credentials/test_api.py",
        "credentials.stored": "tests/integration/credentials/test_api.py",
        "credentials.replacing": "tests/integration/credentials/test_api.py",
        "credentials.replaced": "tests/integration/credentials/test_api.py",
        "credentials.deleting": "tests/integration/credentials/test_api.py",
        "credentials.erased": "tests/integration/credentials/test_api.py",
    }
)
"""Moments that no scenario of the matrix passes, and the test that kills there."""

_BESIDE: Final = (
    "hub.acknowledgements.sent",
    "agent.spool.syncing",
    "agent.spool.synced",
    "agent.frames.sending",
    "agent.frames.sent",
)
"""In a phase that starts something, these are passed while the start goes on beside them."""

STARTING: Final = frozenset(
    {
        *_BESIDE,
        "agent.spawning.journalled",
        "zygote.asked",
        "zygote.handed",
        "zygote.forking",
        "zygote.forked",
        "supervisor.ordered",
    }
)
"""Where SPAWNING is, or may be, in the journal, and no supervisor has the spool. When agent, zygote or guardian die
then, nobody can know whether there was one, and nobody may start another."""

HANDED: Final = STARTING - {"agent.spawning.journalled", "zygote.asked"}
"""Where a spare has, or may have, an order, and may still look as if it had none."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A moment within a phase of a scenario."""

    point: str
    scenario: str
    phase: str

    @property
    def process(self) -> str:
        """Which one passes it."""
        return self.point.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.scenario}/{self.phase} {self.point}"


def passages() -> Iterator[Passage]:
    """All of the matrix, in its order."""
    for (scenario, phase), names in PASSAGES.items():
        for name in names:
            yield Passage(name, scenario, phase)
