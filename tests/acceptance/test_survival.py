"""A job goes on, whatever is killed: every line once, in order, one start."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from sis.queue.v1 import job_pb2
from tests.support.enrolled import enrolled_agent
from tests.support.numbered_job import NumberedJob, runs, shell_job, until
from tests.support.stack import Stack
from tests.support.stopping import stop


@pytest.mark.parametrize("victim", ["queue", "hub-1", "local-1", "postgres"])
def test_a_job_survives_kill_9_of(stack: Stack, tmp_path: Path, victim: str) -> None:
    with NumberedJob(stack.client, tmp_path) as job:
        job.wait_lines()
        former = stack.pid(victim)
        stack.kill(victim)
        stack.wait_restarted(victim, former)
        job.wait_lines()
        stack.wait_healthy()
        job.check()


def test_a_job_survives_kill_9_of_everything_in_turn(stack: Stack, tmp_path: Path) -> None:
    with NumberedJob(stack.client, tmp_path) as job:
        job.wait_lines()
        for victim in ("queue", "hub-1", "local-1", "postgres", "queue", "local-1"):
            former = stack.pid(victim)
            stack.kill(victim)
            stack.wait_restarted(victim, former)
        job.wait_lines()
        stack.wait_healthy()
        job.check()


def test_a_job_survives_processes_that_are_frozen_and_thawed(stack: Stack, tmp_path: Path) -> None:
    with NumberedJob(stack.client, tmp_path) as job:
        job.wait_lines()
        for victim in ("hub-1", "local-1", "queue"):
            stack.kill(victim, signal.SIGSTOP)
            stack.kill(victim, signal.SIGCONT)
            job.wait_lines()
        job.check()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_job_whose_agent_is_silent_is_awol_and_comes_home(stack: Stack, tmp_path: Path) -> None:
    """It has run all the while, and so its supervisor says."""
    with (
        enrolled_agent(stack, tmp_path / "agent", name="silent-1", group="silent") as agent,
        stack.client() as client,
        NumberedJob(
            stack.client, tmp_path / "job", site="group:silent", heartbeat_timeout=timedelta(seconds=60)
        ) as job,
    ):
        process = agent.start()
        job.wait_lines()
        assert stop(process.pid)
        try:
            until(lambda: client.jobs.get(job.job_id).status == job_pb2.JOB_STATUS_AWOL, "the sweeper", seconds=150)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        until(lambda: client.jobs.get(job.job_id).status == job_pb2.JOB_STATUS_RUNNING, "the homecoming")
        told = [(entry.event, entry.actor) for entry in client.jobs.history(job.job_id)]
        assert told[-2:] == [("SILENCE", "sweeper"), ("RETURN_RUNNING", "agent silent-1")]
        job.wait_lines()
        job.check()


@pytest.mark.long
def test_a_job_survives_down_and_up(stack: Stack, tmp_path: Path) -> None:
    with NumberedJob(stack.client, tmp_path) as job:
        job.wait_lines()
        number = job.job_id
        printed = stack.down()
        assert str(number) in printed, "sis down names the payloads that go on"
        stack.up()
    with stack.client() as client:
        until(lambda: client.jobs.get(number).status == job_pb2.JOB_STATUS_SUCCEEDED, "the end of the job")
        found = client.jobs.get(number)
        count = int(next(o.value for o in found.outputs if o.name == "result"))
        stored = b"".join(r.chunk.data for r in client.jobs.output(number) if r.HasField("chunk"))
    assert stored == b"".join(b"line %d\n" % n for n in range(1, count + 1))
    assert len((tmp_path / "starts").read_text().splitlines()) == 1
    assert found.attempt == 1
    assert found.log.verdict == job_pb2.LOG_VERDICT_COMPLETE


def test_a_killed_supervisor_fails_its_job_and_nothing_of_it_is_left(stack: Stack, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"""
        echo $$ >> {pids}
        (trap '' TERM; echo $(sh -c 'echo $PPID') >> {pids}; while :; do sleep 1; done) &
        setsid sh -c 'echo $$ >> {pids}; exec sleep 1000' &
        wait
    """
    with stack.client() as client:
        number = client.jobs.create(shell_job(script)).job_id
        until(lambda: pids.exists() and len(pids.read_text().splitlines()) == 3, "three processes")
        until(lambda: client.jobs.get(number).status == job_pb2.JOB_STATUS_RUNNING, "the job to run")
        supervisor = next(
            p.pid for p in client.jobs.get(number).processes if p.role == job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR
        )
        os.kill(supervisor, signal.SIGKILL)
        until(lambda: client.jobs.get(number).status == job_pb2.JOB_STATUS_FAILED, "the job to fail")
        job = client.jobs.get(number)
    assert job.failure_reason == "SUPERVISOR_LOST"
    assert job.stop_state == job_pb2.STOP_STATE_CONFIRMED
    assert job.stop_evidence.tree_empty
    assert job.stop_evidence.method in ("cgroup", "guardian")
    assert not job.stop_evidence.survivors
    for pid in map(int, pids.read_text().split()):
        assert not runs(pid), f"process {pid} is left"


def test_a_cancel_ends_a_tree_that_ignores_it(stack: Stack, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"""
        sh -c 'trap "" TERM; echo $$ >> {pids}; while :; do sleep 1; done' &
        setsid sh -c 'trap "" TERM; echo $$ >> {pids}; while :; do sleep 1; done' &
        echo $$ >> {pids}
        wait
    """
    with stack.client() as client:
        number = client.jobs.create(shell_job(script)).job_id
        until(lambda: pids.exists() and len(pids.read_text().splitlines()) == 3, "three processes")
        until(lambda: client.jobs.get(number).status == job_pb2.JOB_STATUS_RUNNING, "the job to run")
        assert client.jobs.cancel(number, reason="enough").status == job_pb2.JOB_STATUS_CANCEL_REQUESTED
        until(lambda: client.jobs.get(number).status == job_pb2.JOB_STATUS_CANCELED, "the job to be canceled")
        job = client.jobs.get(number)
        assert client.jobs.cancel(number).status == job_pb2.JOB_STATUS_CANCELED, "a cancel may be repeated"
    assert job.stop_state == job_pb2.STOP_STATE_CONFIRMED
    assert job.stop_evidence.tree_empty
    assert not job.stop_evidence.survivors
    signalled = {p.pid: list(p.signals) for p in job.stop_evidence.processes}
    for pid in map(int, pids.read_text().split()):
        assert not runs(pid)
        assert signalled[pid], f"process {pid} is in the evidence, with its signals"


def test_an_abort_needs_no_grace(stack: Stack, tmp_path: Path) -> None:
    with stack.client() as client:
        number = client.jobs.create(shell_job(f"trap '' TERM; touch {tmp_path}/up; while :; do sleep 1; done")).job_id
        until((tmp_path / "up").exists, "the payload")
        aborted = client.jobs.abort(number, reason="now")
        assert aborted.status == job_pb2.JOB_STATUS_ABORTED
        until(lambda: client.jobs.get(number).stop_state == job_pb2.STOP_STATE_CONFIRMED, "the evidence of the stop")
        job = client.jobs.get(number)
    assert job.status == job_pb2.JOB_STATUS_ABORTED
    assert job.stop_evidence.tree_empty
    assert job.log.verdict == job_pb2.LOG_VERDICT_COMPLETE
