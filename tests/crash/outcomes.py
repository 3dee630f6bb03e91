"""What became of a job, judged: by the promises, by what its scenario expects, and by what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from sis.queue.v1 import job_pb2
from tests.crash import strikes
from tests.crash.points import STARTING
from tests.crash.scenarios import SECRET, Scenario
from tests.crash.strikes import Strike
from tests.support import promises
from tests.support.promises import Record, Row, Sites

_LOST: Final = "SUPERVISOR_LOST"


def judge(scenario: Scenario, struck: Sequence[Strike]) -> str:
    """The outcome, in a few words for the table.

    Raises:
        AssertionError: it is not as promised; names what is wrong.
    """
    tokens = scenario.starts()
    assert not strikes.living(tokens), f"processes of the job live: {strikes.living(tokens)}"
    with scenario.stack.database() as database:
        record = promises.read(database, [scenario.job_id])
    job = record.jobs[scenario.job_id]
    key = (job["job_id"], job["attempt"])
    sites = Sites(starts=Counter(map(_key, tokens)))
    if job["status"] == "SUCCEEDED":
        sites.written[key] = _lines(scenario.LINES)
    promises.check(record)
    promises.check_sites(record, sites)
    _check_end(scenario, job, struck)
    _check_output(scenario, record, key)
    return words(job)


def words(job: Row) -> str:
    """As the table has it."""
    attempt = f", attempt {job['attempt']}" if job["attempt"] > 1 else ""
    if job["status"] == "SUCCEEDED":
        return f"SUCCEEDED{attempt}"
    reason = "" if job["status"] == "TIMED_OUT" or not job["failure_reason"] else f" {job['failure_reason']}"
    return f"{job['status']}{reason}{attempt}, stop {job['stop_state']}"


def _check_end(scenario: Scenario, job: Row, struck: Sequence[Strike]) -> None:
    """The status is what the scenario leads to; or that the supervisor was lost, where that can have happened."""
    allowed = {(scenario.STATUS, scenario.REASON)}
    killed = {strike.victim for strike in struck}
    if may_be_lost(struck):
        allowed.add(("FAILED", _LOST))
    if "payload" in killed:
        allowed.add(("FAILED", "SIGNAL"))
    found = (job["status"], job["failure_reason"] or "")
    assert found in allowed, f"{found} is none of {sorted(allowed)}"
    stops = {"CONFIRMED"}
    # Of two, none is left who could know what became of the tree.
    if "guardian" in killed and ("supervisor" in killed or scenario.REASON == _LOST):
        stops.add("UNCONFIRMED")
    assert job["stop_state"] in stops, f"the stop is {job['stop_state']}, which is none of {sorted(stops)}"


def may_be_lost(struck: Sequence[Strike]) -> bool:
    """Whether nobody can know what became of the supervisor: it was killed, or who was about to make it, or one of them
    gave no sign of life for so long that the agent gave it up.

    Two faults together can hold one of the two back until the start is under way.
    """
    for strike in struck:
        starts = strike.passage.phase == "start"
        if starts and strike.fault in ("hang:zygote", "hang:guardian", "hang:supervisor"):
            return True
        starting = strike.passage.point in STARTING or (starts and len(struck) > 1)
        if strike.victim == "supervisor" or (starting and strike.victim in ("agent", "zygote", "guardian")):
            return True
    return False


def _check_output(scenario: Scenario, record: Record, key: tuple[int, int]) -> None:
    job = record.jobs[key[0]]
    output = record.output(key)
    whole = _lines(scenario.LINES)
    assert whole.startswith(output), f"the output is not what the payload wrote: {output!r}"
    assert SECRET not in b"".join(bytes(row["body"]) for row in record.logs.get(key, ())), "a secret is in the log"
    if job["status"] == "SUCCEEDED":
        assert record.attempts[key]["verdict"] == "COMPLETE", f"the log is {record.attempts[key]['verdict']}"
        if scenario.CREDENTIAL:
            found = {o.name: o.value for o in scenario.client.jobs.get(key[0]).outputs}
            assert found == {"result": f"{scenario.LINES} ***"}, f"the outputs are {found}"


def _lines(count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(1, count + 1))


def _key(token: str) -> tuple[int, int]:
    job_id, attempt, _ = token.split(".")
    return int(job_id), int(attempt)


def leases_left(scenario: Scenario) -> list[str]:
    """What is still leased for the job, which must end soon after it."""
    usage = scenario.client.credentials.usage("crash") if scenario.CREDENTIAL else ()
    return [each.ref for each in usage if each.job_id == scenario.job_id and not each.HasField("end_time")]


def history(scenario: Scenario) -> str:
    """For whoever looks into a violation."""
    if not scenario.job_id:
        return "there is no job"
    entries = scenario.client.jobs.history(scenario.job_id)
    told = [
        f"{each.time.ToDatetime():%H:%M:%S.%f} {job_pb2.JobStatus.Name(each.to_status)[11:]} {each.event} "
        f"attempt {each.attempt} by {each.actor}: {each.message}"
        for each in entries
    ]
    return "\n".join(told)
