"""The debug log of a job in its three parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from sis.client import Client
from tests.system.console.console import Console
from tests.system.console.test_job_list import ended, made

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def job_id(client: Client) -> int:
    """One that has written to both of its channels, and ended."""
    found = made(client, "parts", "echo out; echo err >&2")
    ended(client, found)
    return found


def test_parts(console: Console, job_id: int) -> None:
    page = console.job(job_id, "debug")
    expect(page.locator(".log")).to_contain_text("Payload processing started")
    expect(page.locator(".log .line.debug")).to_have_count(0)
    time = page.locator(".log .line.err").get_attribute("data-time")
    page.get_by_label("Full").check()
    expect(page.locator(".log .line.debug").first).to_be_visible()
    page.get_by_label("Problem").check()
    expect(page.locator(".log .line")).to_have_text(["err"])
    # In the reader's zone, as everywhere.
    assert page.locator(".log .line.err").get_attribute("data-time") == time


def test_the_part_is_that_of_the_address(console: Console, job_id: int) -> None:
    page = console.job(job_id, "debug")
    page.get_by_label("Problem").check()
    expect(page.locator(".log .line")).to_have_text(["err"])
    page.get_by_label("Full").check()
    expect(page.locator(".log .line.debug").first).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Problem")).to_be_checked()
    expect(page.locator(".log .line")).to_have_text(["err"])
    page.go_back()
    expect(page.get_by_role("radio", name="Standard")).to_be_checked()
    expect(page.locator(".log")).to_contain_text("Payload processing started")


def test_a_part_that_answers_late_covers_no_other(console: Console, job_id: int) -> None:
    page = console.job(job_id, "debug")
    held: list[Route] = []
    page.route("**/debugLog?*", lambda route: held.append(route))
    with page.expect_request("**/debugLog?*"):
        page.get_by_label("Problem").check()
    with page.expect_event("requestfailed", lambda request: "/debugLog?" in request.url):
        page.get_by_label("Full").check()
    held[0].abort()
    expect(page.locator(".log .line.debug").first).to_be_visible()


def test_problems_are_live(console: Console, client: Client, tmp_path: Path) -> None:
    gates = [tmp_path / str(n) for n in range(3)]
    wait = "; ".join(f"while [ ! -e {gate} ]; do sleep 0.05; done; {{}}" for gate in gates)
    job_id = made(client, "live", wait.format("printf half >&2", "echo ' whole' >&2", "echo out; echo last >&2"))
    page = console.job(job_id, "debug")
    page.get_by_label("Problem").check()
    expect(page.get_by_text("Nothing went wrong")).to_be_visible()
    for gate, lines in zip(gates, (["half"], ["half whole"], ["half whole", "last"]), strict=True):
        gate.touch()
        expect(page.locator(".log .line")).to_have_text(lines)
    expect(page.get_by_text("2 lines", exact=True)).to_be_visible()


def test_whoever_is_cut_off_while_they_read_goes_on_where_they_were(console: Console, client: Client) -> None:
    script = 'text=$(printf %0200d 0); i=0; while [ $i -lt 1500 ]; do i=$((i+1)); echo "$i $text" >&2; done'
    job_id = made(client, "cut", script)
    ended(client, job_id)
    path = f"/v1/jobs/{job_id}/debugLog?view=DEBUG_LOG_VIEW_PROBLEM"
    whole = console.context.request.get(path, headers={"accept": "application/x-ndjson"}).text()
    first = "".join(line + "\n" for line in whole.splitlines()[:1])
    cut = first + '{"error":{"code":503,"status":"UNAVAILABLE","message":"Cut off.","details":[]}}\n'
    page = console.job(job_id)
    page.route(f"**{path}", lambda route: route.fulfill(body=cut, content_type="application/x-ndjson"), times=1)
    console.go(f"/jobs/{job_id}?view=debug")
    page.get_by_label("Problem").check()
    console.button("More").click()
    expect(page.get_by_text("What follows was not read: Cut off.")).to_be_visible()
    console.button("More").click()
    expect(page.get_by_text("1,500 lines", exact=True)).to_be_visible()
    assert [line.split()[0] for line in console.log_lines()] == [str(n) for n in range(1, 1_501)]


def test_many_problems_come_when_they_are_asked_for(console: Console, client: Client) -> None:
    script = 'text=$(printf %0200d 0); i=0; while [ $i -lt 2500 ]; do i=$((i+1)); echo "$i $text" >&2; done'
    job_id = made(client, "many", script)
    ended(client, job_id)
    page = console.job(job_id, "debug")
    page.get_by_label("Problem").check()
    expect(console.button("More")).to_be_visible()
    shown = page.locator(".log .line").count()
    assert 1_000 <= shown < 2_000
    console.button("More").click()
    page.wait_for_function("() => document.querySelectorAll('.log .line').length >= 2000")
    expect(console.button("More")).to_be_visible()
    console.button("More").click()
    expect(page.get_by_text("2,500 lines", exact=True)).to_be_visible()
    assert [line.split()[0] for line in console.log_lines()] == [str(n) for n in range(1, 2_501)]
