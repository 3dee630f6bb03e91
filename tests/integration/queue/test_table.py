"""The table of transitions, walked against PostgreSQL: every status, every event, accepted or not."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from services.queue import creation, jobs, lifecycle, store
from services.queue.errors import IllegalTransition
from services.queue.frames import DIGEST_START
from services.queue.model import Actor
from services.queue.states import TERMINAL, Event, Status
from services.queue.tables import attempts, history, packages
from services.queue.tables import jobs as job_table
from tests.integration.queue.rig import ALICE, Rig
from tests.unit.queue.test_states import AGREED_MOVES

CLAIMED = frozenset(Status) - {Status.DEFERRED, Status.WAITING, Status.EXPIRED}
"""Statuses that a job with an attempt can have; WAITING too, after a give-back."""


async def put(rig: Rig, status: Status, count: int, accepted: list[bool], canceled: list[bool]) -> list[int]:
    """Jobs in `status`, each with an attempt where it can have one, without a history."""
    rows = {
        "display_name": "x", "type": "PACKAGE", "status": status, "operation": "run", "package_name": "core.shell",
        "package_version": "1.0.0", "parameters": {}, "site_kind": "group",
        "site_name": rig.group, "priority": 3, "heartbeat_timeout": timedelta(seconds=120), "labels": {},
        "creator": "alice", "attempt": int(status in CLAIMED),
    }  # fmt: skip
    async with rig.database.begin() as connection:
        now = await store.now(connection)
        # What is repeated is about a package that is there.
        digest = select(packages.c.digest).where(packages.c.name == rows["package_name"]).limit(1)
        rows["package_digest"] = (await connection.execute(digest)).scalar_one()
        given = [
            rows | {"created_at": now, "queued_at": now, "cancel_requested_at": now if canceled[n] else None}
            for n in range(count)
        ]
        ids = sorted((await connection.execute(insert(job_table).returning(job_table.c.job_id), given)).scalars())
        if status in CLAIMED:
            await connection.execute(
                insert(attempts),
                [
                    {
                        "job_id": job_id, "number": 1, "agent": rig.agent("a"), "epoch": 1, "journal_id": "j",
                        "claimed_at": now, "last_heard_at": now, "active_at": now, "digest": DIGEST_START,
                        "accepted_at": now if was else None,
                    }
                    for job_id, was in zip(ids, accepted, strict=True)
                ],
            )  # fmt: skip
    return ids


@pytest.mark.parametrize("status", Status)
async def test_every_pair_has_its_outcome_and_leaves_it_behind(rig: Rig, status: Status) -> None:
    facts = [
        (event, accepted, canceled)
        for event, accepted, canceled in itertools.product(Event, (False, True), (False, True))
        if status in CLAIMED or not accepted
    ]
    ids = await put(rig, status, len(facts), [a for _, a, _ in facts], [c for *_, c in facts])
    by = Actor("tester", "here")
    outcomes: dict[int, str] = {}
    async with rig.database.begin() as connection:
        found = await store.lock(connection, ids)
        now = await store.now(connection)
        for job_id, (event, _, _) in zip(ids, facts, strict=True):
            try:
                outcomes[job_id] = "moved" if lifecycle.apply(found[job_id], event, now, by, "why") else "recorded"
            except IllegalTransition:
                outcomes[job_id] = "refused"
        await store.save(connection, found.values())

    async with rig.database.begin() as connection:
        rows = {r.job_id: r for r in await connection.execute(select(job_table).where(job_table.c.job_id.in_(ids)))}
        told = (await connection.execute(select(history).where(history.c.job_id.in_(ids)))).all()
    for job_id, (event, accepted, canceled) in zip(ids, facts, strict=True):
        agreed = AGREED_MOVES.get((status, event, accepted, canceled))
        expected = "refused" if agreed is None else "recorded" if agreed is status else "moved"
        assert outcomes[job_id] == expected, (event, accepted, canceled)
        assert rows[job_id].status == (agreed or status)
        own = [entry for entry in told if entry.job_id == job_id]
        if agreed is None:
            assert not own
        else:
            (entry,) = own
            assert (entry.sequence, entry.from_status, entry.to_status, entry.event) == (1, status, agreed, event)
            assert (entry.actor, entry.origin, entry.message) == ("tester", "here", "why")
        ended_now = agreed in TERMINAL and agreed is not status
        assert (rows[job_id].completed_at is not None) == ended_now


VERBS = {
    Event.ACTIVATE: jobs.activate,
    Event.CANCEL: lambda connection, job_id, by: jobs.cancel(connection, job_id, by, "why"),
    Event.ABORT: lambda connection, job_id, by: jobs.abort(connection, job_id, by, "why"),
    Event.DELETE: jobs.delete,
    Event.RERUN: lambda connection, job_id, by: creation.rerun(connection, job_id, "", by),
}


@pytest.mark.parametrize("status", Status)
async def test_the_verbs_of_people_do_what_the_table_says(rig: Rig, status: Status) -> None:
    facts = list(itertools.product(VERBS, (False, True) if status in CLAIMED else (False,)))
    ids = await put(rig, status, len(facts), [a for _, a in facts], [False] * len(facts))
    for job_id, (event, accepted) in zip(ids, facts, strict=True):
        agreed = AGREED_MOVES.get((status, event, accepted, False))
        async with rig.database.begin() as connection:
            if agreed is None:
                with pytest.raises(IllegalTransition, match=f"job {job_id} is"):
                    await VERBS[event](connection, job_id, ALICE)
            else:
                await VERBS[event](connection, job_id, ALICE)
        row = await rig.job(job_id)
        assert row.status == (agreed or status)
        assert (row.hidden_at is not None) == (event is Event.DELETE and agreed is not None)
        assert len(await rig.history(job_id)) == (agreed is not None)


async def test_a_refused_verb_leaves_the_row_as_it_was(rig: Rig) -> None:
    (job_id,) = await put(rig, Status.SUCCEEDED, 1, [True], [False])
    before = await rig.job(job_id)
    for verb in (rig.cancel, rig.abort, rig.activate):
        with pytest.raises(IllegalTransition):
            await verb(job_id)
    assert await rig.job(job_id) == before


async def test_a_status_that_is_in_no_enum_is_refused_by_the_database(rig: Rig) -> None:
    job_id = await rig.create()
    with pytest.raises(IntegrityError, match="jobs_status_known"):
        await rig.execute("UPDATE queue.jobs SET status = 'PAUSED' WHERE job_id = :job_id", job_id=job_id)
