"""One job: what is known of it, what can be done to it, and its log."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from playwright.sync_api import APIResponse, Route, expect

from sis.client import Client
from sis.queue.v1 import job_pb2
from tests.support.numbered_job import until
from tests.support.stack import Stack
from tests.support.stopping import stop
from tests.system.console.console import Console, unavailable
from tests.system.console.test_job_list import ended, made

pytestmark = pytest.mark.timeout(180)

VERBS = {
    "Activate": job_pb2.JOB_VERB_ACTIVATE,
    "Rerun": job_pb2.JOB_VERB_RERUN,
    "Cancel": job_pb2.JOB_VERB_CANCEL,
    "Abort": job_pb2.JOB_VERB_ABORT,
    "Delete": job_pb2.JOB_VERB_DELETE,
}


def test_details(console: Console, client: Client) -> None:
    job_id = made(client, "details", 'echo out; echo err >&2; echo "answer=42" >> "$SIS_OUTPUT"; exit 0')
    ended(client, job_id)
    page = console.job(job_id)
    expect(page.locator(".outcome")).to_have_text("Executed successfully")
    for words in ("administrator", "core.shell", "answer", "42", "Confirmed", "Complete"):
        expect(page.locator(".facts-grid")).to_contain_text(words)
    expect(page.locator(".log .line.out")).to_have_text(["out"])
    expect(page.locator(".log .line.err")).to_have_text(["err"])
    expect(page.locator(".log")).to_contain_text("Payload processing started")
    page.get_by_role("link", name="Console Output").click()
    expect(page.locator(".log .line")).to_have_text(["out", "err"])
    page.get_by_role("link", name="Processes").click()
    for role in ("Package executor", "Payload"):
        expect(page.get_by_role("cell", name=role, exact=True)).to_be_visible()
    expect(page.locator(".notice.good")).to_contain_text("was seen empty")
    page.get_by_role("link", name="History").click()
    claimed = page.get_by_role("row", name=re.compile("Claimed: attempt 1"))
    expect(claimed.get_by_role("cell", name="agent local-1", exact=True)).to_be_visible()


def test_output_can_be_downloaded(console: Console, client: Client, tmp_path: Path) -> None:
    job_id = made(client, "download", "printf 'a\\0b\\n'")
    ended(client, job_id)
    page = console.job(job_id, "output")
    with page.expect_download() as started:
        page.get_by_role("link", name="Download").click()
    assert Path(started.value.path()).read_bytes() == b"a\0b\n"


def test_cancel_abort_rerun_copy_delete(console: Console, client: Client) -> None:
    job_id = made(client, "verbs", "sleep 600")
    page = console.job(job_id)
    expect(page.locator("h1 + .badge")).to_have_text("Running")
    console.button("Cancel").click()
    console.confirm("Cancel", "a test says so")
    expect(page.locator("h1 + .badge")).to_have_text("Canceled")
    expect(page.locator(".log")).to_contain_text("Cancel requested by administrator: a test says so")
    console.button("Rerun").click()
    console.confirm("Rerun")
    expect(page.locator(".facts-grid")).to_contain_text(f"Job {job_id}")
    expect(page.locator("h1 + .badge")).to_have_text("Running")
    console.button("Abort").click()
    console.confirm("Abort")
    expect(page.locator("h1 + .badge")).to_have_text("Aborted")
    page.get_by_role("link", name="Copy").click()
    expect(page.get_by_label("Name", exact=False).first).to_have_value("verbs")
    expect(page.get_by_label("script")).to_have_value("sleep 600")
    page.go_back()
    console.button("Delete").click()
    console.confirm("Delete")
    expect(page).to_have_url(re.compile("/jobs$"))
    expect(page.get_by_text(f"Job {job_id + 1} was deleted.")).to_be_visible()


FATES = {
    "deferred": "DEFERRED",
    "waiting": "WAITING",
    "running": "RUNNING",
    "canceling": "CANCEL_REQUESTED",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "canceled": "CANCELED",
}
SCRIPTS = {"running": "sleep 600", "canceling": "trap '' TERM; while :; do sleep 0.1; done", "failed": "exit 1"}


@pytest.mark.parametrize("fate", FATES)
def test_buttons_are_enabled_as_the_server_permits(console: Console, client: Client, fate: str) -> None:
    job_id = made(
        client,
        fate,
        SCRIPTS.get(fate, "true"),
        site="group:nobody-is-there" if fate == "waiting" else "group:local",
        deferred=fate in ("deferred", "canceled"),
        cancel_grace=Duration(seconds=120),
    )

    def reached(status: str) -> None:
        until(lambda: client.jobs.get(job_id).status == job_pb2.JobStatus.Value(f"JOB_STATUS_{status}"), status)

    if fate == "canceling":
        reached("RUNNING")
    if fate in ("canceled", "canceling"):
        client.jobs.cancel(job_id)
    reached(FATES[fate])
    console.job(job_id)
    permitted = client.jobs.get(job_id).permitted_verbs
    for word, verb in VERBS.items():
        expect(console.button(word)).to_be_enabled(enabled=verb in permitted)
    if fate in ("waiting", "running", "canceling"):
        client.jobs.abort(job_id)


def test_a_job_whose_agent_is_gone_is_let_go_by_force(console: Console, client: Client) -> None:
    job_id = made(client, "awol")
    ended(client, job_id)
    page = console.shown(job_id, status="JOB_STATUS_AWOL", permittedVerbs=["JOB_VERB_CANCEL"], forcePermitted=True)
    expect(page.locator("h1 + .badge")).to_have_text("AWOL")
    for word in VERBS:
        expect(console.button(word)).to_be_enabled(enabled=word in ("Cancel", "Abort"))
    page.route("**:abort", lambda route: route.fulfill(json={"job": {}}))
    console.button("Abort").click()
    expect(page.get_by_label("Its agent is gone")).to_have_value("force")
    with page.expect_request("**:abort") as asked:
        console.confirm("Abort", "the machine was scrapped")
    assert asked.value.post_data_json == {"reason": "the machine was scrapped", "force": True}


def test_a_stop_that_was_not_confirmed(console: Console, client: Client) -> None:
    """Survivors are named beside what was recorded, and those that were too many to be recorded."""
    job_id = made(client, "survivors", "exec sleep 0.1")
    ended(client, job_id)
    evidence = console.context.request.get(f"/v1/jobs/{job_id}").json()["job"]["stopEvidence"]
    payload = next(each for each in evidence["processes"] if each["role"] == "PROCESS_ROLE_PAYLOAD")
    another = {**payload, "pid": "4000001", "name": "unrecorded", "role": "PROCESS_ROLE_DESCENDANT", "ended": False}
    evidence |= {"treeEmpty": False, "survivors": [payload, another]}
    page = console.shown(job_id, "processes", stopState="STOP_STATE_UNCONFIRMED", stopEvidence=evidence)
    expect(page.locator(".notice.bad")).to_contain_text("Not confirmed")
    expect(page.locator(".facts-grid")).to_contain_text("nobody could see that nothing of it is left")
    for name, end in (("unrecorded", "still there"), (payload["pid"], "still there"), ("Package executor", "ended")):
        expect(page.get_by_role("row", name=name)).to_contain_text(end)
    assert page.locator(".view tbody tr").count() == len(evidence["processes"]) + 2


def test_news_leave_the_rest_as_it_is(console: Console, client: Client) -> None:
    """What is scrolled, selected or focused stays so while the job goes on."""
    script = "\n".join(f"# line {n}" for n in range(60))
    script += '\ni=1; while :; do i=$((i+1)); echo "$i at" >> "$SIS_PROGRESS"; sleep 0.2; done'
    job_id = made(client, "news", script)
    page = console.job(job_id)
    meter = page.get_by_role("progressbar", name="Progress")
    expect(meter).to_be_visible()
    shown = page.get_by_label("Value")
    shown.evaluate("script => { script.scrollTop = 100; getSelection().selectAllChildren(script); }")
    page.get_by_role("link", name="local-1").focus()
    before = meter.evaluate("meter => meter.value")
    page.wait_for_function("before => document.querySelector('progress').value > before + 1", arg=before)
    expect(page.locator(".job-progress")).to_have_text(re.compile(r"\d+ % at"))
    assert shown.evaluate("script => [script.scrollTop, String(getSelection()).includes('# line 59')]") == [100, True]
    expect(page.get_by_role("link", name="local-1")).to_be_focused()
    client.jobs.abort(job_id)
    expect(page.locator(".job-progress")).to_be_hidden()


def test_why_it_waits(console: Console, client: Client) -> None:
    job_id = made(client, "waits", site="group:nobody-is-there")
    page = console.job(job_id)
    why = page.locator(".why")
    expect(why).to_have_text("Why it waits: no agent of group nobody-is-there has ever been connected.")
    # It is read out when it changes, and at no other time.
    why.evaluate("""why => {
        why.changes = 0;
        new MutationObserver(() => why.changes++).observe(why, { childList: true, subtree: true, characterData: true });
    }""")
    for _ in range(2):
        with page.expect_response("**:explain"):
            pass
    assert why.evaluate("why => new Promise(done => requestAnimationFrame(() => done(why.changes)))") == 0
    holder = {"agent": "local-1", "jobId": "17", "status": "JOB_STATUS_RUNNING"}
    answer = {"summary": "It waits: all slots are taken.", "causes": [{"holders": [holder]}]}
    page.route("**:explain", lambda route: route.fulfill(json=answer))
    expect(why).to_contain_text("all slots are taken.")
    expect(why.get_by_role("listitem")).to_have_text("local-1: job 17 (Running)")
    expect(why.get_by_role("link", name="job 17")).to_have_attribute("href", "/jobs/17")
    page.unroute("**:explain")
    client.jobs.cancel(job_id)
    expect(why).to_be_hidden()


def test_a_job_that_is_gone(console: Console, client: Client) -> None:
    job_id = made(client, f"gone {uuid.uuid4().hex}", deferred=True)
    client.jobs.delete(job_id, reason="not needed")
    page = console.go(f"/jobs/{job_id}")
    expect(page.get_by_text(f"Job {job_id} was deleted", exact=True)).to_be_visible()
    told = page.locator("main .state").first
    expect(told).to_contain_text(re.compile(r"was deleted by administrator at \d\d/\d\d/\d{4} [\d:]{8}: not needed\."))
    expect(told).not_to_contain_text("job_id")
    expect(told).not_to_contain_text("sis jobs list")
    page = console.go("/jobs/999999")
    expect(page.get_by_text("There is no job 999999")).to_be_visible()
    expect(page.locator("main")).not_to_contain_text("sis jobs list")
    page = console.go("/jobs/somewhere/else")
    expect(page.get_by_text("There is nothing here")).to_be_visible()


def test_what_a_proxy_says_while_servers_are_rolled_ends_no_page(console: Console, client: Client) -> None:
    """Neither before there is anything to see, nor when all there is was seen already."""
    job_id = made(client, "rolled", "echo there")
    ended(client, job_id)
    page = console.page
    page.route("**:monitor?*", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"), times=1)
    console.job(job_id)
    expect(page.locator(".log .line.out")).to_have_text(["there"])
    settled = f"**/v1/jobs/{job_id}"
    page.route(settled, unavailable, times=1)
    with page.expect_response(settled) as refused:
        page.reload()
    assert refused.value.status == 503
    with page.expect_response(settled) as answered:
        expect(page.locator(".log .line.out")).to_have_text(["there"])
    assert answered.value.status == 200
    expect(page.get_by_role("navigation", name="Views of the job")).to_be_visible()


def test_what_is_there_stays_when_the_server_fails(console: Console, client: Client) -> None:
    job_id = made(client, "fails", "echo there")
    ended(client, job_id)
    page = console.page

    job = console.context.request.get(f"/v1/jobs/{job_id}").json()
    error = {"code": 500, "status": "INTERNAL", "message": "A fault of the server."}
    body = "".join(json.dumps(document) + "\n" for document in (job, {"error": error}))
    failing = {"body": body, "content_type": "application/x-ndjson"}
    page.route("**:monitor?*", lambda route: route.fulfill(**failing), times=1)
    console.job(job_id)
    told = page.get_by_role("alert").filter(has_text="A fault of the server.")
    expect(told).to_contain_text("This page may be old")
    expect(page.locator(".log .line.out")).to_have_text(["there"])
    expect(page.get_by_role("button", name="Rerun")).to_be_enabled()
    told.get_by_role("button", name="Try again").click()
    expect(told).to_have_count(0)
    expect(page.locator(".log .line.out")).to_have_text(["there"])


def test_why_it_waits_is_not_asked_while_nobody_looks(console: Console, client: Client) -> None:
    job_id = made(client, "unseen", site="group:nobody-is-there")
    asked: list[str] = []
    page = console.page
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith(":explain") else None)
    page.clock.install()
    console.job(job_id)
    expect(page.locator(".why")).to_contain_text("no agent of group nobody-is-there")
    see = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(see, True)
    asked.clear()
    page.clock.run_for(30_000)
    assert not asked
    with page.expect_response("**:explain"):
        page.evaluate(see, False)
    client.jobs.cancel(job_id)


def test_a_time_of_summer_is_said_to_be_one(console: Console, client: Client) -> None:
    job_id = made(client, "seasons")
    ended(client, job_id)
    page = console.shown(job_id, createTime="2026-07-01T10:00:00Z", startTime="2026-01-01T10:00:00Z")
    times = page.locator(".facts-grid time")
    expect(times.nth(0)).to_have_attribute("title", "2026-07-01 10:00:00 UTC (shown in CEST)")
    expect(times.nth(1)).to_have_attribute("title", "2026-01-01 10:00:00 UTC (shown in CET)")


def test_a_long_name_without_blanks_fits_a_phone(opened: Callable[..., Console], client: Client) -> None:
    job_id = made(client, "nightly_database_backup_production_eu_west_and_everything_else")
    ended(client, job_id)
    page = opened(viewport={"width": 390, "height": 844}).job(job_id)
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_a_dialog_stays_until_its_request_is_answered(console: Console, client: Client) -> None:
    job_id = made(client, "asked", deferred=True)
    page = console.job(job_id)
    held: list[Route] = []
    page.route("**:cancel", lambda route: held.append(route))
    console.button("Cancel").click()
    dialog = page.get_by_role("dialog")
    with page.expect_request("**:cancel"):
        dialog.get_by_role("button", name="Cancel", exact=True).click()
    expect(dialog.get_by_role("button", name="Go back")).to_be_disabled()
    for _ in range(4):
        page.keyboard.press("Escape")
    unavailable(held.pop())
    expect(dialog.get_by_role("alert")).to_have_text("Being rolled.")
    with page.expect_request("**:cancel"):
        dialog.get_by_role("button", name="Cancel", exact=True).click()
    held.pop().continue_()
    expect(dialog).to_have_count(0)
    expect(page.locator("h1 + .badge")).to_have_text("Canceled")


def test_an_answer_that_comes_late_is_not_taken_for_news(console: Console, client: Client) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    job_id = made(client, "late", script)
    page = console.job(job_id)
    badge = page.locator("h1 + .badge")
    expect(page.locator(".log")).to_contain_text("ready")
    held: list[tuple[Route, APIResponse]] = []
    late = True

    def answer(route: Route) -> None:
        if late:
            held.append((route, route.fetch()))
        else:
            route.continue_()

    page.route(f"**/v1/jobs/{job_id}", answer)
    console.button("Cancel").click()
    console.confirm("Cancel")
    expect(badge).to_have_text("Canceling")
    until(lambda: page.wait_for_timeout(10) or held, "the page asks")
    client.jobs.abort(job_id)
    expect(badge).to_have_text("Aborted")
    badge.evaluate("""badge => {
        window.shown = [];
        const note = () => window.shown.push(badge.textContent);
        new MutationObserver(note).observe(badge, {childList: true, subtree: true});
    }""")
    late = False
    for route, response in held:
        route.fulfill(response=response)
    # Whatever it says is on the page by the time that something else was done by it.
    console.button("Rerun").click()
    console.confirm("Rerun")
    expect(page.locator(".facts-grid")).to_contain_text(f"Job {job_id}")
    assert "Canceling" not in page.evaluate("() => window.shown")
    client.jobs.abort(int(page.url.rpartition("/")[2]))


def test_what_has_ended_may_still_have_to_tell(console: Console, client: Client, stack: Stack, tmp_path: Path) -> None:
    """Its site is heard again after somebody had it aborted."""
    go, written = tmp_path / "go", tmp_path / "written"
    job_id = made(client, "tells", f"until [ -e {go} ]; do sleep 0.02; done; echo late; touch {written}; sleep 600")
    until(lambda: client.jobs.get(job_id).status == job_pb2.JOB_STATUS_RUNNING, "a job that runs")
    agent = stack.pid("local-1")
    assert stop(agent)
    try:
        go.touch()
        until(written.exists, "what it has written")
        client.jobs.abort(job_id)
        page = console.job(job_id, "output")
        expect(page.locator("h1 + .badge")).to_have_text("Aborted")
        expect(page.locator(".live-mark")).to_have_text("Live")
        expect(page.get_by_text("Nothing was written yet.")).to_be_visible()
    finally:
        os.kill(agent, signal.SIGCONT)
    expect(page.locator(".log .line")).to_have_text(["late"])
    expect(page.locator(".live-mark")).to_be_hidden()


def test_back_from_a_job_is_where_one_was(opened: Callable[..., Console], client: Client) -> None:
    name = f"place {uuid.uuid4().hex}"
    for _ in range(20):
        made(client, name, deferred=True)
    console = opened(viewport={"width": 390, "height": 700})
    page = console.go(f"/jobs?text={name}")
    links = page.locator("table.jobs").get_by_role("link", name=name)
    expect(links).to_have_count(20)
    links.nth(15).scroll_into_view_if_needed()
    assert page.evaluate("() => scrollY") > 500
    links.nth(15).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    assert page.evaluate("() => scrollY") == 0
    page.go_back()
    expect(links.nth(15)).to_be_in_viewport()
