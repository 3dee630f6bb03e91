"""A restore that was killed while it moved what it had made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sis.private_files import write_private
from sis.stack import Options, StackError, restore, up
from sis.stack.backup_directory import FILES
from sis.stack.layout import Layout

# In the order in which they are moved.
PLACES = [*(name for name in FILES if not name.startswith("vault/")), "vault/keys.json", "postgres/PG_VERSION"]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Whoever starts or restores a stack sets it."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.parametrize("moved", range(len(PLACES) + 1))
def test_no_stack_starts_on_half_of_it_and_the_next_restore_finishes_it(tmp_path: Path, moved: int) -> None:
    layout = Layout(tmp_path / "data")
    building = Layout(layout.restoring)
    for number, name in enumerate(PLACES):
        write_private((layout if number < moved else building).data / name, name.encode())
    write_private(layout.restored, b"a backup")
    with pytest.raises(StackError, match="a restore was interrupted"):
        up(Options(layout.data))
    said: list[str] = []
    restore(layout.data, tmp_path / "of no account", said.append)
    assert said == ["restored: a backup; start it with `sis up`"]
    assert [(layout.data / name).read_bytes() for name in PLACES] == [name.encode() for name in PLACES]
    assert not layout.restoring.exists()
