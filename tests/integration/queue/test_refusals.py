"""Attempts that get no leases: they wait with a reason, come back by the clock, or fail for good."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.queue import reports
from services.queue.errors import StaleAttempt, StaleEpoch
from services.queue.lifecycle import RETRY_SPREAD
from services.queue.model import FOR_GOOD, LeaseRefusal, RefusalReason
from services.queue.reports import Accepted, Report
from services.queue.sessions import AttemptKey
from services.queue.sweeper import Sweeper
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig, check, check_lease_ends, of
from tests.integration.queue.test_races import ROUNDS, race
from tests.support.frames import Spool

FOR_NOW = sorted(set(RefusalReason) - FOR_GOOD - {RefusalReason.ATTEMPT_ENDED})


async def claimed(rig: Rig, **changes: object) -> AttemptKey:
    """A job that names a credential, claimed and not yet delivered."""
    if not rig.epochs:
        await rig.hello()
    await rig.create(agent="a", admin="root", **changes)
    (key,) = await rig.claim()
    return key


async def finish(rig: Rig, job_id: int) -> None:
    """Claim, run and end it."""
    (key,) = await rig.claim()
    assert key.job_id == job_id
    spool = Spool()
    end = of(spool.process_started(1), spool.payload_ended(0), spool.finished("SUCCEEDED"))
    assert (await rig.report(key, Accepted(), end)).sealed


@pytest.mark.parametrize("reason", FOR_NOW)
async def test_a_refusal_for_now_is_explained_and_tried_again(rig: Rig, clock: Clock, reason: RefusalReason) -> None:
    key = await claimed(rig)
    told = await rig.refuse(key, reason)
    assert told.sealed and told.error is None
    job, attempt = await rig.job(key.job_id), await rig.attempt(key)
    assert (job.status, job.agent, job.attempt, job.stop_state) == ("WAITING", "", 1, "NONE")
    assert (job.wait_reason, job.wait_message) == (reason, f"because of {reason}")
    assert (attempt.accepted_at, attempt.sealed_at, attempt.verdict) == (None, clock.now, "COMPLETE")
    entry = (await rig.history(key.job_id))[-1]
    assert (entry.event, entry.actor) == ("LEASE_REFUSED", f"hub of agent {rig.agent('a')}")
    assert entry.message == f"{reason}: because of {reason}"
    assert await rig.claim() == []
    await clock.advance(2)
    await finish(rig, key.job_id)
    job = await rig.job(key.job_id)
    assert (job.status, job.attempt) == ("SUCCEEDED", 2)
    assert (job.wait_reason, job.wait_message, job.retry_at) == (None, "", None)
    await check(rig.database, [key.job_id])
    await check_lease_ends(rig.database, [key.job_id])


@pytest.mark.parametrize("reason", sorted(FOR_GOOD))
async def test_a_refusal_for_good_fails_the_job_in_the_same_transaction(rig: Rig, reason: RefusalReason) -> None:
    key = await claimed(rig)
    assert (await rig.refuse(key, reason, permanent=True)).sealed
    job = await rig.job(key.job_id)
    assert (job.status, job.failure_reason, job.status_message) == ("FAILED", reason, f"because of {reason}")
    assert (job.wait_reason, job.retry_at) == (None, None)
    assert (await rig.events(key.job_id))[-2:] == ["LEASE_REFUSED", "UNRUNNABLE"]
    await check(rig.database, [key.job_id])
    await check_lease_ends(rig.database, [key.job_id])


async def test_refusals_come_slower_and_slower_by_the_clock(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig)
    for number, seconds in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
        assert key.number == number
        await rig.refuse(key)
        await clock.advance(seconds * 0.999)
        assert await rig.claim() == []
        await clock.advance(seconds * (RETRY_SPREAD + 0.002))
        (key,) = await rig.claim()
        job = await rig.job(key.job_id)
        assert (job.wait_reason, job.wait_message, job.retry_at) == (None, "", None)  # cleared by the claim
    await check(rig.database, [key.job_id])


async def test_declines_and_refusals_back_off_alike(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig)
    await rig.decline(key)
    job = await rig.job(key.job_id)
    assert (job.wait_reason, job.retry_at) == ("DECLINED", None)
    assert job.wait_message == f"agent {rig.agent('a')} declined it: it is full"
    (key,) = await rig.claim()
    await rig.refuse(key)
    assert (await rig.job(key.job_id)).retry_at >= clock.now + timedelta(seconds=2)
    await clock.advance(3)
    (key,) = await rig.claim()
    await rig.decline(key)
    assert (await rig.job(key.job_id)).retry_at == clock.now + timedelta(seconds=4)


async def test_the_hint_of_the_credential_service_is_kept(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig)
    await rig.refuse(key, RefusalReason.VAULT_RATE_LIMITED, retry_after=30)
    await clock.advance(29.9)
    assert await rig.claim() == []
    await clock.advance(3.2)
    assert [k.job_id for k in await rig.claim()] == [key.job_id]


async def test_a_job_that_waits_for_vault_until_its_latest_start_says_so(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig, latest_start=clock.now + timedelta(seconds=10))
    await rig.refuse(key)
    await clock.advance(11)
    await Sweeper(rig.database).sweep()
    job = await rig.job(key.job_id)
    assert (job.status, job.failure_reason) == ("EXPIRED", "LATEST_START")
    assert job.status_message.endswith("it waited: because of VAULT_SEALED")
    await check_lease_ends(rig.database, [key.job_id])


async def test_repeating_a_refusal_changes_nothing(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig)
    await rig.refuse(key)
    before = await rig.job(key.job_id)
    for reason in (RefusalReason.VAULT_SEALED, RefusalReason.CREDENTIAL_NOT_FOUND):
        told = await rig.refuse(key, reason, permanent=reason in FOR_GOOD)
        assert told.sealed and told.error is None
    assert await rig.job(key.job_id) == before
    await clock.advance(2)
    (again,) = await rig.claim()
    assert isinstance((await rig.refuse(key)).error, StaleAttempt)
    assert (await rig.job(key.job_id)).status == "STARTING" and again.number == 2


async def test_the_refusal_of_a_stale_session_and_of_anothers_attempt_are_refused(rig: Rig) -> None:
    key = await claimed(rig)
    await rig.hello("b")
    await rig.hello(slots=8)
    assert isinstance((await rig.refuse(key, epoch=1)).error, StaleEpoch)
    assert isinstance((await rig.refuse(key, name="b")).error, StaleAttempt)
    assert isinstance((await rig.refuse(AttemptKey(key.job_id, 2))).error, StaleAttempt)
    assert isinstance((await rig.refuse(AttemptKey(2**60, 1))).error, StaleAttempt)
    assert await rig.status(key.job_id) == "STARTING"
    await rig.refuse(key)  # redelivered to the newer session, whose refusal counts
    assert await rig.status(key.job_id) == "WAITING"


async def test_what_was_accepted_cannot_be_refused_any_more(rig: Rig) -> None:
    key = await claimed(rig)
    await rig.accept(key)
    told = await rig.refuse(key)
    assert isinstance(told.error, StaleAttempt) and not told.sealed
    assert (await rig.attempt(key)).sealed_at is None
    await check_lease_ends(rig.database, [key.job_id])


async def test_a_refusal_of_a_redelivery_keeps_the_first_one_from_starting(rig: Rig) -> None:
    """It had leases, its acceptance is under way, and the second request for them fails."""
    key = await claimed(rig)
    await rig.refuse(key)
    before = await rig.job(key.job_id)
    told = await rig.accept(key)
    assert isinstance(told.error, StaleAttempt) and "forget it" in told.error.message
    assert await rig.job(key.job_id) == before
    assert (await rig.attempt(key)).accepted_at is None


@pytest.mark.parametrize("permanent", [False, True])
async def test_a_job_that_became_awol_before_it_was_delivered_is_given_back(
    rig: Rig, clock: Clock, permanent: bool
) -> None:
    key = await claimed(rig, heartbeat_timeout=timedelta(seconds=60))
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    await clock.elapse(130, sweeper.sweep)
    assert await rig.status(key.job_id) == "AWOL"
    await rig.refuse(key, permanent=permanent)
    assert await rig.status(key.job_id) == ("FAILED" if permanent else "WAITING")
    assert "RETURN_STARTING" not in await rig.events(key.job_id), "nobody has heard of its agent"
    await check(rig.database, [key.job_id])
    await check_lease_ends(rig.database, [key.job_id])


async def test_many_refusals_are_committed_together_and_fail_alone(rig: Rig) -> None:
    await rig.hello(slots=50)
    await rig.create_many(50, agent="a", admin="root")
    keys = await rig.claim(slots=50)
    for key in keys[::10]:
        await rig.accept(key)
    refusal = LeaseRefusal(RefusalReason.VAULT_SLOW, "slow")
    told = await reports.commit(rig.database, [Report(rig.session("a"), key, refusal) for key in keys])
    assert [result.error is not None for result in told] == [n % 10 == 0 for n in range(50)]
    retries = {(await rig.job(key.job_id)).retry_at for n, key in enumerate(keys) if n % 10}
    assert len(retries) == 45, "they come back apart"
    await check(rig.database, [key.job_id for key in keys])
    await check_lease_ends(rig.database, [key.job_id for key in keys])


@pytest.mark.parametrize("verb", ["cancel", "abort"])
@pytest.mark.parametrize("permanent", [False, True])
async def test_a_refusal_against_a_verb_leaves_one_end(rig: Rig, verb: str, permanent: bool) -> None:
    await rig.hello(slots=ROUNDS)
    await rig.create_many(ROUNDS, agent="a", admin="root")
    keys = await rig.claim(slots=ROUNDS)
    act = {"cancel": rig.cancel, "abort": rig.abort}[verb]
    reason = RefusalReason.CREDENTIAL_NOT_FOUND if permanent else RefusalReason.VAULT_SEALED
    await race(
        *[[lambda k=key: act(k.job_id), lambda k=key: rig.refuse(k, reason, permanent=permanent)] for key in keys]
    )
    ended = {"cancel": "CANCELED", "abort": "ABORTED"}[verb]
    for key in keys:
        job, attempt = await rig.job(key.job_id), await rig.attempt(key)
        # The verb is refused only once the job has failed.
        assert job.status == ended or (permanent and job.status == "FAILED")
        assert job.stop_state in ("NONE", "CONFIRMED") and attempt.sealed_at is not None
        assert (job.wait_reason, job.wait_message, job.retry_at) == (None, "", None)
    await check(rig.database, [key.job_id for key in keys])
    await check_lease_ends(rig.database, [key.job_id for key in keys])


async def test_a_refusal_against_an_acceptance_either_starts_or_waits(rig: Rig) -> None:
    await rig.hello(slots=ROUNDS)
    await rig.create_many(ROUNDS, agent="a", admin="root")
    keys = await rig.claim(slots=ROUNDS)
    rounds = await race(*[[lambda k=key: rig.accept(k), lambda k=key: rig.refuse(k)] for key in keys])
    for key, (accepted, refused) in zip(keys, rounds, strict=True):
        job, attempt = await rig.job(key.job_id), await rig.attempt(key)
        started = accepted.error is None
        assert started == isinstance(refused.error, StaleAttempt)
        assert (attempt.accepted_at is not None, job.status) == (started, "STARTING" if started else "WAITING")
    await check(rig.database, [key.job_id for key in keys])
    await check_lease_ends(rig.database, [key.job_id for key in keys])


async def test_a_refusal_against_a_new_hello_never_loses_the_job(rig: Rig) -> None:
    names = [str(n) for n in range(ROUNDS)]
    keys = []
    for name in names:
        await rig.hello(name)
        await rig.create(agent=name, admin="root")
        keys += await rig.claim(name)
    rounds = await race(
        *[
            [lambda n=name: rig.hello(n), lambda n=name, k=key: rig.refuse(k, name=n, epoch=1)]
            for name, key in zip(names, keys, strict=True)
        ]
    )
    for key, (welcome, refused) in zip(keys, rounds, strict=True):
        again = [(a.job_id, a.attempt) for a in welcome.redelivered]
        if refused.error is None:
            assert (await rig.status(key.job_id), again) == ("WAITING", [])
        else:
            assert isinstance(refused.error, StaleEpoch)
            assert (await rig.status(key.job_id), again) == ("STARTING", [(key.job_id, 1)])
    await check(rig.database, [key.job_id for key in keys])
    await check_lease_ends(rig.database, [key.job_id for key in keys])
