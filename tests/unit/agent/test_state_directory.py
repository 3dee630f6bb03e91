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


def test_while_somebody_waits_for_more_room_no_job_is_taken(tmp_path: Path) -> None:
    """There is room for a job, but a package did not fit in."""
    state = StateDirectory(tmp_path)
    assert state.failed(OSError(errno.ENOSPC, "No space left on device"))
    state.waiting.add("a package")
    state.look()
    assert state.full
    state.waiting.clear()
    assert state.full, "nobody has looked since"
    state.look()
    assert not state.full


@pytest.mark.parametrize("number", [errno.EIO, errno.EISDIR, errno.EACCES, errno.EMFILE, None])
def test_what_cannot_be_read_is_no_want_of_room(
    tmp_path: Path, number: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    state = StateDirectory(tmp_path)
    assert not state.failed(OSError(number, "no") if number else OSError("no"))
    assert not state.full
    assert not caplog.records
