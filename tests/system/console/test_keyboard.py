"""The console without a mouse, and for those who have it read out."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

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
