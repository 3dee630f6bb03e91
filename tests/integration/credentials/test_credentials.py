"""Credentials with a real PostgreSQL and a real OpenBao, whatever comes between the two."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4
from weakref import WeakSet

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials import credentials, reconciler_store
from services.credentials.errors import CredentialChanged, CredentialExists, CredentialNotFound, RequestIdReused
from services.credentials.kinds import Kind, Secret
from services.credentials.reconciler import Limits, Reconciler
from services.credentials.tables import State
from services.credentials.values import Values
from services.credentials.vault import Vault
from services.credentials.vault_errors import VaultSealed, VaultSlow, VaultUnreachable
from services.runtime.dependencies import Trouble, unavailable
from services.runtime.errors import InvalidArgument
from tests.integration.credentials.keysafe import (
    SECRET,
    Cut,
    KeySafe,
    cut,
    keysafe_template,
    keysafe_url,
    safe,
)

__all__ = ["cut", "keysafe_template", "keysafe_url", "safe"]  # fixtures

CutAt = Callable[[str], None]


# --- the life of a credential ---


async def test_a_credential_is_stored_replaced_and_deleted(safe: KeySafe) -> None:
    made = await safe.create(kind=Kind.USERNAME_PASSWORD, username="root", description="the web servers")
    assert (made.version, made.state, made.creator, made.updater) == (1, State.READY, "alice", "")
    assert await safe.secret(made) == SECRET

    replaced = await safe.replace(secret=b"the next one", description="all of them", version=1)
    assert (replaced.version, replaced.username, replaced.description) == (2, "root", "all of them")
    assert (replaced.updater, replaced.credential_id) == ("bob", made.credential_id)
    assert await safe.secret(replaced) == b"the next one"

    await safe.delete()
    with pytest.raises(CredentialNotFound):
        await safe.delete()
    with pytest.raises(CredentialNotFound):
        await safe.get()
    await safe.agree()


async def test_a_name_is_free_again_once_its_credential_is_deleted(safe: KeySafe) -> None:
    first = await safe.create()
    with pytest.raises(CredentialExists):
        await safe.create(secret=b"some other secret")
    await safe.delete()
    second = await safe.create(secret=b"some other secret")
    assert second.credential_id != first.credential_id and await safe.secret(second) == b"some other secret"


async def test_a_secret_is_stored_as_it_is(safe: KeySafe) -> None:
    secret = bytes(range(1, 256)) + b"\n"
    assert await safe.secret(await safe.create(secret=secret)) == secret


async def test_the_largest_secret_fits(safe: KeySafe) -> None:
    secret = b"x" * 64 * 1024
    assert await safe.secret(await safe.create(secret=secret)) == secret


async def test_replacing_checks_what_the_kind_demands(safe: KeySafe) -> None:
    await safe.create(kind=Kind.DOMAIN_ACCOUNT, username="admin", domain="CORP")
    with pytest.raises(InvalidArgument) as caught:
        await safe.replace(username="", domain=" ", secret=b"short")
    assert [each.field for each in caught.value.violations] == ["username", "domain", "value.secret"]
    found = await safe.get()
    assert (found.version, found.intent, found.username) == (1, None, "admin")


async def test_replacing_another_version_is_refused(safe: KeySafe) -> None:
    await safe.create()
    await safe.replace(version=1)
    with pytest.raises(CredentialChanged) as caught:
        await safe.replace(version=1)
    assert caught.value.condition == "VERSION"
    assert (await safe.get()).version == 2


async def test_of_replacements_at_once_each_ends_with_an_answer_that_holds(safe: KeySafe) -> None:
    await safe.create()
    tries = [safe.replace(secret=b"candidate %02d" % number) for number in range(8)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(each, CredentialChanged) or not isinstance(each, BaseException) for each in answers)
    won = [(number, each) for number, each in enumerate(answers) if not isinstance(each, BaseException)]
    assert won and (await safe.get()).version == 1 + len(won)
    last = max(won, key=lambda each: each[1].version)
    assert await safe.secret(await safe.get()) == b"candidate %02d" % last[0]
    await safe.agree()


async def test_of_creations_at_once_under_one_name_one_wins(safe: KeySafe) -> None:
    tries = [safe.create(secret=b"candidate %02d" % number) for number in range(6)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(each, CredentialExists) for each in answers) == 5
    await safe.agree()


async def test_a_deletion_during_a_creation_leaves_no_value(safe: KeySafe, cut: CutAt) -> None:
    cut("credentials.created")
    with pytest.raises(Cut):
        await safe.create()
    cut("")
    (pending,) = await safe.all()
    await safe.delete()
    # The write that was under way gets there after all.
    await safe.put_late(pending.credential_id, SECRET, 0)
    await safe.sweep()
    await safe.agree()


# --- retries ---


async def test_a_repeated_creation_gives_the_same_credential(safe: KeySafe) -> None:
    made = await safe.create(request_id="r")
    assert await safe.create(request_id="r") == made
    await safe.replace()
    assert (await safe.create(request_id="r")).version == 2
    with pytest.raises(RequestIdReused):
        await safe.create(request_id="r", secret=b"another secret")
    with pytest.raises(RequestIdReused):
        await safe.create(request_id="r", fingerprint=b"another request")
    # Of another caller, it is another id.
    with pytest.raises(CredentialExists):
        await safe.create(request_id="r", by="bob")


async def test_the_passphrase_belongs_to_what_is_compared(safe: KeySafe) -> None:
    made = await safe.create(request_id="r")
    stored = await safe.values.get(made.credential_id)
    assert stored is not None and not stored.value.same(Secret(SECRET, b"passphrase"))
    assert stored.value.same(Secret(SECRET))


async def test_a_repeated_creation_of_what_was_deleted_since_makes_nothing(safe: KeySafe) -> None:
    await safe.create(request_id="r")
    await safe.delete()
    with pytest.raises(CredentialNotFound):
        await safe.create(request_id="r")


async def test_repeated_creations_at_once_make_one_credential(safe: KeySafe) -> None:
    made = await asyncio.gather(*(safe.create(request_id="r") for _ in range(6)))
    assert len({each.credential_id for each in made}) == 1
    assert {each.state for each in made} == {State.READY}
    await safe.agree()


@pytest.mark.parametrize("gap", ["credentials.created", "credentials.stored"])
async def test_a_repeated_creation_goes_on_where_it_was_cut(safe: KeySafe, cut: CutAt, gap: str) -> None:
    cut(gap)
    with pytest.raises(Cut):
        await safe.create(request_id="r")
    cut("")
    assert (await safe.get()).state is State.PENDING
    made = await safe.create(request_id="r")
    assert (made.state, made.version) == (State.READY, 1) and await safe.secret(made) == SECRET
    assert len(await safe.all()) == 1
    await safe.agree()


async def test_a_repeated_creation_with_another_secret_does_not_go_on(safe: KeySafe, cut: CutAt) -> None:
    cut("credentials.stored")
    with pytest.raises(Cut):
        await safe.create(request_id="r")
    cut("")
    with pytest.raises(RequestIdReused):
        await safe.create(request_id="r", secret=b"another secret")
    await safe.sweep()
    assert await safe.secret(await safe.get()) == SECRET


# --- each gap, and the reconciler ---


async def test_a_creation_that_was_cut_before_vault_is_taken_back(safe: KeySafe, cut: CutAt) -> None:
    cut("credentials.created")
    with pytest.raises(Cut):
        await safe.create(request_id="r")
    cut("")
    await Reconciler(safe.database, safe.values, Limits()).sweep()
    assert (await safe.get()).state is State.PENDING, "what is young may still be under way"
    await safe.sweep()
    with pytest.raises(CredentialNotFound):
        await safe.get()
    await safe.agree()
    # Neither the name nor the request id is used up.
    assert (await safe.create(request_id="r")).state is State.READY
    await safe.agree()


async def test_a_creation_that_was_cut_after_vault_is_finished(safe: KeySafe, cut: CutAt) -> None:
    cut("credentials.stored")
    with pytest.raises(Cut):
        await safe.create()
    await safe.sweep()
    found = await safe.get()
    assert found.state is State.READY and await safe.secret(found) == SECRET
    await safe.agree()


async def test_a_replacement_that_was_cut_before_vault_is_taken_back(safe: KeySafe, cut: CutAt) -> None:
    await safe.create()
    cut("credentials.replacing")
    with pytest.raises(Cut):
        await safe.replace(description="new")
    await safe.sweep()
    found = await safe.get()
    assert (found.version, found.description) == (1, "") and await safe.secret(found) == SECRET
    await safe.agree()


async def test_a_replacement_that_was_cut_after_vault_is_finished(safe: KeySafe, cut: CutAt) -> None:
    await safe.create()
    cut("credentials.replaced")
    with pytest.raises(Cut):
        await safe.replace(description="new")
    before = await safe.get()
    assert (before.version, before.description) == (1, "") and await safe.secret(before) == SECRET
    await safe.sweep()
    found = await safe.get()
    assert (found.version, found.description, found.updater) == (2, "new", "bob")
    assert await safe.secret(found) == b"another secret"
    await safe.agree()


@pytest.mark.parametrize("gap", ["credentials.deleting", "credentials.erased"])
async def test_a_deletion_that_was_cut_is_finished(safe: KeySafe, cut: CutAt, gap: str) -> None:
    await safe.create()
    cut(gap)
    with pytest.raises(Cut):
        await safe.delete()
    cut("")
    assert (await safe.get()).state is State.DELETING
    with pytest.raises(CredentialNotFound):
        await safe.replace()
    with pytest.raises(CredentialExists):
        await safe.create()
    await safe.sweep()
    with pytest.raises(CredentialNotFound):
        await safe.get()
    await safe.agree()


async def test_a_deletion_that_was_cut_can_be_repeated(safe: KeySafe, cut: CutAt) -> None:
    await safe.create()
    cut("credentials.deleting")
    with pytest.raises(Cut):
        await safe.delete()
    cut("")
    await safe.delete()
    await safe.agree()


async def test_a_replacement_may_follow_one_that_was_cut(safe: KeySafe, cut: CutAt) -> None:
    await safe.create()
    for gap in ("credentials.replacing", "credentials.replaced"):
        cut(gap)
        with pytest.raises(Cut):
            await safe.replace()
    cut("")
    found = await safe.replace(secret=b"the one that counts")
    assert found.version == 2 and await safe.secret(found) == b"the one that counts"
    await safe.sweep()
    assert await safe.get() == found
    await safe.agree()


async def test_a_write_that_comes_late_is_never_used(safe: KeySafe) -> None:
    made = await safe.create()
    # The replacement was given up; its write gets there all the same.
    assert await safe.put_late(made.credential_id, b"given up long ago", 1) == 2
    assert await safe.secret(await safe.get()) == SECRET
    await safe.sweep()
    assert await safe.secret(await safe.get()) == SECRET
    replaced = await safe.replace()
    assert replaced.version == 2 and await safe.secret(replaced) == b"another secret"


async def test_reconcilers_at_once_change_nothing_twice(safe: KeySafe, cut: CutAt) -> None:
    for number in range(12):
        cut(("credentials.created", "credentials.stored")[number % 2])
        with pytest.raises(Cut):
            await safe.create(f"c-{number}")
    others = [Reconciler(safe.database, safe.values, Limits(interrupted=timedelta(0))) for _ in range(3)]
    await asyncio.gather(*(each.sweep() for each in others))
    await safe.sweep()
    assert sum(each.state is State.READY for each in await safe.all()) == 6
    await safe.agree()


# --- Vault away ---


async def test_nothing_is_left_of_a_creation_that_vault_refused(safe: KeySafe) -> None:
    safe.openbao.seal()
    with pytest.raises(VaultSealed) as caught:
        await safe.create(request_id="r")
    assert caught.value.retry_after
    with pytest.raises(CredentialNotFound):
        await safe.get()
    safe.openbao.unseal()
    made = await safe.create(request_id="r")
    assert made.state is State.READY
    await safe.sweep()
    await safe.agree()


async def test_a_creation_that_vault_was_too_slow_for_is_not_there_later(safe: KeySafe) -> None:
    vault = Vault(safe.openbao.settings(timeout_seconds=0.5))
    values = type(safe.values)(vault)
    try:
        await values.ids()  # logged in
        safe.openbao.kill(signal.SIGSTOP)
        with pytest.raises((VaultSlow, VaultUnreachable)):
            await credentials.create(safe.database, values, safe.creation(), "alice")
    finally:
        safe.openbao.kill(signal.SIGCONT)
        await vault.close()
    with pytest.raises(CredentialNotFound):
        await safe.get()
    await safe.sweep()
    await safe.sweep()
    await safe.agree()


async def test_nothing_changes_with_a_replacement_that_vault_refused(safe: KeySafe) -> None:
    await safe.create()
    safe.openbao.seal()
    with pytest.raises(VaultSealed):
        await safe.replace(description="new")
    safe.openbao.unseal()
    found = await safe.get()
    assert (found.version, found.description, found.intent) == (1, "", None)
    assert await safe.secret(found) == SECRET
    await safe.agree()


class Late(Values):
    """Does what it is asked for; that it was done is lost on the way."""

    async def put(self, credential_id: UUID, value: Secret, intent: UUID, after: int) -> int:
        await super().put(credential_id, value, intent, after)
        raise VaultSlow("https://vault.invalid", 5.0)


async def test_a_replacement_of_unknown_outcome_is_finished_by_the_reconciler(safe: KeySafe) -> None:
    await safe.create()
    safe.values = Late(safe.vault)
    with pytest.raises(VaultSlow) as caught:
        await safe.replace(description="new")
    assert caught.value.message.endswith(
        "; whether credential 'web' was replaced shows within minutes of its return: look at it then, or repeat this"
        " with version 1"
    )
    assert caught.value.retry_after
    before = await safe.get()
    assert (before.version, before.description) == (1, "") and await safe.secret(before) == SECRET
    safe.values = Values(safe.vault)
    await safe.sweep()
    found = await safe.get()
    assert (found.version, found.description, found.updater) == (2, "new", "bob")
    assert await safe.secret(found) == b"another secret"
    with pytest.raises(CredentialChanged):
        await safe.replace(version=1)
    await safe.agree()


async def test_a_replacement_of_unknown_outcome_can_be_repeated_at_once(safe: KeySafe) -> None:
    await safe.create()
    safe.values = Late(safe.vault)
    with pytest.raises(VaultSlow):
        await safe.replace(version=1)
    safe.values = Values(safe.vault)
    assert (await safe.replace(version=1)).version == 2
    await safe.sweep()
    assert (await safe.get()).version == 2
    await safe.agree()


@pytest.mark.parametrize("tries", [4, 5, 6, 12, 30])
async def test_the_value_that_counts_outlives_any_number_of_slow_replacements(safe: KeySafe, tries: int) -> None:
    await safe.create()
    safe.values = Late(safe.vault)
    for _ in range(tries):
        with pytest.raises(VaultSlow):
            await safe.replace()
    found = await safe.get()
    assert (found.version, found.state) == (1, State.READY) and await safe.secret(found) == SECRET
    safe.values = Values(safe.vault)
    assert (await safe.leases(await safe.enrol(), "web"))[0].value.secret == SECRET
    replaced = await safe.replace()
    assert replaced.version == 2 and await safe.secret(replaced) == b"another secret"
    await safe.agree()


async def test_the_value_that_counts_outlives_writes_that_come_late(safe: KeySafe) -> None:
    made = await safe.create()
    # Each was superseded before it got there.
    for number in range(1, 9):
        await safe.put_late(made.credential_id, b"given up long ago", number)
    safe.openbao.seal()
    with pytest.raises(VaultSealed):
        await safe.replace()
    safe.openbao.unseal()
    safe.values = Late(safe.vault)
    for _ in range(4):
        with pytest.raises(VaultSlow):
            await safe.replace()
        assert await safe.secret(await safe.get()) == SECRET


async def test_a_deletion_waits_for_vault(safe: KeySafe) -> None:
    await safe.create()
    safe.openbao.seal()
    with pytest.raises(VaultSealed):
        await safe.delete()
    assert (await safe.get()).state is State.DELETING
    safe.openbao.unseal()
    await safe.sweep()
    await safe.agree()
    with pytest.raises(CredentialNotFound):
        await safe.get()


async def test_the_reconciler_is_quiet_while_vault_is_away(safe: KeySafe, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reconciler")
    await safe.create()
    await safe.execute("UPDATE credentials.credentials SET state = 'DELETING'")
    safe.openbao.seal()
    for _ in range(20):
        await safe.reconciler.sweep()
    told = [each.getMessage() for each in caplog.records if each.name == "reconciler"]
    assert told == ["what needs Vault is put off: Vault is sealed; unseal it, then what waits for it goes on by itself"]
    safe.openbao.unseal()
    async with asyncio.timeout(10):
        while "Vault is there again" not in caplog.messages:
            await safe.reconciler.sweep()
            await asyncio.sleep(0.1)
    await safe.agree()


async def test_the_reconciler_complains_of_each_rule_by_itself(
    safe: KeySafe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails is not over because another one succeeds."""
    caplog.set_level(logging.INFO, "reconciler")

    async def refused(*_: object) -> int:
        raise unavailable("postgresql", "PostgreSQL", Trouble("PERMISSION_DENIED", "it does not permit it"))

    with monkeypatch.context() as patch:
        patch.setattr(reconciler_store, "purge", refused)
        patch.setattr(reconciler_store, "missing", refused)
        for _ in range(3):
            await safe.reconciler.sweep()
    await safe.reconciler.sweep()
    await safe.reconciler.sweep()
    told = [each.getMessage() for each in caplog.records if each.name == "reconciler"]
    assert [each for each in told if "nothing is" in each] == [
        "nothing is purged: waiting for PostgreSQL: it does not permit it; try again",
        "nothing is settled with Vault: waiting for PostgreSQL: it does not permit it; try again",
        "over: nothing is purged",
        "over: nothing is settled with Vault",
    ]


