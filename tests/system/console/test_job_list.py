"""The Job Queue of the user guide: the list and its toolbar."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from sis.client import Client
from sis.queue.v1 import job_pb2
from tests.support.numbered_job import shell_job, until
from tests.system.console.console import Console

pytestmark = pytest.mark.timeout(180)

COLUMNS = ["Job Id", "Name", "Type", "Status", "Target", "Child Jobs", "Created On", "Started On", "Completed On"]


def made(client: Client, name: str, script: str = "true", *, site: str = "group:local", **fields: object) -> int:
    """A job of this name; its id."""
    request = shell_job(script, site=site, **fields)
    request.display_name = name
    return client.jobs.create(request).job_id


def ended(client: Client, job_id: int) -> None:
    until(lambda: client.jobs.get(job_id).HasField("complete_time"), f"the end of job {job_id}")


def test_the_columns_of_the_guide(console: Console, client: Client) -> None:
    name = f"columns {uuid.uuid4().hex}"
    job_id = made(client, name)
    ended(client, job_id)
    page = console.go(f"/jobs?text={name}")
    heads = [re.sub(r"[▼▲]", "", head).strip() for head in page.locator("table.jobs thead th").all_inner_texts()]
    assert heads[1:] == COLUMNS
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
    dialog.get_by_role("button", name="Do nothing").click()
    expect(one.button("Cancel")).to_be_disabled()
    expect(one.button("Rerun")).to_be_enabled()
