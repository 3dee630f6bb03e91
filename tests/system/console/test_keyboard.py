"""The console without a mouse, and for those who have it read out."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

import pytest
from playwright.sync_api import APIResponse, Route, expect

from sis.client import Client
from tests.system.console.console import Console
from tests.system.console.test_job_list import ended, made

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("size", [{"width": 1360, "height": 500}, {"width": 390, "height": 600}], ids=["desk", "phone"])
def test_from_the_list_to_the_log_by_tab(opened: Callable[..., Console], client: Client, size: dict[str, int]) -> None:
    name = f"keys {uuid.uuid4().hex}"
    job_id = made(client, name, "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; done")
    ended(client, job_id)
    console = opened(viewport=size)
    page = console.go(f"/jobs?text={name}")
    link = console.row(job_id).get_by_role("link", name=name)
    expect(link).to_be_visible()
    assert console.tab_to(link)[:2] == ["Skip to the content", "SIS: job queue"]
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=name)).to_be_focused()
    log = page.locator(".log")
    expect(log).to_contain_text("line 200")
    passed = console.tab_to(log)
    wanted = ["Copy", "Rerun", "Delete", "Monitor", "Console Output", "Debug Log", "Processes", "History", "Wrap lines"]
    assert [each for each in passed if each in wanted][: len(wanted)] == wanted
    at_end = log.evaluate("log => log.scrollTop")
    page.keyboard.press("PageUp")
    page.wait_for_function("before => document.querySelector('.log').scrollTop < before", arg=at_end)
    # And all the way down, and back up under the bar that stands still.
    console.tab_to(page.get_by_role("link", name="core.shell"))
    console.tab_to(page.locator("header").get_by_role("link", name="Jobs", exact=True).last, back=True)


def test_the_focus_goes_to_the_heading_of_a_page(console: Console) -> None:
    page = console.go("/jobs")
    for place in ("KeySafe", "Packages", "Agents", "Jobs"):
        page.get_by_role("navigation", name="Main").get_by_role("link", name=place).click()
        expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.go_back()
    expect(page.get_by_role("heading", name="Agents")).to_be_focused()


def test_the_theme_is_chosen_and_kept(opened: Callable[..., Console]) -> None:
    console = opened(color_scheme="light")
    page = console.page
    back = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    button = page.get_by_role("button", name="Theme:")
    button.click()
    expect(button).to_have_accessible_name("Theme: light. Change it")
    button.click()
    expect(button).to_have_accessible_name("Theme: dark. Change it")
    assert page.evaluate(back) != light
    page.reload()
    expect(button).to_have_accessible_name("Theme: dark. Change it")
    assert page.evaluate(back) != light
    button.click()
    expect(button).to_have_accessible_name("Theme: as the system. Change it")
    assert page.evaluate(back) == light


def test_who_skips_to_the_content_keeps_it(console: Console) -> None:
    page = console.go("/jobs/new?package=core.shell")
    name = page.locator("[name=displayName]")
    name.fill("typed")
    page.get_by_text("Skip to the content").focus()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    expect(name).to_have_value("typed")
    expect(page).to_have_url(re.compile("/jobs/new.package=core.shell$"))


def test_the_focus_stays_where_it_was_put(console: Console) -> None:
    """The page of an agent asks for it again and again."""
    page = console.go("/agents")
    page.get_by_role("link", name="local-1").click()
    expect(page.get_by_role("heading", name="local-1")).to_be_focused()
    for _ in range(2):
        with page.expect_response("**/v1/agents/local-1"):
            pass
    expect(page.get_by_role("heading", name="local-1")).to_be_focused()


def test_what_goes_hands_on_the_focus(console: Console, client: Client) -> None:
    name = f"hands on {uuid.uuid4().hex}"
    job_id = made(client, name, "for n in $(seq 300); do echo line $n; done; sleep 600")
    page = console.job(job_id, "output")
    log = page.locator(".log")
    expect(log).to_contain_text("line 300")
    log.evaluate("log => log.scrollTo(0, 0)")
    console.button("To the latest line").focus()
    page.keyboard.press("Enter")
    expect(log).to_be_focused()
    search = page.get_by_label("Search the log")
    search.fill("line 7")
    page.keyboard.press("Enter")
    expect(page.locator(".matches button").first).to_be_visible()
    console.button("Close the search").focus()
    page.keyboard.press("Enter")
    expect(search).to_be_focused()
    console.button("Pause").focus()
    client.jobs.abort(job_id)
    expect(log).to_be_focused()
    console.button("Delete").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Go back").click()
    expect(console.button("Delete")).to_be_focused()
    page = console.go(f"/jobs?text={name}")
    page.get_by_label(f"Select job {job_id}", exact=True).check()
    console.button("Clear").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".list-place")).to_be_focused()


@pytest.mark.parametrize("late", [False, True], ids=["before the job", "after it"])
def test_the_focus_is_not_lost_to_a_button_that_was_used(console: Console, client: Client, late: bool) -> None:
    """It is disabled once the job is canceled, which may be seen before the request is answered."""
    name = f"used {uuid.uuid4().hex}"
    page = console.job(made(client, name, "sleep 600"))
    held: list[tuple[Route, APIResponse]] = []
    if late:
        page.route("**/*:cancel", lambda route: held.append((route, route.fetch())))
    expect(page.locator("h1 + .badge")).to_have_text("Running")
    console.button("Cancel").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("h1 + .badge")).to_have_text("Canceled")
    for route, response in held:
        route.fulfill(response=response)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("heading", name=name)).to_be_focused()
