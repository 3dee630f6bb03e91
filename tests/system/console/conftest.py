"""Chromium, and the console of the stack that the tests share."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from sis.client import Client
from tests.support.stack import Stack
from tests.system.console.console import SECONDS, Console

AXE = "axe-core@4.10.3"
BUILD = Path(__file__).parents[3] / "build"


@pytest.fixture(scope="package")
def browser(stack: Stack) -> Iterator[Browser]:
    """The distribution's Chromium, without a network of its own. It ends with these tests: others, and the end of the
    stack, run an event loop, which there cannot be beside Playwright's."""
    expect.set_options(timeout=SECONDS * 1000)
    path = shutil.which("chromium")
    assert path, "these tests need Debian's package chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, stack: Stack) -> Iterator[Callable[..., Console]]:
    """Makes consoles, each of a person of their own: signed in unless `signed_in=False`. At the end of the test, none
    of them may have met an error."""
    found: list[Console] = []

    def open_console(*, url: str = "", signed_in: bool = True, **options: object) -> Console:
        console = Console(browser, url or stack.gateway, stack.token, **options)
        found.append(console)
        if signed_in:
            console.sign_in()
        return console

    yield open_console
    for console in found:
        console.close()
    for console in found:
        assert not console.faults, console.faults


@pytest.fixture
def console(opened: Callable[..., Console]) -> Console:
    """The console of one person, signed in."""
    return opened()


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with stack.client() as client:
        yield client


@pytest.fixture(scope="session")
def axe() -> Path:
    """axe-core, as the npm registry has it."""
    directory = BUILD / "axe"
    script = directory / "package" / "axe.min.js"
    if not script.exists():
        directory.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", str(directory), AXE],
            check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        shutil.unpack_archive(directory / packed.stdout.strip().splitlines()[-1], directory)
    return script
