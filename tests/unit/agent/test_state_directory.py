"""Which trouble an agent waits for to pass before it takes jobs again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from services.sis_agent.agent.errors import JournalUnwritable
from services.sis_agent.agent.state_directory import StateDirectory


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        JournalUnwritable("the journal cannot be written: Input/output error"),
    ],
)
def test_want_of_room_is_the_trouble_of_all(tmp_path: Path, error: OSError | JournalUnwritable) -> None:
    state = StateDirectory(tmp_path)
    assert state.failed(error)
    assert state.full
    state.look()
    assert not state.full
    assert list(tmp_path.iterdir()) == []


def test_what_was_large_waits_for_more_than_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for a job, but a package did not fit in."""
    free = 10 << 20
    monkeypatch.setattr(StateDirectory, "_free", lambda _: free)
    state = StateDirectory(tmp_path)
    assert state.failed(OSError(errno.ENOSPC, "No space left on device"), more=True)
    state.look()
    assert state.full
    free += 1
    state.look()
    assert not state.full
    assert state.failed(OSError(errno.ENOSPC, "No space left on device"))
    free = 1 << 20
    state.look()
    assert not state.full, "what is small fits in again"


@pytest.mark.parametrize("number", [errno.EIO, errno.EISDIR, errno.EACCES, errno.EMFILE, None])
def test_what_cannot_be_read_is_no_want_of_room(
    tmp_path: Path, number: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    state = StateDirectory(tmp_path)
    assert not state.failed(OSError(number, "no") if number else OSError("no"))
    assert not state.full
    assert not caplog.records
