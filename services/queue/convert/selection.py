"""Which jobs a request is about: by their ids, or by a filter."""

from __future__ import annotations

from collections.abc import Sequence

from services.queue.listing import JobFilter
from services.queue.states import RunState, Status
from services.queue.tables import JobType
from services.runtime.fields import Violations, members
from sis.queue.v1 import job_pb2, job_service_pb2

JOB_TYPES = members(job_pb2.JobType, "JOB_TYPE_", JobType)
STATUSES = members(job_pb2.JobStatus, "JOB_STATUS_", Status)
RUN_STATES = members(job_pb2.RunState, "RUN_STATE_", RunState)

JOB_IDS = 1_000
"""As many can be named in one call."""


def job_filter(wrong: Violations, message: job_service_pb2.JobFilter) -> JobFilter:
    """The field `filter` of a request; what is wrong with it is noted."""
    kinds = [wrong.member(f"filter.types[{i}]", n, JOB_TYPES) for i, n in enumerate(message.types)]
    groups = [wrong.member(f"filter.run_states[{i}]", n, RUN_STATES) for i, n in enumerate(message.run_states)]
    statuses = [wrong.member(f"filter.statuses[{i}]", n, STATUSES) for i, n in enumerate(message.statuses)]
    for name, values in (("types", kinds), ("run_states", groups), ("statuses", statuses)):
        if len(values) > 100:
            wrong.add(f"filter.{name}", "has more than 100 values")
    wrong.line("filter.text", message.text, 200)
    before = None
    if message.HasField("complete_time_before"):
        before = wrong.time("filter.complete_time_before", message.complete_time_before)
    return JobFilter(
        tuple(k for k in kinds if k),
        tuple(g for g in groups if g),
        tuple(s for s in statuses if s),
        message.text,
        before,
    )


def check_ids(wrong: Violations, job_ids: Sequence[int]) -> None:
    """Note what is wrong with the field `job_ids` of a request."""
    if len(job_ids) > JOB_IDS:
        wrong.add(
            "job_ids", f"has {len(job_ids):,} jobs; at most {JOB_IDS:,} are taken, give a filter or go on in parts"
        )
        return
    seen: set[int] = set()
    for index, job_id in enumerate(job_ids):
        if job_id <= 0:
            wrong.add(f"job_ids[{index}]", "must be the number of a job, from 1 on")
        elif job_id in seen:
            wrong.add(f"job_ids[{index}]", f"names job {job_id} again; give each once")
        seen.add(job_id)
