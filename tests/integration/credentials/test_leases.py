"""Leases with a real PostgreSQL and a real OpenBao."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Collection
from uuid import UUID

import pytest

from services.credentials import credentials
from services.credentials.convert.leases import leased_secret
from services.credentials.errors import CredentialNotFound
from services.credentials.kinds import Kind
from services.credentials.lease_store import EndedAttempt
from services.credentials.leases import Answer, Leasing, Reason, Refusal, Use
from services.credentials.store import Credential
from services.credentials.tables import State
from services.credentials.values import StoredValue, Values
from services.credentials.vault import Vault
from services.credentials.vault_errors import VaultError
from services.runtime import sealing
from services.runtime.sealing import LeaseBinding, Unsealable
from sis.credentials.v1 import credential_pb2
from tests.integration.credentials.keysafe import SECRET, Agent, Cut, KeySafe, cut, keysafe_template, keysafe_url, safe
from tests.support.leaks import LeakSearch

__all__ = ["cut", "keysafe_template", "keysafe_url", "safe"]  # fixtures


class CountedValues(Values):
    """Counts how often Vault is read, and can make each reader wait."""

    def __init__(self, vault: Vault) -> None:
        super().__init__(vault)
        self.reads = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.waiting = asyncio.Event()

    async def get(self, credential_id: UUID, version: int | None = None) -> StoredValue | None:
        self.reads += 1
        self.waiting.set()
        await self.go_on.wait()
        return await super().get(credential_id, version)


@pytest.fixture
def counted(safe: KeySafe) -> CountedValues:
    """What the leases of `safe` are read with from now on."""
    found = CountedValues(safe.vault)
    safe.leasing = Leasing(safe.database, found, leased_secret)
    return found


def reasons(answers: list[Answer]) -> list[Reason | None]:
    return [each.reason if isinstance(each, Refusal) else None for each in answers]


# --- taking ---


async def test_an_agent_opens_what_it_leased(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web", kind=Kind.DOMAIN_ACCOUNT, username="root", domain="CORP")
    await safe.create("token", secret=b"a token of nobody")
    (answer,) = await safe.take(safe.request(agent, "token", admin="web", job_id=42, attempt=3))
    first, second = safe.opened(agent, answer, 42, 3)
    assert not isinstance(answer, Refusal)
    assert [lease.ref for lease in answer] == ["admin", "credential.token"]
    assert {lease.sealing_key_id for lease in answer} == {sealing.key_id(agent.sealing_key)}
    assert (first.credential, first.username, first.domain, first.version) == ("web", "root", "CORP", 1)
    assert first.kind == credential_pb2.CREDENTIAL_KIND_DOMAIN_ACCOUNT and first.value.secret == SECRET
    assert second.value.secret == b"a token of nobody"
    assert (await safe.get("web")).last_used_at is not None


async def test_a_lease_opens_nowhere_else(safe: KeySafe) -> None:
    agent, other = await safe.enrol(), await safe.enrol()
    await safe.create("web")
    (answer,) = await safe.take(safe.request(agent, "web", job_id=42, attempt=3))
    assert not isinstance(answer, Refusal)
    (lease,) = answer
    right = LeaseBinding(42, 3, agent.name, str(lease.lease_id), lease.ref)
    sealing.unseal(lease.ciphertext, agent.key, right)
    wrong: list[tuple[Agent, dict[str, object]]] = [
        (other, {}),
        (agent, {"job_id": 43}),
        (agent, {"attempt": 4}),
        (agent, {"agent": other.name}),
        (agent, {"ref": "admin"}),
        (agent, {"lease_id": "00000000-0000-0000-0000-000000000000"}),
    ]
    for opener, change in wrong:
        with pytest.raises(Unsealable):
            sealing.unseal(lease.ciphertext, opener.key, dataclasses.replace(right, **change))  # type: ignore[arg-type]


async def test_taken_again_a_lease_is_the_same_without_vault(safe: KeySafe, counted: CountedValues) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    request = safe.request(agent, "web", admin="web")
    first = await safe.take(request)
    assert counted.reads == 1, "one value is read once, however many leases are on it"
    safe.openbao.seal()
    # What has happened since changes nothing of what was taken.
    await safe.execute("UPDATE credentials.credentials SET state = 'DELETING'")
    assert await safe.take(request) == first
    assert counted.reads == 1


async def test_a_batch_reads_each_value_once(safe: KeySafe, counted: CountedValues) -> None:
    agents = [await safe.enrol() for _ in range(3)]
    for name in ("a", "b"):
        await safe.create(name)
    answers = await safe.take(*(safe.request(agents[job_id % 3], "a", "b", job_id=job_id) for job_id in range(1, 101)))
    assert counted.reads == 2 and reasons(answers) == [None] * 100
    sealed = {lease.ciphertext for each in answers if not isinstance(each, Refusal) for lease in each}
    assert len(sealed) == 200
    for job_id, answer in enumerate(answers, 1):
        assert [each.value.secret for each in safe.opened(agents[job_id % 3], answer, job_id)] == [SECRET] * 2


async def test_those_who_take_at_once_for_one_attempt_get_the_same(safe: KeySafe, counted: CountedValues) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    request = safe.request(agent, "web", admin="web")
    counted.go_on.clear()
    takers = [asyncio.create_task(safe.take(request, request)) for _ in range(6)]
    await counted.waiting.wait()
    counted.go_on.set()
    answers = [answer for each in await asyncio.gather(*takers) for answer in each]
    assert len(answers) == 12 and all(each == answers[0] for each in answers)
    assert len(await safe.execute("SELECT * FROM credentials.leases")) == 2
    assert safe.opened(agent, answers[0])[0].value.secret == SECRET


async def test_one_that_fails_fails_alone(safe: KeySafe) -> None:
    agent, revoked = await safe.enrol(), await safe.enrol()
    await safe.revoke(revoked)
    await safe.create("web")
    answers = await safe.take(
        safe.request(agent, "web", job_id=1),
        safe.request(agent, "unknown", job_id=2),
        safe.request(revoked, "web", job_id=3),
        safe.request(Agent("nobody"), "web", job_id=4),
        safe.request(agent, "web", job_id=5),
        safe.request(agent, job_id=6),
    )
    assert reasons(answers) == [
        None, Reason.CREDENTIAL_NOT_FOUND, Reason.AGENT_UNKNOWN, Reason.AGENT_UNKNOWN, None, None,
    ]  # fmt: skip
    assert answers[5] == ()


async def test_all_or_none(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    refusal = await safe.refusal(safe.request(agent, "web", "unknown"))
    assert (refusal.reason, refusal.permanent) == (Reason.CREDENTIAL_NOT_FOUND, True) and "unknown" in refusal.message
    assert await safe.execute("SELECT * FROM credentials.leases") == []
    await safe.create("unknown")
    assert len(await safe.leases(agent, "web", "unknown")) == 2


async def test_a_kind_that_cannot_serve_is_refused(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("token")
    for kinds in (frozenset({Kind.SSH_KEY}), frozenset()):
        request = dataclasses.replace(safe.request(agent), uses=(Use("admin", "token", kinds),))
        refusal = await safe.refusal(request)
        assert (refusal.reason, refusal.permanent) == (Reason.CREDENTIAL_UNSUITABLE, True)
    request = dataclasses.replace(safe.request(agent), uses=(Use("admin", "token", frozenset({Kind.TOKEN})),))
    assert reasons(await safe.take(request)) == [None]


async def test_the_sealing_key_is_the_agents_newest(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    newer = Agent(agent.name)
    await safe.execute("UPDATE credentials.agents SET sealing_key = :key", key=newer.sealing_key)
    assert (await safe.leases(newer, "web"))[0].value.secret == SECRET


# --- ending ---


async def test_after_its_end_a_lease_is_erased_and_never_given_again(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    await safe.leases(agent, "web")
    await safe.leases(agent, "web", attempt=2)
    for _ in range(2):
        await safe.leasing.end([EndedAttempt(1, 1, job_over=False), EndedAttempt(1, 1, job_over=False)])
    assert (await safe.refusal(safe.request(agent, "web"))).reason is Reason.ATTEMPT_ENDED
    assert len(await safe.leases(agent, "web", attempt=2)) == 1
    rows = await safe.execute("SELECT attempt, ciphertext, ended_at FROM credentials.leases ORDER BY attempt")
    assert [(row.attempt, row.ciphertext is None, row.ended_at is not None) for row in rows] == [
        (1, True, True), (2, False, False),
    ]  # fmt: skip


async def test_an_attempt_that_ended_before_it_took_anything_takes_nothing(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    await safe.leasing.end([EndedAttempt(1, 1, job_over=False)])
    assert (await safe.refusal(safe.request(agent, "web"))).reason is Reason.ATTEMPT_ENDED


async def test_an_attempt_belongs_to_one_agent(safe: KeySafe) -> None:
    agent, other = await safe.enrol(), await safe.enrol()
    await safe.create("web")
    await safe.leases(agent, "web")
    assert (await safe.refusal(safe.request(other, "web"))).reason is Reason.ATTEMPT_ENDED
    assert len(await safe.leases(agent, "web")) == 1


async def test_an_end_that_overtakes_is_not_missed(safe: KeySafe, counted: CountedValues) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    counted.go_on.clear()
    taker = asyncio.create_task(safe.take(safe.request(agent, "web")))
    await counted.waiting.wait()
    await safe.leasing.end([EndedAttempt(1, 1, job_over=False)])
    counted.go_on.set()
    assert reasons(await taker) == [Reason.ATTEMPT_ENDED]
    assert await safe.execute("SELECT * FROM credentials.leases") == []


async def test_taking_and_ending_at_once_leave_no_lease_behind(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    jobs = range(1, 31)
    await asyncio.gather(
        safe.take(*(safe.request(agent, "web", job_id=job_id) for job_id in jobs)),
        safe.leasing.end([EndedAttempt(job_id, 1, job_over=False) for job_id in jobs]),
        safe.take(*(safe.request(agent, "web", job_id=job_id) for job_id in reversed(jobs))),
        safe.leasing.end([EndedAttempt(job_id, 1, job_over=False) for job_id in reversed(jobs)]),
    )
    assert await safe.execute("SELECT * FROM credentials.leases WHERE ended_at IS NULL") == []


@pytest.mark.parametrize("late", ["deleted", "revoked", "enrolled anew"])
async def test_what_changes_while_vault_is_read_counts(safe: KeySafe, counted: CountedValues, late: str) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    counted.go_on.clear()
    taker = asyncio.create_task(safe.take(safe.request(agent, "web")))
    await counted.waiting.wait()
    if late == "deleted":
        await safe.execute("UPDATE credentials.credentials SET state = 'DELETING'")
    elif late == "revoked":
        await safe.revoke(agent)
    else:
        await safe.execute("UPDATE credentials.agents SET sealing_key = :key", key=Agent("x").sealing_key)
    counted.go_on.set()
    expected = Reason.CREDENTIAL_NOT_FOUND if late == "deleted" else Reason.AGENT_UNKNOWN
    assert reasons(await taker) == [expected]
    assert await safe.execute("SELECT * FROM credentials.leases") == []
    assert await safe.execute("SELECT * FROM credentials.attempts") == []


async def test_a_replacement_while_vault_is_read_changes_nothing(safe: KeySafe, counted: CountedValues) -> None:
    agent = await safe.enrol()
    await safe.create("web", kind=Kind.USERNAME_PASSWORD, username="old")
    counted.go_on.clear()
    taker = asyncio.create_task(safe.take(safe.request(agent, "web")))
    await counted.waiting.wait()
    await safe.replace(username="new")
    counted.go_on.set()
    (secret,) = safe.opened(agent, (await taker)[0])
    assert (secret.version, secret.username, secret.value.secret) == (1, "old", SECRET)


async def test_a_revoked_agent_gets_not_even_what_it_had(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    await safe.leases(agent, "web")
    await safe.revoke(agent)
    refusal = await safe.refusal(safe.request(agent, "web"))
    assert (refusal.reason, refusal.permanent) == (Reason.AGENT_UNKNOWN, False) and refusal.retry_after


# --- Vault away ---


async def test_a_sealed_vault_is_a_reason_to_wait(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    safe.openbao.seal()
    answers = await safe.take(*(safe.request(agent, "web", job_id=job_id) for job_id in range(1, 51)))
    assert reasons(answers) == [Reason.VAULT_SEALED] * 50
    assert all(isinstance(each, Refusal) and not each.permanent and each.retry_after for each in answers)
    assert await safe.execute("SELECT * FROM credentials.attempts") == []
    safe.openbao.unseal()
    assert len(await safe.leases(agent, "web")) == 1


async def logged_in(values: Values) -> None:
    """Wait until it is, however often it is not in time."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(VaultError):
                await values.ids()
                return
            await asyncio.sleep(0.05)