# --- what Vault has lost, and what PostgreSQL has ---


async def test_a_value_that_vault_has_lost_is_missed_and_found_again(safe: KeySafe) -> None:
    lost, kept = await safe.create("lost"), await safe.create("kept")
    await safe.values.remove(lost.credential_id)
    await safe.sweep()
    assert (await safe.get("lost")).state is State.VALUE_MISSING
    assert (await safe.get("kept")).state is State.READY
    await safe.put_late(lost.credential_id, SECRET, 0)  # Vault was restored
    await safe.sweep()
    assert (await safe.get("lost")).state is State.READY
    assert await safe.secret(await safe.get("kept")) == SECRET and kept.version == 1


async def test_a_credential_without_a_value_can_be_replaced_and_deleted(safe: KeySafe) -> None:
    for name in ("replaced", "deleted"):
        made = await safe.create(name)
        await safe.values.remove(made.credential_id)
    await safe.sweep()
    replaced = await safe.replace("replaced")
    assert (replaced.state, replaced.version) == (State.READY, 2)
    assert await safe.secret(replaced) == b"another secret"
    await safe.delete("deleted")
    await safe.agree()


async def test_values_that_no_row_knows_are_named_and_left_alone(
    safe: KeySafe, caplog: pytest.LogCaptureFixture
) -> None:
    made = await safe.create()
    await safe.execute("DELETE FROM credentials.credentials")  # an old database was restored
    await safe.sweep()
    (warning,) = [each for each in caplog.records if "belong to no credential" in each.getMessage()]
    assert warning.levelname == "WARNING" and "credential_ids" in vars(warning)
    assert made.credential_id in await safe.values.ids()


