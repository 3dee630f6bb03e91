"""The console as a person uses it: by what is written on it."""

from __future__ import annotations

import json
from typing import Any, Self

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Route, expect

SECONDS = 30.0


def unavailable(route: Route) -> None:
    """What a load balancer says while servers are rolled."""
    route.fulfill(status=503, json={"error": {"code": 503, "status": "UNAVAILABLE", "message": "Being rolled."}})


class Console:
    """One person's browser, with cookies of its own."""

    def __init__(self, browser: Browser, url: str, token: str, **options: Any) -> None:
        self.url = url
        self.token = token
        options.setdefault("viewport", {"width": 1360, "height": 850})
        self.context = browser.new_context(base_url=url, locale="en-GB", timezone_id="Europe/Berlin", **options)
        self.context.set_default_timeout(SECONDS * 1000)
        self.faults: list[str] = []
        """Errors of scripts, dialogs that scripts opened, and what the policy of the page has refused."""
        self.page = self.new_page()

    def new_page(self) -> Page:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._note)
        page.on("dialog", self._refuse)
        return page

    def _refuse(self, dialog: Dialog) -> None:
        self.faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _note(self, message: ConsoleMessage) -> None:
        # An answer that is no success is told to a person by the page; the browser notes it too.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)

    def close(self) -> None:
        self.context.close()

    def sign_in(self) -> Self:
        self.page.goto("/")
        self.page.get_by_label("Token").fill(self.token)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
        return self

    def go(self, path: str) -> Page:
        self.page.goto(path)
        return self.page

    def job(self, job_id: int, view: str = "") -> Page:
        """The page of a job, once it is there."""
        self.go(f"/jobs/{job_id}" + (f"?view={view}" if view else ""))
        expect(self.page.get_by_role("navigation", name="Views of the job")).to_be_visible()
        return self.page

    def shown(self, job_id: int, view: str = "", **changes: Any) -> Page:
        """The page of a job that ended, as it would be if the server said these fields of it."""
        path = f"/v1/jobs/{job_id}"
        found = self.context.request.get(path).json()
        found["job"].update(changes)
        self.page.route(f"**{path}", lambda route: route.fulfill(json=found))
        news = json.dumps(found) + "\n"
        self.page.route(
            f"**{path}:monitor?*", lambda route: route.fulfill(body=news, content_type="application/x-ndjson")
        )
        return self.job(job_id, view)

    def row(self, job_id: int) -> Locator:
        """A row of the list."""
        return self.page.locator("table.jobs tbody tr", has=self.page.get_by_label(f"Select job {job_id}", exact=True))

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def confirm(self, action: str, reason: str = "") -> None:
        """Agree to what a dialog asks."""
        dialog = self.page.get_by_role("dialog")
        if reason:
            dialog.get_by_label("Reason").fill(reason)
        dialog.get_by_role("button", name=action, exact=True).click()
        expect(dialog).to_have_count(0)

    def tab_to(self, wanted: Locator, *, back: bool = False) -> list[str]:
        """Press Tab, or Shift and Tab, until this has the focus; what had it meanwhile. Whatever has it is in sight."""
        passed = []
        for _ in range(80):
            self.page.keyboard.press("Shift+Tab" if back else "Tab")
            name, hidden = self.page.evaluate(_FOCUSED)
            assert not hidden, f"{name} has the focus, and is covered"
            passed.append(name)
            if wanted.evaluate("wanted => wanted === document.activeElement"):
                return passed
        raise AssertionError(f"Tab does not reach it: {passed}")

    def log_lines(self) -> list[str]:
        """What the log on the page says, line by line."""
        lines = self.page.locator(".log .line")
        found: list[str] = lines.evaluate_all("lines => lines.map((line) => line.textContent)")
        return found


_FOCUSED = """() => {
    const found = document.activeElement;
    const bar = document.querySelector(".bar").getBoundingClientRect();
    const place = found.getBoundingClientRect();
    const inBar = found.closest(".bar, .skip") !== null || found === document.body;
    const name = found.getAttribute("aria-label") || found.textContent.trim() || found.name || found.tagName;
    return [name, !inBar && place.bottom <= bar.bottom];
}"""
"""What has the focus, and whether the bar covers all of it."""