async def test_a_vault_that_hangs_holds_a_batch_up_once(safe: KeySafe) -> None:
    agent = await safe.enrol()
    for number in range(20):
        await safe.create(f"c-{number}")
    vault = Vault(safe.openbao.settings(timeout_seconds=1.0))
    values = CountedValues(vault)
    try:
        await logged_in(values)
        safe.openbao.kill(signal.SIGSTOP)
        values.go_on.clear()
        requests = [safe.request(agent, f"c-{job_id % 20}", job_id=job_id) for job_id in range(1, 101)]
        taker = asyncio.create_task(Leasing(safe.database, values, leased_secret).take(requests))
        async with asyncio.timeout(20):
            while values.reads < 20:  # noqa: ASYNC110  (it sets no event)
                await asyncio.sleep(0.01)
        # All are under way, so that they wait for it together.
        values.go_on.set()
        answers = await taker
        assert values.reads == 20
    finally:
        safe.openbao.kill(signal.SIGCONT)
        await vault.close()
    assert set(reasons(answers)) <= {Reason.VAULT_SLOW, Reason.VAULT_UNREACHABLE}


class SlowValues(CountedValues):
    """Takes a moment for each value, and for ever for those in `stuck`; so many at once."""

    def __init__(self, vault: Vault, at_once: int = 8, stuck: Collection[Credential] = ()) -> None:
        super().__init__(vault)
        self._free = asyncio.Semaphore(at_once)
        self._stuck = {each.credential_id for each in stuck}
        self.reading = self.most_reading = 0

    async def get(self, credential_id: UUID, version: int | None = None) -> StoredValue | None:
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        try:
            async with self._free:
                await asyncio.sleep(3600 if credential_id in self._stuck else 0.1)
                return await super().get(credential_id, version)
        finally:
            self.reading -= 1


