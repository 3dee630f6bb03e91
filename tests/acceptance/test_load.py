"""Hundreds of jobs from 32 clients, over two hubs and four agents, with hubs killed: each ran exactly once."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sis.queue.v1 import job_pb2, job_service_pb2
from tests.support.numbered_job import shell_job, until
from tests.support.stack import Stack

CLIENTS = 32


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.long)])
def test_each_of_many_jobs_runs_exactly_once(tmp_path: Path, count: int) -> None:
    stack = Stack(tmp_path / "data")
    ran = tmp_path / "ran"
    over = threading.Event()
    dice = random.Random(20261122)

    def kill_hubs() -> int:
        kills = 0
        while not over.wait(dice.uniform(1.0, 3.0)):
            victim = dice.choice(["hub-1", "hub-2"])
            former = stack.pid(victim)
            stack.kill(victim)
            stack.wait_restarted(victim, former)
            kills += 1
        return kills

    try:
        stack.up("--replicas", "2", "--agents", "4", "--slots", "8")
        with stack.client() as client, ThreadPoolExecutor(CLIENTS + 1) as pool:
            killer = pool.submit(kill_hubs)
            script = f'echo "$SIS_JOB_ID" >> {ran}'
            requests = [shell_job(script, request_id=f"load {n}") for n in range(count)]
            try:
                created = list(pool.map(client.jobs.create, requests))
                ended = [job_pb2.RUN_STATE_SUCCEEDED, job_pb2.RUN_STATE_FAILED, job_pb2.RUN_STATE_HALTED]
                until(lambda: _count(client, ended) >= count, "the jobs to end", seconds=300)
            finally:
                over.set()
            assert killer.result() >= 1
            assert _count(client, [job_pb2.RUN_STATE_SUCCEEDED]) == count
            jobs = {job.job_id: job for page in client.jobs.pages(page_size=1_000) for job in page.jobs}
        times = Counter(map(int, ran.read_text().split()))
        assert set(times) == {job.job_id for job in created} == set(jobs)
        assert max(times.values()) == 1
        assert {job.agent for job in jobs.values()} == {"local-1", "local-2", "local-3", "local-4"}
    finally:
        stack.close()


def _count(client, run_states) -> int:  # type: ignore[no-untyped-def]
    wanted = job_service_pb2.JobFilter(run_states=run_states)
    return client.jobs.list(filter=wanted, page_size=1).total_size
