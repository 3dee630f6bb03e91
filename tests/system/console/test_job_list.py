"""The Job Queue of the user guide: the list and its toolbar."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Route, expect

from sis.client import Client
from sis.queue.v1 import job_pb2
from tests.support.numbered_job import shell_job, until
from tests.system.console.console import Console, unavailable

pytestmark = pytest.mark.timeout(180)

COLUMNS = ["Job Id", "Name", "Type", "Status", "Target", "Child Jobs", "Created On", "Started On", "Completed On"]


def made(client: Client, name: str, script: str = "true", *, site: str = "group:local", **fields: object) -> int:
    """A job of this name; its id."""
    request = shell_job(script, site=site, **fields)
    request.display_name = name
    return client.jobs.create(request).job_id


def ended(client: Client, job_id: int) -> None:
    until(lambda: client.jobs.get(job_id).HasField("complete_time"), f"the end of job {job_id}")


def rows(console: Console) -> Locator:
    return console.page.locator("table.jobs tbody tr")


def names(console: Console) -> Locator:
    return console.page.locator("table.jobs td.name")


def test_the_columns_of_the_guide(console: Console, client: Client) -> None:
    name = f"columns {uuid.uuid4().hex}"
    job_id = made(client, name)
    ended(client, job_id)
    page = console.go(f"/jobs?text={name}")
    heads = [re.compile(rf"^\s*{column}\s*[▼▲]?\s*$") for column in COLUMNS]
    expect(page.locator("table.jobs thead th")).to_have_text(["All jobs on this page", *heads])
    row = console.row(job_id)
    expect(row).to_contain_text(name)
    expect(row).to_contain_text("IT Automation")
    expect(row).to_contain_text("Success")
    expect(row.locator(".children")).to_have_text("n/a")
    expect(page.get_by_text("Total Matching Jobs 1")).to_be_visible()
    assert "UTC" in str(row.locator("time").first.get_attribute("title"))


def test_filters_and_order_are_in_the_address(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    good, bad = made(client, f"b {tag}"), made(client, f"a {tag}", "exit 1")
    held = made(client, f"c {tag}", deferred=True)
    ended(client, good)
    ended(client, bad)
    page = console.go("/jobs")
    page.get_by_label("Filter by name, operation, target").fill(tag)
    expect(page.get_by_text("Total Matching Jobs 3")).to_be_visible()
    page.get_by_label("Run State").select_option(label="Failed")
    expect(page.get_by_text("Total Matching Jobs 1")).to_be_visible()
    expect(console.row(bad)).to_be_visible()
    assert "state=RUN_STATE_FAILED" in page.url and f"text={tag}" in page.url
    page.reload()
    expect(console.row(bad)).to_be_visible()
    expect(console.row(good)).to_have_count(0)
    page.get_by_label("Run State").select_option(label="Run State: all")
    page.get_by_label("Type").select_option(label="Package")
    expect(page.get_by_text("Total Matching Jobs 3")).to_be_visible()
    console.button("Name").click()
    expect(page.locator("table.jobs td.name")).to_have_text([f"a {tag}", f"b {tag}", f"c {tag}"])
    console.button("Name").click()
    expect(page.locator("table.jobs td.name")).to_have_text([f"c {tag}", f"b {tag}", f"a {tag}"])
    page.go_back()
    expect(page.locator("table.jobs td.name")).to_have_text([f"a {tag}", f"b {tag}", f"c {tag}"])
    page.get_by_label("Type").select_option(label="Discovery")
    expect(page.get_by_text("No job matches")).to_be_visible()
    client.jobs.delete(held)


def test_rows_change_where_they_stand(console: Console, client: Client) -> None:
    """Without Refresh: a status changes, a new job comes, one that is deleted goes; but not under the pointer."""
    tag = uuid.uuid4().hex
    held = made(client, f"held {tag}", deferred=True)
    page = console.go(f"/jobs?text={tag}")
    row = console.row(held)
    expect(row).to_contain_text("Deferred")
    client.jobs.activate(held)
    expect(row).to_contain_text("Success")
    second = made(client, f"second {tag}")
    expect(console.row(second)).to_be_visible()
    expect(page.get_by_text("Total Matching Jobs 2")).to_be_visible()
    row.hover()
    third = made(client, f"third {tag}")
    news = console.button("Show 1 new job")
    expect(news).to_be_visible()
    expect(console.row(third)).to_have_count(0)
    news.click()
    expect(console.row(third)).to_be_visible()
    ended(client, third)
    client.jobs.delete(third)
    page.mouse.move(5, 5)
    expect(console.row(third)).to_have_count(0)


def test_activate_cancel_delete(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    first, second = (made(client, f"{n} {tag}", "sleep 60", deferred=True) for n in (1, 2))
    page = console.go(f"/jobs?text={tag}")
    for name in ("Activate", "Cancel", "Delete"):
        expect(console.button(name)).to_be_disabled()
    page.get_by_label(f"Select job {first}", exact=True).check()
    console.button("Activate").click()
    console.confirm("Activate", "the window is open")
    expect(console.row(first)).to_contain_text("Running")
    page.get_by_label("Select all jobs on this page").check()
    console.button("Cancel").click()
    console.confirm("Cancel", "enough")
    expect(console.row(first)).to_contain_text("Canceled")
    expect(console.row(second)).to_contain_text("Canceled")
    reasons = {entry.message for entry in client.jobs.history(first)}
    assert {"the window is open", "enough"} <= reasons
    page.get_by_label("Select all jobs on this page").check()
    expect(console.button("Activate")).to_be_disabled()
    console.button("Delete").click()
    console.confirm("Delete")
    expect(page.get_by_text("No job matches")).to_be_visible()


def test_all_that_match(console: Console, client: Client) -> None:
    """More than a page: they are chosen by the filter, and what was refused is told."""
    tag = uuid.uuid4().hex
    jobs = [made(client, f"{n} {tag}", deferred=True) for n in range(60)]
    page = console.go(f"/jobs?text={tag}")
    page.get_by_label("Select all jobs on this page").check()
    expect(page.get_by_text("50 jobs selected.")).to_be_visible()
    console.button("Select all 60 that match").click()
    # Where another list cannot be had, none is chosen any more.
    page.route("**/v1/jobs?*", lambda route: route.abort())
    page.get_by_label("Run State").select_option(label="Failed")
    expect(page.get_by_text("The server cannot be reached").first).to_be_visible()
    expect(console.button("Cancel")).to_be_disabled()
    page.unroute("**/v1/jobs?*")
    page.go_back()
    page.get_by_label("Select all jobs on this page").check()
    console.button("Select all 60 that match").click()
    console.button("Cancel").click()
    console.confirm("Cancel")
    expect(page.get_by_text("60 jobs canceled")).to_be_visible()
    assert all(client.jobs.get(job).status == job_pb2.JOB_STATUS_CANCELED for job in jobs)
    console.button("Older").click()
    expect(page.locator("table.jobs tbody tr")).to_have_count(10)
    console.button("Newer").click()
    expect(page.locator("table.jobs tbody tr")).to_have_count(50)


def test_a_person_without_a_mouse(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    job_id = made(client, f"keys {tag}", deferred=True)
    page = console.go(f"/jobs?text={tag}")
    expect(console.row(job_id)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.get_by_label(f"Select job {job_id}", exact=True).focus()
    page.keyboard.press("Space")
    console.button("Cancel").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert client.jobs.get(job_id).status == job_pb2.JOB_STATUS_DEFERRED
    console.row(job_id).get_by_role("link", name=f"keys {tag}").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"/jobs/{job_id}$"))


def test_two_people_act_on_one_job(opened: Callable[..., Console], client: Client) -> None:
    """Each sees what the other does; who is late is told so in the server's words."""
    job_id = made(client, f"shared {uuid.uuid4().hex}", deferred=True)
    one, other = opened(), opened()
    one.job(job_id)
    other.job(job_id)
    one.button("Cancel").click()
    other.button("Activate").click()
    other.confirm("Activate")
    expect(other.page.locator("h1 + .badge")).to_have_text("Success")
    expect(one.page.locator("h1 + .badge")).to_have_text("Success")
    dialog = one.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text("is succeeded, which does not permit cancel")
    dialog.get_by_role("button", name="Go back").click()
    expect(one.button("Cancel")).to_be_disabled()
    expect(one.button("Rerun")).to_be_enabled()


