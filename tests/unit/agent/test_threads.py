"""The agent's own threads: there from the start, and nothing that is hard to remove holds them up."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.sis_agent.agent import threads
from services.sis_agent.agent.errors import ThreadsRefused
from services.sis_agent.agent.threads import Removals, started


def test_all_are_there_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once payloads have used up what the machine permits, none can be added."""
    with started(5) as pool:
        monkeypatch.setattr(threading.Thread, "start", _refuse)
        gate = threading.Barrier(5)
        found = [pool.submit(gate.wait, 10) for _ in range(5)]
        assert sorted(each.result(10) for each in found) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("make", [lambda: started(3), Removals], ids=["pool", "removals"])
def test_where_there_is_no_room_it_is_said(monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    left = [None]
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        if not left:
            _refuse(thread)
        left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(ThreadsRefused, match=r"can't start new thread.*SIS_AGENT_SLOTS"):
        make()  # type: ignore[operator]


def _refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_what_is_wanted_is_removed(tmp_path: Path) -> None:
    removals = Removals()
    for n in range(5):
        (tmp_path / str(n) / "below").mkdir(parents=True)
        await removals.remove(tmp_path / str(n))
    await removals.remove(tmp_path / "none")
    removals.close()
    assert not list(tmp_path.iterdir())


async def test_a_fault_is_logged_and_the_next_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remove = threads.remove_tree

    def fail(path: Path) -> None:
        if path.name == "bad":
            raise ValueError("a fault")
        remove(path)

    monkeypatch.setattr(threads, "remove_tree", fail)
    removals = Removals()
    (tmp_path / "good").mkdir()
    for _ in range(4):
        await removals.remove(tmp_path / "bad")
    await removals.remove(tmp_path / "good")
    removals.close()
    assert "could not be removed" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_process_ends_in_the_midst_of_a_removal(tmp_path: Path) -> None:
    """An agent that was told to end has to let the next one have its state."""
    (tmp_path / "huge").mkdir()
    script = f"""
import asyncio, threading, time
from pathlib import Path
from services.sis_agent.agent import threads

begun = threading.Event()

def remove_tree(path):
    begun.set()
    time.sleep(600)

threads.remove_tree = remove_tree

async def main():
    removing = asyncio.create_task(threads.Removals().remove(Path({str(tmp_path / "huge")!r})))
    await asyncio.to_thread(begun.wait)
    removing.cancel()

asyncio.run(main())
print("ended", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "ended\n"
