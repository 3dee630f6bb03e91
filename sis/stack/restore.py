"""`sis restore`: a backup becomes the stack of a data directory that has none.

All of it is built aside, beside what is there, and put in its place at the end: whatever interrupts it, no stack can
start on half of it, or on a database that was not put right (`recover`). What was interrupted at the very end is
finished by the next restore.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sis.paths import expanded
from sis.private_files import make_private, sync_directory, write_private
from sis.stack import postgres, processes
from sis.stack import settings as choices
from sis.stack import state as states
from sis.stack.backup import DUMP_SECONDS, SNAPSHOT_SECONDS
from sis.stack.backup_directory import FILES, BackupDirectory, copy_private
from sis.stack.commands import Services, token_sha256
from sis.stack.errors import StackError, refusals
from sis.stack.layout import JOINING, Layout
from sis.stack.openbao import STOP_SECONDS, OpenBao
from sis.stack.ports import Reservations
from sis.stack.postgres import DATABASE, Postgres
from sis.stack.processes import Child
from sis.stack.replicas import Ports
from sis.stack.settings import Options, Settings
from sis.stack.state import Purpose

_START_SECONDS = 60.0
_RECOVERY_SECONDS = 3600.0
_LOOK_SECONDS = 0.05


def restore(data: Path, source: Path, say: Callable[[str], None] = print) -> None:
    """Restore the backup at `source` into `data`, which must have neither a database nor an OpenBao. The state of
    agents that is there stays. Nothing runs when it returns.

    Raises:
        StackError: it cannot be done; then `data` is as it was. Where what was made could not all be moved to its
            place, no stack starts until this was repeated.
    """
    with refusals():
        os.umask(0o077)
        layout = Layout(data.expanduser().absolute())
        layout.create()
        with states.lock(layout, Purpose.RESTORE):
            _restore(layout, BackupDirectory(expanded(source).absolute()), say)


def _restore(layout: Layout, found: BackupDirectory, say: Callable[[str], None]) -> None:
    if states.read(layout) is not None:
        raise StackError(f"something of a stack may still run in {layout.data}: run `sis down` first")
    if layout.restored.exists():
        _put_in_place(layout, say)
        return
    for path in (layout.cluster, layout.vault):
        if path.exists() and any(path.iterdir()):
            raise StackError(f"{path} is there already: move it away, then restore again")
    manifest = found.check()
    if postgres.major() < manifest.postgresql:
        raise StackError(
            f"PostgreSQL here is {postgres.major()}, and the backup is of {manifest.postgresql}: install that, or newer"
        )
    building = Layout(layout.restoring)
    shutil.rmtree(building.data, ignore_errors=True)
    building.create()
    try:
        for words in _build(building, found):
            say(words)
        told = f"what was acknowledged before {manifest.begun_at:%Y-%m-%d %H:%M:%S} UTC, of {found.path}"
        write_private(layout.restored, told.encode())
    except BaseException:
        shutil.rmtree(building.data, ignore_errors=True)
        raise
    _put_in_place(layout, say)


def _build(building: Layout, found: BackupDirectory) -> Iterator[str]:
    """Make everything, and let nothing of it run when it ends; gives the words of what was put right."""
    for name in FILES:
        if not name.startswith(("vault/", "tls/")):
            copy_private(found.file(name), building.data / name)
    copy_private(found.file("vault/unseal.key"), building.vault / "unseal.key")
    with Reservations() as reservations, postgres.running(building.data) as server:
        # Those of the backup are for the stack that will run; here it is enough to be out of everybody's way.
        ports, settings = Ports.take(Settings(), reservations)
        vault = OpenBao(building.vault, ports.vault, ports.vault_cluster, building.log("vault"))
        tokens = {name: building.join_token(name) for name in JOINING}
        joins = {name: token_sha256(path.read_text(encoding="ascii").strip()) for name, path in tokens.items()}
        admin = token_sha256(building.token.read_text(encoding="ascii").strip())
        services = Services(building, settings, ports, vault, server.url(), admin, joins)
        vault.initialise()
        with _running(vault):
            processes.answer(services.vault_bootstrap(), _START_SECONDS)
            _restore_vault(vault, found)
        for name in FILES:
            copy_private(found.file(name), building.data / name)
        _restore_database(server, found)
        for command in services.recoveries():
            yield f"{command.name.removesuffix(' recover')}: {processes.answer(command, _RECOVERY_SECONDS)}"
    choices.load(building, Options(building.data))  # what it refuses would keep the stack from starting


@contextmanager
def _running(vault: OpenBao) -> Iterator[None]:
    child = Child(vault.command())
    try:
        _await(vault.answers, "OpenBao does not answer", vault)
        yield
    finally:
        child.stop(STOP_SECONDS)
        child.close()


def _restore_vault(vault: OpenBao, found: BackupDirectory) -> None:
    """Replace a storage that has just been made. It takes over the one seal key that both have."""
    token = str(json.loads(vault.keys.read_bytes())["root_token"])
    load = ("operator", "raft", "snapshot", "restore", "-force", str(found.snapshot))
    processes.answer(vault.client(*load, token=token), SNAPSHOT_SECONDS)
    _await(vault.ready, "OpenBao does not open what was restored", vault)
    former = str(json.loads(found.file("vault/keys.json").read_bytes())["root_token"])
    processes.answer(vault.client("token", "lookup", "-format=json", token=former), _START_SECONDS)


def _restore_database(server: Postgres, found: BackupDirectory) -> None:
    server.create_database()
    load = ("--exit-on-error", "--no-owner", "--no-privileges", f"--dbname={DATABASE}", str(found.dump))
    processes.answer(server.client("pg_restore", *load), DUMP_SECONDS)
    # The first jobs should not be planned by guesses.
    processes.answer(server.client("vacuumdb", "--analyze-only", "--quiet", DATABASE), DUMP_SECONDS)


def _await(holds: Callable[[], bool], problem: str, vault: OpenBao) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise StackError(f"{problem}{processes.last_words(vault.log)}")
        time.sleep(_LOOK_SECONDS)


def _put_in_place(layout: Layout, say: Callable[[str], None]) -> None:
    """Move what was made. May be interrupted, and be done again: until the end, `restored` keeps everybody off."""
    building = Layout(layout.restoring)
    told = layout.restored.read_text()
    for name in FILES:
        if not name.startswith("vault/") and (building.data / name).exists():
            make_private((layout.data / name).parent)
            (building.data / name).replace(layout.data / name)
    for made, place in ((building.vault, layout.vault), (building.cluster, layout.cluster)):
        if made.exists():
            if place.exists():
                place.rmdir()
            made.rename(place)
    for directory in (layout.tls, layout.data / "join", layout.data):
        sync_directory(directory)
    layout.restored.unlink()
    shutil.rmtree(building.data, ignore_errors=True)
    say(f"restored: {told}; start it with `sis up`")
