"""`sis backup`: PostgreSQL and OpenBao of a stack that is up, together.

PostgreSQL first: then whatever credential the dump calls ready has its value in the snapshot, which is later; what was
stored in between has a value without a row, which the credential service leaves alone and names. The other way round, a
credential that was replaced in between would have lost its value altogether.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from sis.paths import expanded
from sis.private_files import make_private, sync_directory
from sis.stack import processes
from sis.stack import state as states
from sis.stack.backup_directory import FILES, BackupDirectory, copy_private
from sis.stack.errors import StackError, refusals
from sis.stack.layout import Layout
from sis.stack.openbao import OpenBao
from sis.stack.postgres import DATABASE, Postgres, major
from sis.stack.state import StackState

DUMP_SECONDS = 6 * 3600.0
SNAPSHOT_SECONDS = 600.0


def backup(data: Path, target: Path, say: Callable[[str], None] = print) -> None:
    """Make a backup of the stack in `data` at `target`, which must not be there yet. Jobs go on meanwhile.

    Raises:
        StackError: the stack is not up, or something failed; then there is nothing at `target`.
    """
    with refusals():
        layout = Layout(data.expanduser().absolute())
        _backup(layout, expanded(target).absolute(), say)


def _backup(layout: Layout, target: Path, say: Callable[[str], None]) -> None:
    state = states.read(layout)
    if state is None or not state.started or states.holder(layout) is None:
        raise StackError(f"no stack is up in {layout.data}; start it first: `sis up --detach`")
    if target.exists():
        raise StackError(f"{target} is there already; name a directory that is not, one for each backup")
    if layout.data == target or layout.data in target.parents:
        raise StackError(f"{target} is inside of what it is a backup of; name another place")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    make_private(part)
    part.chmod(0o700)
    try:
        _fill(layout, state, BackupDirectory(part))
        part.rename(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    say(f"backup: {target}, {size / 1e6:.1f} MB; whoever can read it has the secrets: keep it as you keep them")


def _fill(layout: Layout, state: StackState, found: BackupDirectory) -> None:
    server = Postgres(layout.cluster, state.runtime, layout.log("backup"))
    vault = OpenBao(layout.vault, _port(state, "vault"), 0, layout.log("backup"))
    begun_at = datetime.now(UTC)
    dump = ("--format=custom", "--no-owner", "--no-privileges", "--lock-wait-timeout=30s", f"--file={found.dump}")
    processes.answer(server.client("pg_dump", *dump, DATABASE), DUMP_SECONDS)
    token = str(json.loads(vault.keys.read_bytes())["root_token"])
    # After the dump: see above.
    save = ("operator", "raft", "snapshot", "save", str(found.snapshot))
    processes.answer(vault.client(*save, token=token), SNAPSHOT_SECONDS)
    for name in FILES:
        copy_private(layout.data / name, found.file(name))
    for path in (found.dump, found.snapshot):
        path.chmod(0o600)
    found.seal(version=version("sis"), postgresql=major(), begun_at=begun_at)


def _port(state: StackState, kind: str) -> int:
    endpoint = next(process.endpoint for process in state.processes if process.kind == kind)
    return int(endpoint.rpartition(":")[2])