async def test_a_value_of_a_deleted_credential_is_removed(safe: KeySafe) -> None:
    made = await safe.create()
    await safe.delete()
    await safe.put_late(made.credential_id, SECRET, 0)
    await safe.sweep()
    await safe.agree()


async def test_a_scan_keeps_no_more_than_a_page(
    safe: KeySafe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows of what was deleted in a year are many more than the credentials that there are."""
    strange = await safe.values.ids() | {uuid4()}
    lost, late, whole = [await safe.create(name) for name in ("lost", "late", "whole")]
    await safe.values.remove(lost.credential_id)
    await safe.delete("late")
    await safe.execute(
        "INSERT INTO credentials.credentials"
        " SELECT (jsonb_populate_record(c, jsonb_build_object('credential_id', gen_random_uuid()))).*"
        " FROM credentials.credentials c, generate_series(1, 3500) WHERE c.name = 'late'"
    )
    for credential_id in strange - await safe.values.ids() | {late.credential_id}:
        await safe.put_late(credential_id, SECRET, 0)
    rows = [row[0] for row in await safe.execute("SELECT credential_id FROM credentials.credentials ORDER BY 1")]
    assert len(rows) == 3_503
    read, asked, kept, states = WeakSet[UUID](), list[int](), list[int](), reconciler_store.states

    async def noted(connection: AsyncConnection, after: UUID) -> dict[UUID, State]:
        asked.append(after.int)
        kept.append(len(read))
        page = await states(connection, after)
        read.update(page)
        return page

    monkeypatch.setattr(reconciler_store, "states", noted)
    assert not await safe.reconciler.scan()
    assert asked == [0, *(rows[number].int for number in (999, 1_999, 2_999, -1))]
    assert max(kept) <= 1_000 + len((lost, late)), "a page, and what is to be mended"
    (warning,) = [each for each in caplog.records if "belong to no credential" in each.getMessage()]
    assert f" {len(strange)} values " in warning.getMessage()
    assert await safe.values.ids() == strange | {whole.credential_id}
    assert [(await safe.get(name)).state for name in ("lost", "whole")] == [State.VALUE_MISSING, State.READY]


async def test_what_somebody_else_wrote_into_vault_does_not_count(safe: KeySafe) -> None:
    made = await safe.create()
    await safe.vault.write(f"credentials/{made.credential_id}", {"secret": "not base64!"}, 1)
    assert await safe.values.get(made.credential_id) is None
    assert await safe.secret(made) == SECRET


# --- credentials for one job ---


async def test_a_credential_for_one_job_that_no_job_binds_is_deleted(safe: KeySafe) -> None:
    made = await safe.create("typed", for_one_job=True)
    assert made.expires_at is not None and made.expires_at - made.created_at == credentials.ONE_JOB_LIFETIME
    await safe.sweep()
    assert (await safe.get("typed")).state is State.READY
    await safe.execute("UPDATE credentials.credentials SET expires_at = now()")
    with pytest.raises(CredentialNotFound):
        await safe.bind("typed", 7)
    await safe.sweep()
    with pytest.raises(CredentialNotFound):
        await safe.get("typed")
    await safe.agree()


async def test_a_bound_credential_does_not_expire(safe: KeySafe) -> None:
    await safe.create("typed", for_one_job=True)
    bound = await safe.bind("typed", 7)
    assert (bound.job_id, bound.expires_at) == (7, None)
    assert await safe.bind("typed", 7) == bound
    with pytest.raises(CredentialChanged) as caught:
        await safe.bind("typed", 8)
    assert caught.value.condition == "OTHER_JOB"
    await safe.create("shared")
    with pytest.raises(CredentialChanged) as caught:
        await safe.bind("shared", 7)
    assert caught.value.condition == "NOT_FOR_ONE_JOB"
    with pytest.raises(CredentialNotFound):
        await safe.bind("unknown", 7)


async def test_the_list_shows_those_for_one_job_only_if_asked(safe: KeySafe) -> None:
    await safe.create("typed", for_one_job=True)
    await safe.create("b")
    await safe.create("A")
    found, more = await credentials.list_page(safe.database, "", 2, for_one_job=False)
    assert ([each.name for each in found], more) == (["A", "b"], False)
    found, more = await credentials.list_page(safe.database, "A", 1, for_one_job=True)
    assert ([each.name for each in found], more) == (["b"], True)


# --- what is old ---


async def test_what_is_old_is_forgotten(safe: KeySafe) -> None:
    await safe.create("deleted", request_id="r")
    await safe.delete("deleted")
    await safe.create("kept", request_id="s")
    await safe.sweep()
    assert len(await safe.all()) == 2
    for table, column in (("credentials", "deleted_at"), ("request_ids", "created_at")):
        await safe.execute(f"UPDATE credentials.{table} SET {column} = {column} - interval '399 days'")
    await safe.sweep()
    assert len(await safe.all()) == 2
    assert await safe.execute("SELECT * FROM credentials.request_ids") == []
    await safe.execute("UPDATE credentials.credentials SET deleted_at = deleted_at - interval '2 days'")
    await safe.sweep()
    assert [each.name for each in await safe.all()] == ["kept"]
