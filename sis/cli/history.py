"""What the server says of a job, as sentences."""

from __future__ import annotations

from sis.cli import words
from sis.queue.v1 import job_pb2

# By the event of the history; {actor} is who did it.
_SENTENCES = {
    "CREATE": "Created by {actor}",
    "ACTIVATE": "Activated by {actor}",
    "CANCEL": "Cancel requested by {actor}",
    "ABORT": "Aborted by {actor}",
    "FORCE": "Aborted with force by {actor}",
    "DELETE": "Deleted by {actor}",
    "RERUN": "Rerun by {actor}",
    "RELEASE": "Released",
    "EXPIRE": "Expired",
    "SILENCE": "AWOL",
    "START_LIMIT": "Failed",
    "OUTPUT_LIMIT": "Failed",
    "STOP_LIMIT": "The stop could not be confirmed",
    "RUN_TIMEOUT": "Timed out",
    "UNRUNNABLE": "Cannot be run",
    "CLAIM": "Claimed by {actor}",
    "GIVE_BACK": "Given back to the queue",
    "LEASE_REFUSED": "Given back to the queue",
    "JOURNAL_LOST": "AWOL",
    "RETURN_STARTING": "Heard of again",
    "RETURN_RUNNING": "Heard of again",
    "RETURN_PROCESSING_OUTPUT": "Heard of again",
    "RETURN_CANCEL_REQUESTED": "Heard of again",
    "RESTORE": "Restored from a backup",
    "ADOPT": "Heard of again",
    "ACCEPT": "Accepted by {actor}",
    "FIRST_PROCESS": "Running",
    "PAYLOAD_ENDED": "Processing output",
    "FINISH_SUCCEEDED": "Executed successfully",
    "FINISH_FAILED": "Failed",
    "FINISH_STOPPED": "The job was canceled",
}
_SAID_BY_THE_SITE = frozenset({"FIRST_PROCESS", "PAYLOAD_ENDED", "FINISH_SUCCEEDED", "FINISH_FAILED", "FINISH_STOPPED"})
_GRAVE = frozenset({"SILENCE", "JOURNAL_LOST", "START_LIMIT", "OUTPUT_LIMIT", "STOP_LIMIT", "UNRUNNABLE"})
_NOTABLE = frozenset(
    {"CANCEL", "ABORT", "FORCE", "DELETE", "EXPIRE", "RUN_TIMEOUT", "FINISH_STOPPED", "GIVE_BACK", "LEASE_REFUSED"}
)


def sentence(entry: job_pb2.HistoryEntry) -> str:
    """The entry for a person: "Cancel requested by administrator: too slow"."""
    known = _SENTENCES.get(entry.event)
    actor = entry.actor or "the server"
    said = known.format(actor=actor) if known else f"{entry.event or 'Something'} by {actor}"
    if entry.event == "RERUN":
        return f"{said}, {entry.message}"  # "as job 7"
    if entry.message.startswith(said):
        return entry.message
    return f"{said}: {entry.message}" if entry.message else said


def news(entry: job_pb2.HistoryEntry) -> str:
    """The entry beside the log, "" for nothing new: of what the site says itself in its own words, only the
    status that it led to."""
    if entry.event not in _SAID_BY_THE_SITE:
        return sentence(entry)
    return "" if entry.from_status == entry.to_status else f"Status: {words.status(entry.to_status)}"


def style(entry: job_pb2.HistoryEntry) -> str:
    """The colour in which an entry stands out, "" for the usual course."""
    if entry.event in _GRAVE or entry.event == "FINISH_FAILED":
        return "red"
    return "yellow" if entry.event in _NOTABLE else ""


def movement(entry: job_pb2.HistoryEntry) -> str:
    """The change of status, "Waiting → Starting"; the status alone where nothing moved."""
    after = words.status(entry.to_status)
    if entry.from_status in (entry.to_status, job_pb2.JOB_STATUS_UNSPECIFIED):
        return after
    return f"{words.status(entry.from_status)} → {after}"
