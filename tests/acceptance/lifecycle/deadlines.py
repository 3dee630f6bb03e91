"""What the clock must have done to jobs by now, by their rows and by which of their agents can be heard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from tests.acceptance.lifecycle.causes import KILL_LIMIT, MARGIN, SLACK, Terms
from tests.acceptance.lifecycle.sites import Site
from tests.support.agreed_states import HELD_BY_AGENT
from tests.support.promises import Key, Record


def overdue(
    record: Record, terms: Mapping[int, Terms], sites: Mapping[str, Site], watched_since: datetime
) -> Iterator[str]:
    """What is left undone, by those who have swept without a gap since then; `sites` by the names of their agents.

    Silence is vouched for only by who has watched for as long, and a limit only for agents that are heard.
    """
    for job_id, of_job in terms.items():
        if job_id in record.jobs:
            job = _Job(record, job_id, of_job, sites, watched_since)
            yield from (f"job {job_id} is still {record.jobs[job_id]['status']}: {what}" for what in job.overdue())


class _Job:
    def __init__(
        self, record: Record, job_id: int, terms: Terms, sites: Mapping[str, Site], watched_since: datetime
    ) -> None:
        self._row, self._rows = record.jobs[job_id], record.histories[job_id]
        self._status = self._row["status"]
        self._key: Key = job_id, self._row["attempt"]
        self._attempt = record.attempts.get(self._key)
        self._terms, self._sites, self._watched_since = terms, sites, watched_since
        self._now = record.now - SLACK

    def overdue(self) -> Iterator[str]:
        yield from self._queued()
        if self._status in HELD_BY_AGENT and self._attempt is not None:
            site = self._sites.get(self._attempt["agent"])
            watched = self._now - self._watched_since
            if site is not None and watched > max(self._terms.heartbeat_timeout, MARGIN):
                yield from self._unheard(site) if site.silent else self._over_limit(site)

    def _queued(self) -> Iterator[str]:
        terms = self._terms
        held_until = terms.deferral_limit and self._rows[0]["at"] + terms.deferral_limit
        deferred = self._status == "DEFERRED"
        if deferred and terms.not_before is not None and terms.not_before < self._now:
            yield f"it was to be released at {terms.not_before}"
        if deferred and held_until is not None and held_until < self._now:
            yield f"it was to be held until {held_until}"
        if self._status in ("DEFERRED", "WAITING") and terms.latest_start and terms.latest_start < self._now:
            yield f"it was to be started by {terms.latest_start}"

    def _unheard(self, site: Site) -> Iterator[str]:
        if site.quiet_since is not None and self._now - site.quiet_since > self._terms.heartbeat_timeout:
            yield f"agent {site.name} is silent since {site.quiet_since}"

    def _over_limit(self, site: Site) -> Iterator[str]:
        """Of an agent that has just come back, or that hands in what is old, the end may be on its way: the margin
        counts from there, and the stop of what it was told to stop begins then."""
        terms = self._terms
        back = [row["at"] for row in self._rows if row["attempt"] == self._key[1] and row["event"].startswith("RETURN")]
        hellos = [hello.at for hello in site.hellos if self._key in hello.held]
        caught_up = max([self._watched_since, *back, *hellos, site.caught_up.get(self._key, self._watched_since)])
        limits: list[tuple[str, timedelta | None]] = {
            "STARTING": [("CLAIM", terms.start_timeout)],
            "RUNNING": [("FIRST_PROCESS", terms.run_timeout)],
            "PROCESSING_OUTPUT": [("PAYLOAD_ENDED", terms.output_timeout)],
            "CANCEL_REQUESTED": [("FIRST_PROCESS", terms.run_timeout), ("CANCEL", terms.cancel_grace + KILL_LIMIT)],
        }[self._status]
        for event, limit in limits:
            since = self._at(event)
            if limit is None or since is None:
                continue
            due = max(since, caught_up) + limit if event == "CANCEL" else max(since + limit, caught_up)
            if due + MARGIN < self._now:
                yield f"{event} was at {since}, its limit is {limit}, and agent {site.name} is heard"

    def _at(self, event: str) -> datetime | None:
        """When it was recorded first, of this attempt."""
        times = (row["at"] for row in self._rows if (row["event"], row["attempt"]) == (event, self._key[1]))
        return next(times, None)