def test_what_begins_to_match_appears(console: Console, client: Client) -> None:
    """In a filtered list and in any order, where it belongs: at once, or behind a button while somebody is at it."""
    tag = uuid.uuid4().hex
    first, second, third = (made(client, f"{name} {tag}", deferred=True) for name in "abc")
    for job in (first, third):
        client.jobs.cancel(job)
    page = console.go(f"/jobs?text={tag}&status=JOB_STATUS_CANCELED&order=display_name")
    expect(names(console)).to_have_text([f"a {tag}", f"c {tag}"])
    client.jobs.cancel(second)
    expect(names(console)).to_have_text([f"a {tag}", f"b {tag}", f"c {tag}"])
    expect(page.get_by_text("Total Matching Jobs 3")).to_be_visible()
    fourth = made(client, f"a second {tag}", deferred=True)
    console.row(first).hover()
    client.jobs.cancel(fourth)
    expect(page.get_by_text("Total Matching Jobs 4")).to_be_visible()
    expect(console.row(fourth)).to_have_count(0)
    console.button("Show 1 new job").click()
    expect(names(console)).to_have_text([f"a {tag}", f"a second {tag}", f"b {tag}", f"c {tag}"])


def test_what_has_the_focus_stays(console: Console, client: Client) -> None:
    """What is new waits while somebody is in the list with the keyboard, and comes once they leave it."""
    tag = uuid.uuid4().hex
    first = made(client, f"first {tag}", deferred=True)
    page = console.go(f"/jobs?text={tag}")
    box = page.get_by_label(f"Select job {first}", exact=True)
    box.focus()
    second = made(client, f"second {tag}", deferred=True)
    expect(console.button("Show 1 new job")).to_be_visible()
    expect(box).to_be_focused()
    expect(console.row(second)).to_have_count(0)
    page.get_by_label("Filter by name, operation, target").focus()
    expect(console.row(second)).to_be_visible()
    for job in (first, second):
        client.jobs.cancel(job)


