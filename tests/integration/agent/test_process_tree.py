"""Processes as /proc shows them, and signals that hit no stranger."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from services.sis_agent.agent.linux import cgroup_mounts, cgroup_tree, processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_is_described(sleeper: subprocess.Popen[bytes]) -> None:
    process = processes.read(sleeper.pid)
    assert process is not None
    assert (process.pid, process.parent_pid, process.session) == (sleeper.pid, os.getpid(), os.getsid(0))
    assert process.alive
    assert not process.stopped
    assert abs(process.start_time - time.time()) < 5
    assert processes.identity(sleeper.pid) == processes.account_name(os.geteuid())
    assert process.key in {p.key for p in processes.descendants(processes.read_all(), [os.getpid()])}


def test_a_name_may_hold_anything() -> None:
    code = r"open('/proc/self/comm', 'wb').write(b') R 1 (\xff\n 2'); print('on', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        assert child.stdout is not None
        child.stdout.readline()
        process = processes.read(child.pid)
        assert process is not None
        assert process.parent_pid == os.getpid()
        assert process.name.startswith(b") R 1 (\xff\n")
        child.kill()


def test_another_process_with_the_same_id_is_not_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    process = processes.read(sleeper.pid)
    assert process is not None
    earlier = dataclasses.replace(process, start_ticks=process.start_ticks - 1)
    assert not processes.send_signal(earlier, signal.SIGKILL)
    assert sleeper.poll() is None
    assert processes.send_signal(process, signal.SIGKILL)
    assert sleeper.wait() == -signal.SIGKILL
    assert not processes.send_signal(process, signal.SIGKILL)


def test_a_zombie_is_neither_alive_nor_signalled() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    process = processes.read(child)
    assert process is not None
    assert not process.alive
    assert not processes.send_signal(process, signal.SIGTERM)
    os.waitpid(child, 0)
    assert processes.read(child) is None


def test_a_process_whose_first_thread_has_ended_is_alive() -> None:
    code = """
import ctypes, threading, time
threading.Thread(target=lambda: (print("on", flush=True), time.sleep(60))).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + 20
        while (process := processes.read(child.pid)) is not None and process.state != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process is not None
        assert process.alive
        assert processes.send_signal(process, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def test_the_environment_is_searched_for_whole_entries() -> None:
    with subprocess.Popen(["sleep", "60"], env={"SIS_ATTEMPT": "1.1.abc"}) as child:
        deadline = time.monotonic() + 20
        # Empty for a moment while it execs.
        while not processes.environment_has(child.pid, b"SIS_ATTEMPT=1.1.abc"):
            assert time.monotonic() < deadline
        assert not processes.environment_has(child.pid, b"SIS_ATTEMPT=1.1.ab")
        child.kill()
    assert not processes.environment_has(child.pid, b"SIS_ATTEMPT=1.1.abc")


@pytest.mark.root
def test_what_belongs_to_another_account_is_not_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    process = processes.read(sleeper.pid)
    assert process is not None
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
        try:
            processes.send_signal(process, signal.SIGKILL)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sleeper.poll() is None


@pytest.mark.root
def test_a_cgroup_can_be_had() -> None:
    assert cgroup_tree.available()
    home = cgroup_mounts.own_cgroup()
    assert home is not None
    assert not list(home.glob("sis-trial-*"))


@pytest.mark.root
def test_no_cgroup_can_be_had_by_everybody() -> None:
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        os._exit(int(cgroup_tree.available()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
