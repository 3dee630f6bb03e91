"""What became of the jobs of a scenario, judged: by the promises, by what it expects, and by what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from sis.queue.v1 import job_pb2
from tests.crash import strikes
from tests.crash.points import HANDED, STARTING
from tests.crash.scenarios import SCENARIOS, SECRET, Scenario
from tests.crash.strikes import Strike
from tests.support import promises
from tests.support.promises import Record, Row, Sites

_LOST: Final = "SUPERVISOR_LOST"


def judge(scenario: Scenario, struck: Sequence[Strike]) -> tuple[str, Record]:
    """The outcome, in a few words for the table, and what it was read from.

    Raises:
        AssertionError: it is not as promised; names what is wrong.
    """
    tokens = scenario.starts()
    assert not strikes.living(tokens), f"processes of the job live: {strikes.living(tokens)}"
    with scenario.stack.database() as database:
        record = promises.read(database, [*scenario.jobs, *scenario.others])
    started = Counter(map(_key, tokens))
    promises.check(record)
    promises.check_sites(record, Sites(starts=started))
    for job_id in scenario.jobs:
        job = record.jobs[job_id]
        check_end(scenario, job, struck)
        check_output(scenario, record, job, struck)
        if job["status"] == "SUCCEEDED":
            assert started[job_id, job["attempt"]] == 1, f"job {job_id} has succeeded without a start"
            found = {each.name: each.value for each in scenario.client.jobs.get(job_id).outputs}
            assert found == scenario.OUTPUTS, f"the outputs are {found}"
    assert not {job_id for job_id, _ in started} & set(scenario.others), f"one of {scenario.others} was started"
    scenario.check()
    return words(record.jobs[scenario.job_id]), record


def words(job: Row) -> str:
    """As the table has it."""
    attempt = f", attempt {job['attempt']}" if job["attempt"] > 1 else ""
    if job["status"] == "SUCCEEDED":
        return f"SUCCEEDED{attempt}"
    reason = "" if job["status"] == "TIMED_OUT" or not job["failure_reason"] else f" {job['failure_reason']}"
    return f"{job['status']}{reason}{attempt}, stop {job['stop_state']}"


def check_end(scenario: Scenario, job: Row, struck: Sequence[Strike]) -> None:
    """The status is what the scenario leads to; or that the supervisor was lost, where that can have happened."""
    allowed = {(scenario.STATUS, scenario.REASON)}
    killed = {victim for strike in struck for victim in _victims(strike, alone=len(struck) == 1)}
    if may_be_lost(struck):
        allowed.add(("FAILED", _LOST))
    if "payload" in killed:
        allowed.add(("FAILED", "SIGNAL"))
    found = (job["status"], job["failure_reason"] or "")
    assert found in allowed, f"{found} is none of {sorted(allowed)}"
    stops = {scenario.STOP}
    # Of two, none is left who could know what became of the tree.
    if "guardian" in killed and ("supervisor" in killed or scenario.REASON == _LOST):
        stops.add("UNCONFIRMED")
    # A supervisor that is just taking its order dies with its guardian.
    if found == ("FAILED", _LOST) and any(
        _starting(strike, alone=len(struck) == 1) and "guardian" in _victims(strike, alone=len(struck) == 1)
        for strike in struck
    ):
        stops.add("UNCONFIRMED")
    assert job["stop_state"] in stops, f"the stop is {job['stop_state']}, which is none of {sorted(stops)}"


def may_be_lost(struck: Sequence[Strike]) -> bool:
    """Whether nobody can know what became of the supervisor: it was killed, or who was about to make it, or one of them
    gave no sign of life for so long that the agent gave it up.

    Two faults together can hold one of the two back until the start is under way.
    """
    alone = len(struck) == 1
    for strike in struck:
        starts = _starts(strike)
        if starts and strike.hit and strike.fault in ("hang:zygote", "hang:guardian", "hang:supervisor"):
            return True
        victims = _victims(strike, alone=alone)
        if "supervisor" in victims or (_starting(strike, alone=alone) and victims & {"agent", "zygote", "guardian"}):
            return True
    return False


def _starting(strike: Strike, *, alone: bool) -> bool:
    """Whether a supervisor may just be made, or take its order."""
    return _starts(strike) and (strike.passage.point in STARTING or not alone)


def _starts(strike: Strike) -> bool:
    """Whether something is started in its phase."""
    return strike.passage.phase in SCENARIOS[strike.passage.scenario].STARTS


def _victims(strike: Strike, *, alone: bool) -> set[str]:
    """What may have been killed: a spare that has its order is more than it looks."""
    handed = _starts(strike) and (strike.passage.point in HANDED or not alone)
    return {strike.victim, strike.fault.partition(":")[2]} if strike.victim == "spare" and handed else {strike.victim}


def check_output(scenario: Scenario, record: Record, job: Row, struck: Sequence[Strike]) -> None:
    """The log is whole, and has all that the payload is known to have printed and nothing that it has not.

    What a supervisor had not read when it was killed is lost with it, and the log says so; what the suite has shown is
    not lost.
    """
    key = (job["job_id"], job["attempt"])
    output = record.output(key)
    lost = scenario.REASON == _LOST or may_be_lost(struck)
    known = scenario.shown.get(job["job_id"], b"")
    if job["status"] == "SUCCEEDED":
        known = scenario.WHOLE
    elif scenario.up() and not lost:
        known = scenario.FIRST
    assert output.startswith(known), f"the output is {output!r}, and {known!r} was printed"
    assert scenario.WHOLE.startswith(output), f"the output is not what the payload wrote: {output!r}"
    verdict = record.attempts[key]["verdict"]
    # Nothing here damages a file or fills a disk. Of an attempt that somebody else has finished, see promises.
    assert verdict == "COMPLETE" or (lost and verdict == "GAPPED"), f"the log is {verdict}"
    assert SECRET not in b"".join(bytes(row["body"]) for row in record.logs.get(key, ())), "a secret is in the log"


def _key(token: str) -> tuple[int, int]:
    job_id, attempt, _ = token.split(".")
    return int(job_id), int(attempt)


def leases_left(scenario: Scenario) -> list[str]:
    """What is still leased for the job, which must end soon after it."""
    usage = scenario.client.credentials.usage("crash") if scenario.CREDENTIAL else ()
    return [each.ref for each in usage if each.job_id == scenario.job_id and not each.HasField("end_time")]


def history(scenario: Scenario) -> str:
    """For whoever looks into a violation."""
    told = [
        f"job {job_id}, attempt {each.attempt}: {each.time.ToDatetime():%H:%M:%S.%f} "
        f"{job_pb2.JobStatus.Name(each.to_status)[11:]} {each.event} by {each.actor}: {each.message}"
        for job_id in scenario.jobs
        for each in scenario.client.jobs.history(job_id)
    ]
    return "\n".join(told) or "there is no job"