def test_rows_move_with_what_they_are_sorted_by(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    first, second = (made(client, f"{name} {tag}", "sleep 60", deferred=True) for name in "ab")
    client.jobs.cancel(first)
    page = console.go(f"/jobs?text={tag}&order=complete_time+desc")
    expect(names(console)).to_have_text([f"b {tag}", f"a {tag}"])
    page.mouse.move(5, 5)
    client.jobs.cancel(second)
    expect(names(console)).to_have_text([f"b {tag}", f"a {tag}"])
    page.goto(f"/jobs?text={tag}&order=complete_time")
    third = made(client, f"c {tag}", deferred=True)
    fourth = made(client, f"d {tag}", deferred=True)
    expect(names(console)).to_have_text([f"a {tag}", f"b {tag}", f"c {tag}", f"d {tag}"])
    client.jobs.cancel(fourth)
    expect(names(console)).to_have_text([f"a {tag}", f"b {tag}", f"d {tag}", f"c {tag}"])
    client.jobs.cancel(third)


def test_rows_that_go_are_replaced_by_those_behind_them(console: Console, client: Client) -> None:
    """A page of a filtered list is not empty while others match."""
    tag = uuid.uuid4().hex
    jobs = [made(client, f"{n} {tag}", deferred=True) for n in range(60)]
    page = console.go(f"/jobs?text={tag}&status=JOB_STATUS_DEFERRED")
    expect(rows(console)).to_have_count(50)
    for job in jobs[10:]:
        client.jobs.cancel(job)
    expect(page.get_by_text("Total Matching Jobs 10")).to_be_visible()
    expect(rows(console)).to_have_count(10)
    expect(console.row(jobs[0])).to_be_visible()
    expect(page.get_by_text("No job matches")).to_have_count(0)
    for job in jobs[:10]:
        client.jobs.cancel(job)
    expect(page.get_by_text("No job matches")).to_be_visible()


def test_no_job_falls_between_two_pages(console: Console, client: Client) -> None:
    """New jobs push others off the first page; the second begins with them, also where there was none before."""
    tag = uuid.uuid4().hex
    jobs = [made(client, f"{n} {tag}", deferred=True) for n in range(50)]
    page = console.go(f"/jobs?text={tag}")
    expect(rows(console)).to_have_count(50)
    expect(console.button("Older")).to_have_count(0)
    jobs += [made(client, f"{n} {tag}", deferred=True) for n in range(50, 53)]
    expect(console.row(jobs[-1])).to_be_visible()
    expect(console.row(jobs[2])).to_have_count(0)
    console.button("Older").click()
    expect(rows(console)).to_have_count(3)
    for job in jobs[:3]:
        expect(console.row(job)).to_be_visible()
    console.button("Newer").click()
    expect(console.row(jobs[-1])).to_be_visible()
    page.mouse.move(5, 5)
    jobs += [made(client, f"{n} {tag}", deferred=True) for n in range(53, 55)]
    expect(console.row(jobs[-1])).to_be_visible()
    console.button("Older").click()
    expect(rows(console)).to_have_count(5)
    expect(page.get_by_text("Total Matching Jobs 55")).to_be_visible()


def test_pages_after_back_and_reload(opened: Callable[..., Console], console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    jobs = [made(client, f"{n:03} {tag}", deferred=True) for n in range(110)]
    pages = [jobs[109], jobs[59], jobs[9]]
    page = console.go(f"/jobs?text={tag}")

    def shows(number: int) -> None:
        expect(console.row(pages[number])).to_be_visible()
        expect(names(console).first).to_contain_text(client.jobs.get(pages[number]).display_name)

    shows(0)
    console.button("Older").click()
    shows(1)
    console.button("Older").click()
    shows(2)
    expect(console.button("Older")).to_be_disabled()
    page.go_back()
    shows(1)
    console.button("Newer").click()
    shows(0)
    expect(console.button("Newer")).to_be_disabled()
    console.button("Older").click()
    shows(1)
    console.button("Older").click()
    shows(2)
    page.reload()
    shows(2)
    console.button("Newer").click()
    shows(1)
    console.button("Newer").click()
    shows(0)
    console.button("Older").click()
    shows(1)
    # Whoever is given the address has no pages before it: there is a way to the first.
    other = opened()
    other.go(page.url)
    expect(other.row(pages[1])).to_be_visible()
    other.button("First Page").click()
    expect(other.row(pages[0])).to_be_visible()


def test_a_refresh_that_fails_keeps_the_rows(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    job_id = made(client, f"kept {tag}", deferred=True)
    page = console.go(f"/jobs?text={tag}")
    page.get_by_label(f"Select job {job_id}", exact=True).check()
    page.route("**/v1/jobs?*", lambda route: route.abort())
    console.button("Refresh").click()
    expect(page.get_by_text("These rows may be old")).to_be_visible()
    expect(console.row(job_id)).to_be_visible()
    expect(page.get_by_label(f"Select job {job_id}", exact=True)).to_be_checked()
    expect(console.button("Cancel")).to_be_enabled()
    page.unroute("**/v1/jobs?*")
    client.jobs.cancel(job_id)
    expect(console.row(job_id)).to_contain_text("Canceled")
    console.button("Try again").click()
    expect(page.get_by_text("These rows may be old")).to_be_hidden()
    expect(console.row(job_id)).to_be_visible()


def test_a_list_that_cannot_be_had_has_no_rows_of_another(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    job_id = made(client, f"other {tag}", deferred=True)
    page = console.go(f"/jobs?text={tag}")
    page.get_by_label(f"Select job {job_id}", exact=True).check()
    page.route("**/v1/jobs?*", lambda route: route.abort())
    page.get_by_label("Run State").select_option(label="Failed")
    expect(page.get_by_text("The server cannot be reached").first).to_be_visible()
    expect(console.row(job_id)).to_have_count(0)
    expect(console.button("Cancel")).to_be_disabled()
    page.unroute("**/v1/jobs?*")
    console.button("Try again").click()
    expect(page.get_by_text("No job matches")).to_be_visible()
    client.jobs.cancel(job_id)


def test_refresh(console: Console, client: Client) -> None:
    """It fetches the list, also where the stream of changes has nothing to say."""
    tag = uuid.uuid4().hex
    made(client, f"there {tag}", deferred=True)
    page = console.page
    page.route("**/v1/jobs:watch*", lambda route: route.abort())
    page.goto(f"/jobs?text={tag}")
    expect(rows(console)).to_have_count(1)
    expect(page.get_by_text("Reconnecting …")).to_be_visible()
    second = made(client, f"new {tag}", deferred=True)
    expect(console.row(second)).to_have_count(0)
    console.button("Refresh").click()
    expect(console.row(second)).to_be_visible()
    page.unroute("**/v1/jobs:watch*")


def test_a_watch_that_cannot_begin_does_not_have_the_list_fetched_without_end(console: Console, client: Client) -> None:
    """Each page's watch is refused at once, and the list is fetched again for each: with a rest between them."""
    tag = uuid.uuid4().hex
    first = made(client, f"there {tag}", deferred=True)
    page = console.page
    page.route(
        "**/v1/jobs:watch*",
        lambda route: route.continue_(url=re.sub("resumeToken=[^&]*", "resumeToken=damaged", route.request.url)),
    )
    page.goto(f"/jobs?text={tag}")
    expect(console.row(first)).to_be_visible()
    expect(page.get_by_text("Reconnecting …")).to_be_visible()
    second = made(client, f"new {tag}", deferred=True)
    expect(console.row(second)).to_be_visible()
    page.unroute("**/v1/jobs:watch*")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    client.jobs.cancel(first)
    expect(console.row(first)).to_contain_text("Canceled")


def test_a_refresh_shows_nothing_older_than_it_has_fetched(console: Console, client: Client) -> None:
    """What the watch of the page before says meanwhile may be older; the page's own watch would not mend it."""
    job_id = made(client, f"moves {uuid.uuid4().hex}", deferred=True)
    page = console.page
    watches: list[Route] = []
    page.route("**/v1/jobs:watch*", lambda route: watches.append(route))
    page.goto("/jobs")
    expect(console.row(job_id)).to_contain_text("Deferred")
    job = console.context.request.get(f"/v1/jobs/{job_id}").json()["job"]
    lists: list[Route] = []
    page.route("**/v1/jobs?*", lambda route: lists.append(route))
    console.button("Refresh").click()
    expect(console.row(job_id)).to_be_visible()
    news = {"resumeToken": "", "jobs": [{**job, "status": "JOB_STATUS_RUNNING"}], "goneJobIds": []}
    watches[-1].fulfill(body=json.dumps(news) + "\n", content_type="application/x-ndjson")
    page.unroute("**/v1/jobs:watch*")
    expect(console.row(job_id)).to_contain_text("Running")
    lists[0].continue_()
    page.unroute("**/v1/jobs?*")
    expect(console.row(job_id)).to_contain_text("Deferred")
    client.jobs.cancel(job_id)


def test_create_new(console: Console) -> None:
    page = console.page
    page.get_by_role("link", name="Create New").click()
    expect(page).to_have_url(re.compile("/jobs/new"))
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()


def test_sorted_by_every_column(console: Console, client: Client) -> None:
    """A click sorts, the next one the other way; the head says which."""
    tag = uuid.uuid4().hex
    first = made(client, f"b {tag}", "exit 1")
    ended(client, first)
    second = made(client, f"a {tag}")
    ended(client, second)
    held = made(client, f"c {tag}", deferred=True)
    ascending = {
        "Job Id": "bac",
        "Type": "bac",
        "Target": "cba",  # one that has not run has none yet
        "Created On": "bac",
        "Started On": "bac",
        "Completed On": "bac",
    }
    page = console.go(f"/jobs?text={tag}")
    for column, order in ascending.items():
        for way in ("ascending", "descending"):
            head = page.get_by_role("columnheader", name=column)
            for _ in range(2):
                if head.get_attribute("aria-sort") != way:
                    console.button(column).click()
            expect(head).to_have_attribute("aria-sort", way)
            expected = order if way == "ascending" else order[::-1]
            expect(names(console)).to_have_text([f"{name} {tag}" for name in expected])
    console.button("Status").click()
    expect(page.get_by_role("columnheader", name="Status")).to_have_attribute("aria-sort", "ascending")
    expect(page.locator("table.jobs td.status")).to_have_text(["Deferred", "Failed", "Success"])
    console.button("Status").click()
    expect(page.locator("table.jobs td.status")).to_have_text(["Success", "Failed", "Deferred"])
    client.jobs.cancel(held)


def test_a_bulk_cancel_says_what_is_still_canceling(console: Console, client: Client) -> None:
    """A job that runs is not canceled when the request is accepted."""
    tag = uuid.uuid4().hex
    stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    running, held = made(client, f"1 {tag}", stubborn), made(client, f"2 {tag}", deferred=True)
    until(lambda: client.jobs.get(running).status == job_pb2.JOB_STATUS_RUNNING, "it to run")
    page = console.go(f"/jobs?text={tag}")
    expect(rows(console)).to_have_count(2)
    page.get_by_label("Select all jobs on this page").check()
    console.button("Cancel").click()
    console.confirm("Cancel")
    expect(page.get_by_text("1 job canceled, 1 job being canceled")).to_be_visible()
    client.jobs.abort(running)
    assert client.jobs.get(held).status == job_pb2.JOB_STATUS_CANCELED


def test_a_bulk_action_that_is_stopped_tells_what_was_done(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    jobs = [made(client, f"{n} {tag}", deferred=True) for n in range(4)]
    page = console.go(f"/jobs?text={tag}")
    expect(rows(console)).to_have_count(4)
    # The answer of a server that goes on for longer than anybody waits.
    page.evaluate(
        """(jobs) => {
          const whole = window.fetch;
          window.fetch = (address, options) => {
            if (!String(address).includes("jobs:apply")) return whole(address, options);
            const lines = [{ result: { jobId: jobs[0] } },
              { result: { jobId: jobs[1], error: { message: "it is gone" } } }];
            const body = new ReadableStream({
              start(to) {
                const encoder = new TextEncoder();
                for (const line of lines) to.enqueue(encoder.encode(JSON.stringify(line) + "\\n"));
                options.signal.addEventListener("abort", () => to.error(options.signal.reason));
              },
            });
            return Promise.resolve(new Response(body, { status: 200 }));
          };
        }""",
        [str(job) for job in jobs],
    )
    page.get_by_label("Select all jobs on this page").check()
    console.button("Cancel").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel", exact=True).click()
    expect(dialog.get_by_text("1 canceled, 1 refused")).to_be_visible()
    dialog.get_by_role("button", name="Stop", exact=True).click()
    told = page.get_by_role("dialog")
    expect(told).to_contain_text("Stopped after 2 of 4 jobs: 1 job canceled, 1 was refused")
    expect(told).to_contain_text("it is gone")
    told.get_by_role("button", name="Close").click()
    for job in jobs:
        client.jobs.cancel(job)


def test_a_choice_moves_no_row(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    job_id = made(client, f"still {tag}", deferred=True)
    page = console.go(f"/jobs?text={tag}")
    row = console.row(job_id)
    expect(row).to_be_visible()
    before = row.bounding_box()
    page.get_by_label(f"Select job {job_id}", exact=True).check()
    expect(page.get_by_text("1 job selected.")).to_be_visible()
    assert row.bounding_box() == before
    client.jobs.cancel(job_id)


def test_the_looks_of_a_row(console: Console, client: Client) -> None:
    """One line on a desk; a status that differs looks different."""
    tag = uuid.uuid4().hex
    jobs = {
        "Canceled": made(client, f"row of a list {tag[:8]}", deferred=True),
        "Deferred": made(client, f"row of a list {tag[:8]}", deferred=True),
        "Waiting": made(client, f"row of a list {tag[:8]}", site="group:lisbon"),
    }
    client.jobs.cancel(jobs["Canceled"])
    ended_job = made(client, f"row of a list {tag[:8]}")
    ended(client, ended_job)
    page = console.go(f"/jobs?text={tag[:8]}")
    looks = set()
    for word, job_id in jobs.items():
        badge = console.row(job_id).locator(".badge")
        expect(badge).to_have_text(word)
        looks.add(
            badge.evaluate("e => { const s = getComputedStyle(e); return s.color + s.backgroundColor + s.borderStyle }")
        )
    assert len(looks) == len(jobs), looks
    box = console.row(ended_job).bounding_box()
    assert box is not None and box["height"] < 40
    assert page.evaluate(
        "() => document.querySelector('.sheet').scrollWidth <= document.querySelector('.sheet').clientWidth"
    )
    for job_id in (jobs["Deferred"], jobs["Waiting"]):
        client.jobs.cancel(job_id)


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_has_it_all(opened: Callable[..., Console], client: Client, width: int) -> None:
    """What a row says, its order and the choice of a page, on the width of a phone and at a zoom of 400 %."""
    tag = uuid.uuid4().hex
    second, first = made(client, f"b {tag}"), made(client, f"a {tag}")
    ended(client, first)
    ended(client, second)
    console = opened(viewport={"width": width, "height": 844})
    page = console.go(f"/jobs?text={tag}")
    row = console.row(first)
    for part in (f"a {tag}", "IT Automation", "Success"):
        expect(row.get_by_text(part)).to_be_visible()
    expect(row.locator("td.target")).to_be_visible()
    for name, label in (
        ("children", "Child Jobs"),
        ("created", "Created"),
        ("started", "Started"),
        ("completed", "Completed"),
    ):
        cell = row.locator(f"td.{name}")
        expect(cell).to_be_visible()
        assert label in cell.evaluate("cell => getComputedStyle(cell, '::before').content")
    page.get_by_label("Sort by").select_option(label="Name, ascending")
    expect(names(console)).to_have_text([f"a {tag}", f"b {tag}"])
    page.get_by_label("Sort by").select_option(label="Name, descending")
    expect(names(console)).to_have_text([f"b {tag}", f"a {tag}"])
    page.reload()
    expect(page.get_by_label("Sort by")).to_have_value("display_name desc")
    page.get_by_label("Select all jobs on this page").check()
    expect(page.get_by_text("2 jobs selected.")).to_be_visible()
    console.button("Delete").click()
    console.confirm("Delete")
    expect(page.get_by_text("No job matches")).to_be_visible()
    page.goto("/jobs")
    top = rows(console).first.bounding_box()
    assert top is not None and top["y"] < 330
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_what_is_said_of_a_choice_keeps_the_focus(console: Console, client: Client) -> None:
    """While jobs change beneath it, and when all that match are chosen."""
    tag = uuid.uuid4().hex
    first, second = (made(client, f"{n} {tag}", deferred=True) for n in (1, 2))

    def many(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "totalSize": "60"})

    page = console.page
    page.route("**/v1/jobs?*", many)
    page.goto(f"/jobs?text={tag}")
    page.get_by_label("Select all jobs on this page").check()
    more = console.button("Select all 60 that match")
    more.focus()
    client.jobs.cancel(first)
    expect(console.row(first)).to_contain_text("Canceled")
    expect(more).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("All 60 jobs that match are selected.")).to_be_visible()
    expect(console.button("Clear")).to_be_focused()
    client.jobs.cancel(second)
    expect(console.row(second)).to_contain_text("Canceled")
    expect(console.button("Clear")).to_be_focused()
    page.keyboard.press("Enter")
    expect(console.button("Clear")).to_be_hidden()


def test_a_list_that_is_cut_off_in_the_middle_is_told(console: Console, client: Client) -> None:
    job_id = made(client, f"cut {uuid.uuid4().hex}", deferred=True)
    page = console.page
    page.route("**/v1/jobs?*", lambda route: route.fulfill(body='{"jobs": [', content_type="application/json"), times=1)
    page.goto("/jobs")
    expect(page.get_by_text("The server cannot be reached").first).to_be_visible()
    console.button("Try again").click()
    expect(console.row(job_id)).to_be_visible()
    client.jobs.cancel(job_id)


def test_a_watch_that_lost_its_place_begins_again_once_the_list_can_be_had(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    job_id = made(client, f"lost {tag}", deferred=True)
    details = [{"reason": "RESUME_EXPIRED", "domain": "sis"}]
    error = {"code": 410, "status": "OUT_OF_RANGE", "message": "Too old.", "details": details}
    asked: list[str] = []

    def second_fails(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) == 2:
            unavailable(route)
        else:
            route.continue_()

    page = console.page
    page.route(
        "**/v1/jobs:watch*",
        lambda route: route.fulfill(body=json.dumps({"error": error}), content_type="application/x-ndjson", status=410),
        times=1,
    )
    page.route("**/v1/jobs?*", second_fails)
    with page.expect_response(lambda response: response.status == 503):
        page.goto(f"/jobs?text={tag}")
    expect(page.get_by_text("Reconnecting …")).to_be_visible()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    client.jobs.cancel(job_id)
    expect(console.row(job_id)).to_contain_text("Canceled")


def test_a_dialog_goes_with_its_page(console: Console, client: Client) -> None:
    tag = uuid.uuid4().hex
    job_id = made(client, f"left {tag}", deferred=True)
    page = console.go("/agents")
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Jobs").click()
    page.get_by_label(f"Select job {job_id}", exact=True).check()
    console.button("Cancel").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Agents")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    client.jobs.cancel(job_id)


def test_what_is_done_after_its_list_was_left_fetches_no_list(console: Console, client: Client) -> None:
    """What was confirmed goes on, and is told. Nobody sees the list, so nobody would ever end its watch."""
    job_id = made(client, f"left {uuid.uuid4().hex}", deferred=True)
    page = console.go("/agents")
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Jobs").click()
    page.get_by_label(f"Select job {job_id}", exact=True).check()
    console.button("Cancel").click()
    held: list[Route] = []
    page.route("**/v1/jobs:apply", lambda route: held.append(route))
    with page.expect_request("**/v1/jobs:apply"):
        page.get_by_role("dialog").get_by_role("button", name="Cancel", exact=True).click()
    page.go_back()
    expect(page.get_by_role("heading", name="Agents")).to_be_visible()
    lists: list[str] = []
    page.on("request", lambda request: lists.append(request.url) if "/v1/jobs?" in request.url else None)
    held[0].continue_()
    expect(page.get_by_text("1 job canceled")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    # Whatever was asked for by then was asked for before this.
    with page.expect_response("**/v1/agents?*"):
        pass
    assert not lists


def test_the_filter_field_says_what_the_list_is_filtered_by(console: Console, client: Client) -> None:
    """Also after Back, with the focus still in it."""
    tag = uuid.uuid4().hex
    job_id = made(client, f"filtered {tag}", deferred=True)
    page = console.go("/jobs")
    page.get_by_label("Run State").select_option(label="Ready")
    expect(page).to_have_url(re.compile("state=RUN_STATE_READY"))
    field = page.get_by_label("Filter by name, operation, target")
    field.fill(f"{tag} ")
    expect(page).to_have_url(re.compile(f"text={tag}$"))
    expect(console.row(job_id)).to_be_visible()
    expect(field).to_have_value(f"{tag} ")
    page.go_back()
    expect(page).to_have_url(re.compile("/jobs$"))
    expect(field).to_be_focused()
    expect(field).to_have_value("")
    client.jobs.cancel(job_id)


def test_a_second_click_on_older_turns_no_second_page(console: Console, client: Client) -> None:
    """As long as the next page is not there, nobody knows which one follows it."""
    tag = uuid.uuid4().hex
    for n in range(51):
        made(client, f"{n} {tag}", deferred=True)
    page = console.go(f"/jobs?text={tag}")
    expect(rows(console)).to_have_count(50)
    held: list[Route] = []
    page.route("**/v1/jobs?*", lambda route: held.append(route))
    with page.expect_request("**/v1/jobs?*"):
        console.button("Older").click()
    console.button("Older").click()
    held[-1].continue_()
    page.unroute("**/v1/jobs?*")
    expect(rows(console)).to_have_count(1)
    assert page.evaluate("() => history.state.trail") == [""]
    console.button("Newer").click()
    expect(rows(console)).to_have_count(50)
    expect(console.button("Newer")).to_be_disabled()
