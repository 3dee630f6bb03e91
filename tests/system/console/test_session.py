"""What a session that ends does to whoever is in the middle of something: it costs a token, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from tests.system.console.console import Console
from tests.system.console.test_forms import begin

pytestmark = pytest.mark.timeout(180)

DEADLINES = """
const deadlines = [];
AbortSignal.timeout = () => {
    const deadline = new AbortController();
    deadlines.push(deadline);
    return deadline.signal;
};
window.letDeadlinesPass = () => {
    for (const each of deadlines.splice(0)) each.abort(new DOMException("too late", "TimeoutError"));
};
"""


def interrupted(console: Console, name: str) -> Locator:
    """A form of a session that has ended, sent; the dialog that asks for another one."""
    page = begin(console, "core.shell", name)
    page.get_by_label("script").fill("echo kept")
    console.context.clear_cookies()
    console.button("Create job").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Your session has ended")
    return dialog


def sign_in(dialog: Locator, token: str) -> None:
    dialog.get_by_label("Token").fill(token)
    dialog.get_by_role("button", name="Sign in").click()


def test_a_session_that_ends_in_the_middle_of_a_form_loses_nothing(console: Console) -> None:
    dialog = interrupted(console, "interrupted")
    sign_in(dialog, "wrong")
    expect(dialog).to_contain_text("not known here")
    sign_in(dialog, console.token)
    expect(console.page.locator("h1 + .badge")).to_have_text("Success")
    expect(console.page.locator(".log")).to_contain_text("kept")


def test_whoever_takes_long_to_sign_in_loses_nothing(console: Console) -> None:
    console.context.add_init_script(DEADLINES)
    dialog = interrupted(console, "out for lunch")
    console.page.evaluate("() => letDeadlinesPass()")
    sign_in(dialog, console.token)
    expect(console.page.locator("h1 + .badge")).to_have_text("Success")


def test_escape_does_not_close_what_asks_for_the_token(console: Console) -> None:
    dialog = interrupted(console, "impatient")
    for _ in range(4):
        console.page.keyboard.press("Escape")
    expect(dialog.get_by_label("Token")).to_be_focused()
    sign_in(dialog, console.token)
    expect(console.page.locator("h1 + .badge")).to_have_text("Success")


def test_a_browser_without_idle_callbacks(opened: Callable[..., Console]) -> None:
    """Safari. Also the page after the sign-in comes, and the form, which is fetched ahead elsewhere."""
    console = opened(signed_in=False)
    console.context.add_init_script("delete window.requestIdleCallback;")
    console.sign_in()
    page = console.go("/jobs/new")
    expect(page.get_by_role("heading", name="Create a job")).to_be_visible()


def test_signing_out(opened: Callable[..., Console]) -> None:
    console = opened()
    console.page.get_by_role("button", name="Sign out").click()
    expect(console.page.get_by_label("Token")).to_be_visible()
    expect(console.page.locator("code", has_text="sis up")).to_be_visible()
    expect(console.page.get_by_text("`")).to_have_count(0)
    assert console.context.request.get("/v1/jobs").status == 401
