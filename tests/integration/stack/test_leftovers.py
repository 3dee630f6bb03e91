"""What a killed `sis up` leaves behind, and what is meant to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sis.stack import control, leftovers, processes
from sis.stack import state as states
from sis.stack.errors import StackError
from sis.stack.layout import Layout
from sis.stack.processes import Identity
from sis.stack.state import AlreadyUpError, ProcessState, Purpose, StackState
from sis.stack.status import status


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "data")
    layout.create()
    return layout


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


def _identity(process: subprocess.Popen[bytes]) -> Identity:
    identity = processes.identify(process.pid)
    assert identity is not None
    return identity


def _state(layout: Layout, *identities: Identity, boot_id: str | None = None) -> StackState:
    layout.token.write_text("token")
    (layout.tls / "ca.pem").write_text("")
    return StackState(
        boot_id=boot_id or processes.boot_id(),
        pid=1,
        start_ticks=1,
        credentials_endpoint="127.0.0.1:3",
        gateway_endpoints=("127.0.0.1:4",),
        enrolment_endpoint="127.0.0.1:4",
        vault_ca=layout.vault / "certificate.pem",
        runtime=layout.data / "runtime",
        started=True,
        queue_endpoint="127.0.0.1:1",
        hub_endpoint="127.0.0.1:2",
        ca=layout.tls / "ca.pem",
        token=layout.token,
        processes=tuple(
            ProcessState(
                name="local-1",
                kind="agent",
                pid=identity.pid,
                start_ticks=identity.start_ticks,
                endpoint="",
                log="",
                restarts=0,
            )
            for identity in identities
        ),
    )


def test_what_was_left_behind_is_ended(layout: Layout, sleeper: subprocess.Popen[bytes]) -> None:
    states.write(layout, _state(layout, _identity(sleeper)))
    said: list[str] = []
    assert control.down(layout.data, said.append) == 0
    assert sleeper.wait(20) == -signal.SIGTERM
    assert said == ["the stack is down; its `sis up` had been killed"]
    assert not layout.stack.exists()


@pytest.mark.parametrize("stale", ["another start time", "another boot"])
def test_whoever_has_the_pid_now_is_left_alone(layout: Layout, sleeper: subprocess.Popen[bytes], stale: str) -> None:
    identity = _identity(sleeper)
    if stale == "another boot":
        state = _state(layout, identity, boot_id="00000000-0000-0000-0000-000000000000")
    else:
        state = _state(layout, Identity(identity.pid, identity.start_ticks + 1))
    states.write(layout, state)
    found = status(layout.data)
    assert not found.healthy
    assert [process.health for process in found.processes] == ["dead"]
    leftovers.end(layout)
    assert sleeper.poll() is None


def test_the_endpoints_are_shown(layout: Layout) -> None:
    states.write(layout, _state(layout))
    assert json.loads(status(layout.data).to_json())["endpoints"] == {}  # nothing listens there
    states.write(layout, _state(layout, Identity(1, 1)))
    assert json.loads(status(layout.data).to_json())["endpoints"] == {
        "queue": "127.0.0.1:1",
        "hub": "127.0.0.1:2",
        "credentials": "127.0.0.1:3",
        "enrolment": "127.0.0.1:4",
        "gateway": "http://127.0.0.1:4",
    }


def test_a_damaged_file_is_as_good_as_none(layout: Layout) -> None:
    layout.stack.write_text('{"boot_id": 7}')
    assert states.read(layout) is None
    assert not status(layout.data).healthy


def test_only_one_holds_the_lock_and_it_ends_with_its_holder(layout: Layout) -> None:
    program = (
        "import sys; from pathlib import Path; from sis.stack import state; from sis.stack.layout import Layout\n"
        "with state.lock(Layout(Path(sys.argv[1]))):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, layout.data], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(AlreadyUpError, match=f"kept by PID {process.pid}"), states.lock(layout):
            pass
        holder = states.holder(layout)
        assert holder is not None
        assert holder.pid == process.pid
        process.kill()
    assert states.holder(layout) is None
    with states.lock(layout):
        holder = states.holder(layout)
        assert holder is not None
        assert holder.pid == os.getpid()


def test_nobody_is_named_whose_hold_is_over(layout: Layout) -> None:
    for purpose in Purpose:
        with states.lock(layout, purpose):
            pass
        assert states.keeper(layout) is None


def test_what_a_former_version_wrote_is_a_sis_up(layout: Layout) -> None:
    own = states.this_process()
    layout.lock.write_text(f"{processes.boot_id()} {own.pid} {own.start_ticks}\n")
    assert states.holder(layout) == states.keeper(layout) == own


@pytest.mark.parametrize(
    "words", ["", "1", "{boot} {pid} x", "{boot} {pid} {ticks} more", "{boot} {pid} {ticks} up up"]
)
def test_a_lock_that_cannot_be_read_names_nobody(layout: Layout, words: str) -> None:
    own = states.this_process()
    layout.lock.write_text(words.format(boot=processes.boot_id(), pid=own.pid, ticks=own.start_ticks))
    assert states.keeper(layout) is None


def test_one_down_does_not_end_another(layout: Layout) -> None:
    states.write(layout, _state(layout))
    told = f"a `sis down` is under way .PID {os.getpid()}.; wait for it"
    with states.lock(layout, Purpose.DOWN), pytest.raises(StackError, match=told):
        control.down(layout.data)
    assert states.holder(layout) is None


def test_payloads_that_go_on_are_named_and_those_that_ended_are_not(
    layout: Layout, sleeper: subprocess.Popen[bytes]
) -> None:
    identity = _identity(sleeper)
    for attempt, ticks, boot in (
        ("42.1", identity.start_ticks, processes.boot_id()),
        ("43.1", identity.start_ticks + 1, processes.boot_id()),
        ("44.1", identity.start_ticks, "another"),
    ):
        directory = layout.agents / "local-1" / "attempts" / attempt
        directory.mkdir(parents=True)
        known = {"pid": identity.pid, "start_ticks": ticks, "boot_id": boot}
        (directory / "supervisor.json").write_text(json.dumps(known))
    torn = layout.agents / "local-1" / "attempts" / "45.1"
    torn.mkdir()
    (torn / "supervisor.json").write_text("{")
    said: list[str] = []
    assert control.down(layout.data, said.append) == 0
    supervisor = f"its supervisor, PID {identity.pid}, of agent local-1"
    assert said == [
        f"no stack is up in {layout.data}",
        f"goes on: job 42 (attempt 1) under {supervisor}; the next `sis up` finds it again",
    ]
