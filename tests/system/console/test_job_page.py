"""One job: what is known of it, what can be done to it, and its log."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from sis.client import Client
from sis.queue.v1 import job_pb2
from tests.support.numbered_job import until
from tests.support.stack import Stack
from tests.support.tcp_proxy import proxied
from tests.system.console.console import Console
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
    for words in ("Executed successfully", "administrator", "core.shell", "answer", "42", "Confirmed", "Complete"):
        expect(page.locator(".facts-grid")).to_contain_text(words)
    expect(page.locator(".log .line.out")).to_have_text(["out"])
    expect(page.locator(".log .line.err")).to_have_text(["err"])
    expect(page.locator(".log")).to_contain_text("Payload processing started")
    page.get_by_role("link", name="Console Output").click()
    expect(page.locator(".log .line")).to_have_text(["out", "err"])
    page.get_by_role("link", name="Processes").click()
    expect(page.get_by_role("cell", name="Payload", exact=True)).to_be_visible()
    expect(page.get_by_text("was seen empty")).to_be_visible()
    page.get_by_role("link", name="History").click()
    expect(page.get_by_role("cell", name=re.compile("Claimed by agent local-1"))).to_be_visible()
    page.get_by_role("link", name="Debug Log").click()
    expect(page.locator(".log")).to_contain_text("Payload processing started")
    page.get_by_label("Problem").check()
    expect(page.locator(".log .line.err")).to_have_text(["err"])
    assert "part=problem" in page.url


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
    expect(page).not_to_have_url(re.compile(f"/jobs/{job_id + 1}$"))


@pytest.mark.parametrize("fate", ["deferred", "running", "succeeded", "canceled"])
def test_buttons_are_enabled_as_the_server_permits(console: Console, client: Client, fate: str) -> None:
    script = "sleep 600" if fate == "running" else "true"
    job_id = made(client, fate, script, deferred=fate in ("deferred", "canceled"))
    if fate == "canceled":
        client.jobs.cancel(job_id)
    wanted = {"deferred": "DEFERRED", "running": "RUNNING", "succeeded": "SUCCEEDED", "canceled": "CANCELED"}[fate]
    until(lambda: client.jobs.get(job_id).status == job_pb2.JobStatus.Value(f"JOB_STATUS_{wanted}"), wanted)
    console.job(job_id)
    permitted = client.jobs.get(job_id).permitted_verbs
    for word, verb in VERBS.items():
        expect(console.button(word)).to_be_enabled(enabled=verb in permitted)
    if fate == "running":
        client.jobs.abort(job_id)


def test_why_it_waits(console: Console, client: Client) -> None:
    job_id = made(client, "waits", site="group:nobody-is-there")
    page = console.job(job_id)
    expect(page.get_by_text("no agent of group nobody-is-there has ever been connected")).to_be_visible()
    client.jobs.cancel(job_id)
    expect(page.get_by_text("Why it waits")).to_be_hidden()


def test_every_line_once_through_cut_connections(
    opened: Callable[..., Console], stack: Stack, client: Client, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    script = (
        f'i=0; while [ ! -e {end} ]; do i=$((i+1)); echo "line $i"; sleep 0.02; done; echo "result=$i" >> "$SIS_OUTPUT"'
    )
    job_id = made(client, "cut", script)
    with proxied(stack.gateway.removeprefix("http://")) as proxy:
        console = opened(url=f"http://{proxy.endpoint}")
        page = console.job(job_id)
        expect(page.locator(".log .line.out").first).to_be_visible()
        for _ in range(8):
            before = page.locator(".log .line.out").count()
            proxy(lambda each: each.cut())
            page.wait_for_function("before => document.querySelectorAll('.log .line.out').length > before", arg=before)
        end.touch()
        expect(page.locator("h1 + .badge")).to_have_text("Success")
        count = int(next(o.value for o in client.jobs.get(job_id).outputs if o.name == "result"))
        expect(page.locator(".log .line.out").last).to_have_text(f"line {count}")
        assert [line for line in console.log_lines() if line.startswith("line ")] == [
            f"line {n}" for n in range(1, count + 1)
        ]


def test_a_long_log(console: Console, client: Client) -> None:
    """Only a part of it is on the page; every other part can be had, by its place, its time, and what is written."""
    script = 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo "line $i of many"; done; sleep 2; echo last'
    job_id = made(client, "long", script)
    ended(client, job_id)
    page = console.job(job_id, "output")
    expect(page.locator(".log .line").last).to_have_text("last")
    assert page.locator(".log .line").count() < 10_000
    seen = console.log_lines()
    numbers = [int(line.split()[1]) for line in seen if line.startswith("line ")]
    assert numbers == list(range(numbers[0], 100_001))
    page.locator(".log").evaluate("log => log.scrollTo(0, 0)")
    page.wait_for_function("first => document.querySelector('.log .line').textContent != first", arg=seen[0])
    numbers = [int(line.split()[1]) for line in console.log_lines() if line.startswith("line ")]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    page.get_by_label("Place in the log").fill("1")
    expect(page.locator(".log .line").first).to_have_text("line 1 of many")
    page.get_by_label("Search the log").fill("LINE 77777 of")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 matching line")).to_be_visible()
    page.locator(".matches button").click()
    expect(page.locator(".log .line.current")).to_have_text("line 77777 of many")
    expect(page.locator(".log .line.current")).to_be_in_viewport()
    console.button("To the latest line").click()
    expect(page.locator(".log .line").last).to_have_text("last")


def test_pause_and_follow(console: Console, client: Client) -> None:
    job_id = made(client, "pause", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done")
    page = console.job(job_id, "output")
    page.wait_for_function("() => document.querySelectorAll('.log .line').length > 100")
    log = "document.querySelector('.log')"
    at_bottom = f"() => {log}.scrollHeight - {log}.scrollTop - {log}.clientHeight < 60"
    assert page.evaluate(at_bottom)
    console.button("Pause").click()
    place = page.locator(".log").evaluate("log => log.scrollTop")
    before = page.locator(".log .line").count()
    page.wait_for_function("before => document.querySelectorAll('.log .line').length > before + 20", arg=before)
    assert page.locator(".log").evaluate("log => log.scrollTop") == place
    console.button("Follow").click()
    page.wait_for_function(at_bottom)
    client.jobs.abort(job_id)


def test_colours_and_escapes_do_no_harm(console: Console, client: Client) -> None:
    script = (
        r"""printf '\033[31mred\033[0m plain\n\033]0;owned\007\n<img src=x onerror=alert(1)>\n\342\200\256desrever\n'"""
    )
    job_id = made(client, "colours", script)
    ended(client, job_id)
    page = console.job(job_id, "output")
    expect(page.locator(".log .line").nth(0)).to_have_text("red plain")
    expect(page.locator(".log .f-1")).to_have_text("red")
    assert console.log_lines()[1:] == ["\\x1b]0;owned\\x07", "<img src=x onerror=alert(1)>", "\\u202edesrever"]
    assert page.locator(".log img").count() == 0


def test_a_job_that_is_gone(console: Console, client: Client) -> None:
    job_id = made(client, f"gone {uuid.uuid4().hex}", deferred=True)
    client.jobs.delete(job_id, reason="not needed")
    page = console.go(f"/jobs/{job_id}")
    expect(page.get_by_text("not needed")).to_be_visible()
    page = console.go("/jobs/somewhere/else")
    expect(page.get_by_text("There is nothing here")).to_be_visible()