async def test_the_values_of_one_request_are_read_at_once(safe: KeySafe) -> None:
    agent = await safe.enrol()
    names = [(await safe.create(f"c-{number}")).name for number in range(20)]
    slow = SlowValues(safe.vault)
    answers = await Leasing(safe.database, slow, leased_secret).take(
        [safe.request(agent, *names, job_id=1), safe.request(agent, names[0], job_id=2)]
    )
    assert reasons(answers) == [None, None]
    assert slow.reads == slow.most_reading == 20


async def test_one_that_vault_is_too_slow_for_fails_alone(safe: KeySafe) -> None:
    agent = await safe.enrol()
    stuck, _ = await safe.create("stuck"), await safe.create("web")
    slow = SlowValues(safe.vault, stuck=[stuck])
    answers = await Leasing(safe.database, slow, leased_secret, read_seconds=4.0).take(
        [
            safe.request(agent, "web", "stuck", job_id=1),
            safe.request(agent, "web", job_id=2),
            safe.request(agent, "stuck", job_id=3),
        ]
    )
    assert reasons(answers) == [Reason.VAULT_SLOW, None, Reason.VAULT_SLOW]
    assert isinstance(answers[0], Refusal) and not answers[0].permanent and answers[0].retry_after
    assert "in 4 s" in answers[0].message
    assert slow.reading == 0, "what nobody waits for any more is given up"


