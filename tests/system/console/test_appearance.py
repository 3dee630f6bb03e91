"""Every page in both themes, on a desk and on a phone: pictures of it under build/screenshots, nothing that axe-core
calls serious, nothing wider than the screen."""

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
SERIOUS = ("serious", "critical")


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


def _look(console: Console, axe: Path, name: str) -> list[str]:
    page = console.page
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    page.add_script_tag(path=axe)
    found: dict[str, Any] = page.evaluate("() => axe.run({ resultTypes: ['violations'] })")
    wrong = [
        f"{each['id']}: {each['help']}: {each['nodes'][0]['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]
    width, room = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    if width > room:
        wrong.append(f"the page is {width} wide, and the screen {room}")
    return wrong
