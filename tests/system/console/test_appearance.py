"""Every page in both themes, on a desk and on a phone, and what opens on it: pictures of all of it under
build/screenshots, nothing by which axe-core finds WCAG 2.2 AA broken, nothing wider than the screen, no part that
touches the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from sis.client import Client
from tests.support.stack import Stack
from tests.system.console.conftest import BUILD
from tests.system.console.console import Console
from tests.system.console.gallery import PAGES, Gallery

pytestmark = pytest.mark.timeout(240)

SCREENSHOTS = BUILD / "screenshots"
SIZES = {"desk": {"width": 1360, "height": 850}, "phone": {"width": 390, "height": 844}}
TOUCHING = """() => {
    const box = (part) => part.getBoundingClientRect();
    const parts = [...document.querySelectorAll(".page > *, .shown > *")].filter(
        (part) => box(part).height > 0 && !part.matches(".state") && getComputedStyle(part).position === "static");
    return parts
        .filter((part, n) => n > 0 && parts[n - 1].parentNode === part.parentNode
            && box(part).left < box(parts[n - 1]).right && box(part).top - box(parts[n - 1]).bottom < 4)
        .map((part) => `it touches what is above it: ${part.outerHTML.slice(0, 200)}`);
}"""
WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")


@pytest.fixture(scope="module")
def gallery(stack: Stack) -> Iterator[Gallery]:
    with stack.client() as client, Gallery(client) as gallery:
        yield gallery


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pages(
    opened: Callable[..., Console], gallery: Gallery, axe: Path, client: Client, theme: str, size: str
) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    # axe-core is a script that is none of the page's, which its policy would refuse.
    console = opened(color_scheme=theme, viewport=SIZES[size], bypass_csp=True, signed_in=False)
    page = console.page
    page.goto("/")
    expect(page.get_by_label("Token")).to_be_visible()
    wrong = {"sign-in": _look(console, axe, f"sign-in-{theme}-{size}")}
    console.sign_in()
    for name, path in PAGES.items():
        page.goto(path.format(**gallery.jobs))
        expect(page.locator("main h1, main .state").first).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        if name == "dialog":
            page.get_by_role("button", name="Cancel", exact=True).click()
        wrong[name] = _look(console, axe, f"{name}-{theme}-{size}")
    assert not any(wrong.values()), {name: each for name, each in wrong.items() if each}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_opens_on_pages(opened: Callable[..., Console], gallery: Gallery, axe: Path, theme: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    console = opened(color_scheme=theme, bypass_csp=True)
    page = console.page
    wrong: dict[str, list[str]] = {}

    def look(name: str) -> None:
        wrong[name] = _look(console, axe, f"{name}-{theme}-desk")

    console.job(gallery.jobs["failed"])
    page.get_by_label("Search the log").fill("release")
    page.keyboard.press("Enter")
    page.locator(".matches button").first.click()
    expect(page.locator(".log .line.current")).to_be_visible()
    look("search")
    console.job(gallery.jobs["failed"], "debug")
    for part in ("Full", "Problem"):
        page.get_by_label(part).check()
        expect(page.locator(".log .line.err")).to_be_visible()
        look(f"debug-log-{part.lower()}")
    console.go("/jobs")
    console.row(gallery.jobs["failed"]).get_by_role("checkbox").check()
    expect(page.locator(".banner:not([hidden])")).to_be_visible()
    look("selection")
    for name, path, button in (
        ("new-credential", "/credentials", "New credential"),
        ("pair-agent", "/agents", "Pair an agent"),
        ("push-package", "/packages", "Push a package"),
    ):
        console.go(path)
        console.button(button).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        look(name)
    console.go("/jobs/new?package=core.shell")
    expect(page.get_by_label("script")).to_be_visible()
    page.locator("form button[type=submit]").click()
    expect(page.locator("[aria-invalid=true]").first).to_be_visible()
    look("form-errors")
    console.go("/agents")
    expect(page.get_by_role("link", name="local-1")).to_be_visible()
    console.context.clear_cookies()
    page.get_by_role("navigation", name="Main").get_by_role("link", name="KeySafe").click()
    expect(page.get_by_role("heading", name="Your session has ended")).to_be_visible()
    look("session-ended")
    assert not any(wrong.values()), {name: each for name, each in wrong.items() if each}


def _look(console: Console, axe: Path, name: str) -> list[str]:
    page = console.page
    # Lines of a log are laid out when they come into sight, which those of such a picture do too late.
    style = ".line { content-visibility: visible !important; }"
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True, style=style)
    page.add_script_tag(path=axe)
    found: dict[str, Any] = page.evaluate("tags => axe.run({ resultTypes: ['violations'], runOnly: tags })", WCAG)
    wrong = [f"{each['id']}: {each['help']}: {each['nodes'][0]['html'][:200]}" for each in found["violations"]]
    width, room = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    if width > room:
        wrong.append(f"the page is {width} wide, and the screen {room}")
    wrong += page.evaluate(TOUCHING)
    return wrong