async def test_who_wants_little_does_not_wait_for_who_wants_much(safe: KeySafe) -> None:
    agent = await safe.enrol()
    much = [await safe.create(f"stuck-{number}") for number in range(4)]
    await safe.create("web")
    slow = SlowValues(safe.vault, at_once=2, stuck=much)
    answers = await Leasing(safe.database, slow, leased_secret, read_seconds=4.0).take(
        [safe.request(agent, *(each.name for each in much), job_id=1), safe.request(agent, "web", job_id=2)]
    )
    assert reasons(answers) == [Reason.VAULT_SLOW, None]


class Forgetful(Values):
    """Misses what is there, so many times."""

    times = 1

    async def get(self, credential_id: UUID, version: int | None = None) -> StoredValue | None:
        self.times -= 1
        return None if self.times >= 0 else await super().get(credential_id, version)


async def test_a_value_is_missing_only_at_the_second_look(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    safe.leasing = Leasing(safe.database, forgetful := Forgetful(safe.vault), leased_secret)
    assert (await safe.leases(agent, "web"))[0].value.secret == SECRET
    assert (await safe.get()).state is State.READY
    forgetful.times = 2
    refusal = await safe.refusal(safe.request(agent, "web", job_id=2))
    assert (refusal.reason, refusal.permanent) == (Reason.CREDENTIAL_VALUE_MISSING, True)


async def test_a_value_is_not_missing_while_vault_does_not_say_so_twice(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")

    class Sealing(Forgetful):
        async def newest_version(self, credential_id: UUID) -> int:
            safe.openbao.seal()
            return await super().newest_version(credential_id)

    safe.leasing = Leasing(safe.database, Sealing(safe.vault), leased_secret)
    refusal = await safe.refusal(safe.request(agent, "web"))
    assert (refusal.reason, refusal.permanent) == (Reason.VAULT_SEALED, False)
    safe.openbao.unseal()
    assert (await safe.get()).state is State.READY


async def test_a_vault_that_is_gone_is_a_reason_to_wait(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    safe.openbao.stop()
    refusal = await safe.refusal(safe.request(agent, "web"))
    assert (refusal.reason, refusal.permanent) == (Reason.VAULT_UNREACHABLE, False)


async def test_a_value_that_vault_has_lost_fails_the_job(safe: KeySafe) -> None:
    agent = await safe.enrol()
    made = await safe.create("web")
    await safe.values.remove(made.credential_id)
    refusal = await safe.refusal(safe.request(agent, "web"))
    assert (refusal.reason, refusal.permanent) == (Reason.CREDENTIAL_VALUE_MISSING, True)
    assert (await safe.get()).state is State.VALUE_MISSING
    # Somebody has restored Vault: nobody has to wait for the reconciler.
    await safe.put_late(made.credential_id, SECRET, 0)
    assert (await safe.leases(agent, "web"))[0].value.secret == SECRET


@pytest.mark.parametrize("gap", ["credentials.reading", "credentials.read", "credentials.lease.committed"])
async def test_a_lease_that_was_cut_can_be_taken_again(safe: KeySafe, cut: Callable[[str], None], gap: str) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    cut(gap)
    with pytest.raises(Cut):
        await safe.take(safe.request(agent, "web"))
    cut("")
    assert len(await safe.execute("SELECT * FROM credentials.leases")) == (gap == "credentials.lease.committed")
    assert (await safe.leases(agent, "web"))[0].value.secret == SECRET
    assert len(await safe.execute("SELECT * FROM credentials.leases")) == 1


# --- credentials for one job ---


async def test_a_credential_for_one_job_serves_that_job_alone(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("typed", for_one_job=True)
    # Whoever takes it first ties it, should the client not have come to that.
    assert len(await safe.leases(agent, "typed", job_id=7)) == 1
    found = await safe.get("typed")
    assert (found.job_id, found.expires_at) == (7, None)
    refusal = await safe.refusal(safe.request(agent, "typed", job_id=8))
    assert (refusal.reason, refusal.permanent) == (Reason.CREDENTIAL_UNSUITABLE, True)
    assert len(await safe.leases(agent, "typed", job_id=7, attempt=2)) == 1


async def test_of_jobs_that_take_a_credential_for_one_job_at_once_one_gets_it(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("typed", for_one_job=True)
    await safe.create("web")
    answers = await safe.take(*(safe.request(agent, "typed", "web", job_id=job_id) for job_id in range(1, 9)))
    assert sorted(map(str, reasons(answers))) == ["CREDENTIAL_NOT_FOUND"] * 7 + ["None"]


async def test_an_expired_credential_is_not_leased(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("typed", for_one_job=True)
    await safe.execute("UPDATE credentials.credentials SET expires_at = now()")
    assert (await safe.refusal(safe.request(agent, "typed"))).reason is Reason.CREDENTIAL_NOT_FOUND


async def test_a_credential_for_one_job_dies_with_the_job(safe: KeySafe) -> None:
    agent = await safe.enrol()
    for name in ("taken", "bound", "late"):
        await safe.create(name, for_one_job=True)
    await safe.create("shared")
    await safe.leases(agent, "taken", "shared", job_id=7)
    await safe.bind("bound", 7)
    await safe.leasing.end([EndedAttempt(7, 1, job_over=False)])
    await safe.sweep()
    assert (await safe.get("taken")).state is State.READY, "another attempt may follow"
    await safe.leasing.end([EndedAttempt(7, 1, job_over=True)])
    await safe.bind("late", 7)
    await safe.sweep()
    for name in ("taken", "bound", "late"):
        with pytest.raises(CredentialNotFound):
            await safe.get(name)
    assert (await safe.get("shared")).state is State.READY
    await safe.agree()


async def test_a_job_that_never_had_an_attempt_takes_its_credential_along(safe: KeySafe) -> None:
    await safe.create("typed", for_one_job=True)
    await safe.bind("typed", 7)
    await safe.leasing.end([EndedAttempt(7, 0, job_over=True)])
    await safe.sweep()
    with pytest.raises(CredentialNotFound):
        await safe.get("typed")


# --- who used what ---


async def test_usage_tells_who_used_a_credential_even_of_those_deleted(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    await safe.leases(agent, "web", job_id=1)
    await safe.replace("web")
    await safe.leases(agent, "web", job_id=2)
    await safe.leasing.end([EndedAttempt(1, 1, job_over=False)])
    await safe.delete("web")
    await safe.create("web", secret=b"a successor of it")
    await safe.leases(agent, "web", job_id=3)
    await safe.sweep()
    page = await credentials.usage(safe.database, "web", None, 2)
    assert [(use.job_id, use.version, use.ended_at is None) for use in page.uses] == [(3, 1, True), (2, 2, True)]
    last = page.uses[-1]
    assert page.more and (last.agent, last.ref, last.requester) == (agent.name, "credential.web", "alice")
    page = await credentials.usage(safe.database, "web", (last.taken_at, last.lease_id), 2)
    assert [(use.job_id, use.ended_at is None) for use in page.uses] == [(1, False)] and not page.more
    with pytest.raises(CredentialNotFound):
        await credentials.usage(safe.database, "unknown", None, 2)


async def test_usage_and_tombstones_are_forgotten_in_time(safe: KeySafe) -> None:
    agent = await safe.enrol()
    await safe.create("web")
    await safe.leases(agent, "web", job_id=1)
    await safe.leases(agent, "web", job_id=2)
    await safe.leasing.end([EndedAttempt(1, 1, job_over=True)])
    await safe.execute("UPDATE credentials.attempts SET ended_at = ended_at - interval '8 days'")
    await safe.sweep()
    assert len(await safe.execute("SELECT * FROM credentials.attempts")) == 1
    # The record of its use bars what comes late from then on.
    assert (await safe.refusal(safe.request(agent, "web", job_id=1))).reason is Reason.ATTEMPT_ENDED
    await safe.execute("UPDATE credentials.leases SET ended_at = ended_at - interval '401 days'")
    await safe.sweep()
    assert [row.job_id for row in await safe.execute("SELECT job_id FROM credentials.leases")] == [2]


# --- no secret anywhere ---


async def test_postgresql_and_the_log_hold_no_form_of_a_secret(
    safe: KeySafe, caplog: pytest.LogCaptureFixture, cut: Callable[[str], None]
) -> None:
    caplog.set_level("DEBUG")
    secret, other, third = b'Tr0ub4dor & 3 "quoted" \\slashes\\', b"another/secret+with=signs", b"a third secret, cut"
    agent = await safe.enrol()
    await safe.create("web", secret=secret, request_id="r")
    await safe.replace("web", secret=other, username=None)
    await safe.leases(agent, "web")
    await safe.create("typed", secret=secret, for_one_job=True)
    for gap in ("credentials.created", "credentials.stored"):
        cut(gap)
        with pytest.raises(Cut):
            await safe.create(gap, secret=third)
    search = LeakSearch({"first": secret, "second": other, "third": third})
    with safe.connection() as connection:
        assert search.database(connection) == set()
        # It would have been found.
        connection.execute("UPDATE credentials.credentials SET description = %s", [secret.hex()])
        assert search.database(connection) != set()
        connection.rollback()
    assert search.find(caplog.text.encode()) == set()
