"""The library of packages: pushing, looking at versions, deleting."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from sis.client import ApiError, Client
from sis.packages import archive
from tests.support.numbered_job import shell_job
from tests.system.console.console import Console

pytestmark = pytest.mark.timeout(180)

MANIFEST = """
name: {name}
version: {version}
publisher: Test
description: This is {version}.
platforms: [linux]
operations:
  run:
    description: Runs what it is given.
    command: ["true"]
    inputs:
      script: {{type: string, default: ""}}
      colour: {{type: string, default: red, hint: red, pattern: "[a-z]+", description: Of the roof.}}
"""


class Library:
    """Packages of one name, which no other test has."""

    def __init__(self, client: Client, scratch: Path) -> None:
        self.client = client
        self.name = f"own.p{uuid.uuid4().hex[:12]}"
        self._scratch = scratch

    def archive(self, version: str) -> Path:
        """The file of one version."""
        source = self._scratch / version
        source.mkdir()
        (source / "package.yaml").write_text(MANIFEST.format(name=self.name, version=version))
        packed = self._scratch / f"{version}.tar.gz"
        packed.write_bytes(archive.pack(source))
        return packed

    def push(self, *versions: str) -> None:
        for version in versions:
            self.client.packages.push(self.archive(version).read_bytes())

    def versions(self) -> list[str]:
        return [package.version for package in self.client.packages.all(self.name)]

    def held_job(self) -> int:
        """A job that waits for somebody."""
        job = shell_job("true", site="group:nowhere", deferred=True)
        job.package.name = self.name
        return self.client.jobs.create(job).job_id


@pytest.fixture
def library(client: Client, tmp_path: Path) -> Library:
    return Library(client, tmp_path)


def choose_file(page: Page, path: Path) -> Locator:
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Archive").set_input_files(path)
    dialog.get_by_role("button", name="Push", exact=True).click()
    return dialog


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("row", name=name)


def shown(page: Page, version: str) -> None:
    """The page is that of this version."""
    expect(page.get_by_text(f"This is {version}.")).to_be_visible()
    expect(page.get_by_label("Version")).to_have_value(version)


def test_a_package_is_pushed_from_the_list(console: Console, library: Library) -> None:
    packed = library.archive("1.0.0")
    page = console.go("/packages")
    console.button("Push a package").click()
    expect(choose_file(page, packed)).to_have_count(0)
    # Said once the dialog has gone, in a place that was there before: so those hear it who do not see it.
    expect(page.get_by_role("status").filter(has_text=f"{library.name} 1.0.0 was stored.")).to_be_visible()
    expect(row(page, library.name)).to_contain_text("This is 1.0.0.")
    console.button("Push a package").click()
    expect(choose_file(page, packed)).to_have_count(0)
    expect(page.get_by_text(f"{library.name} 1.0.0 is there already.")).to_be_visible()


def test_why_an_archive_is_not_taken_stands_in_the_dialog(console: Console, library: Library, tmp_path: Path) -> None:
    (tmp_path / "no.tar.gz").write_bytes(b"no archive")
    page = console.go("/packages")
    console.button("Push a package").click()
    page.get_by_role("dialog").get_by_role("button", name="Push", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("Choose an archive.")
    dialog = choose_file(page, tmp_path / "no.tar.gz")
    expect(dialog.get_by_role("alert")).to_contain_text("archive")
    expect(choose_file(page, library.archive("1.0.0"))).to_have_count(0)
    expect(row(page, library.name)).to_be_visible()


def test_a_push_that_takes_too_long_can_be_stopped(console: Console, library: Library) -> None:
    page = console.go("/packages")
    console.button("Push a package").click()
    page.route("**/v1/packages", lambda _: None)
    with page.expect_request("**/v1/packages"):
        dialog = choose_file(page, library.archive("1.0.0"))
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/v1/packages")):
        dialog.get_by_role("button", name="Stop", exact=True).click()
    expect(dialog).to_have_count(0)


def test_a_package_is_replaced_by_a_version_that_is_pushed_on_its_page(console: Console, library: Library) -> None:
    library.push("1.0.0")
    page = console.go(f"/packages/{library.name}")
    shown(page, "1.0.0")
    console.button("Push a version").click()
    expect(choose_file(page, library.archive("1.1.0"))).to_have_count(0)
    shown(page, "1.1.0")
    assert library.versions() == ["1.1.0", "1.0.0"]
    console.go("/packages")
    expect(row(page, library.name)).to_contain_text("1.1.0 and 1 older")


def test_a_job_is_created_of_the_version_that_was_looked_at(console: Console, library: Library) -> None:
    library.push("1.0.0", "2.0.0")
    page = console.go(f"/packages/{library.name}?version=1.0.0")
    shown(page, "1.0.0")
    page.get_by_role("link", name="Create a job").click()
    expect(page.get_by_label("Version", exact=True)).to_have_value("1.0.0")
    expect(console.button("Create job")).to_be_enabled()


def test_a_copy_names_a_package_that_is_gone_instead_of_another_one(
    console: Console, client: Client, library: Library
) -> None:
    library.push("1.0.0", "2.0.0")
    job = shell_job("true", site="group:nowhere", deferred=True)
    job.package.name, job.package.version = library.name, "1.0.0"
    job_id = client.jobs.create(job).job_id
    client.jobs.cancel(job_id)
    client.packages.delete(library.name, "1.0.0")
    page = console.go(f"/jobs/new?copy={job_id}")
    expect(page.get_by_label("Package", exact=True)).to_have_value(library.name)
    expect(page.get_by_label("Version", exact=True).locator(":checked")).to_have_text("1.0.0 (not in the library)")
    expect(page.get_by_role("alert")).to_contain_text("1.0.0")
    expect(console.button("Create job")).to_be_disabled()
    client.packages.delete(library.name, "2.0.0")
    page = console.go(f"/jobs/new?copy={job_id}")
    expect(page.get_by_label("Package", exact=True).locator(":checked")).to_have_text(
        f"{library.name} (not in the library)"
    )
    expect(console.button("Create job")).to_be_disabled()


def test_a_version_stays_until_the_chosen_one_is_there(console: Console, library: Library) -> None:
    library.push("1.0.0", "2.0.0")
    page = console.go(f"/packages/{library.name}")
    shown(page, "2.0.0")
    page.evaluate("""() => {
        window.spinners = 0;
        new MutationObserver(() => { window.spinners += document.querySelectorAll(".loading").length; })
            .observe(document.querySelector("main"), { childList: true, subtree: true });
    }""")
    held: list[Route] = []
    asked = f"**/v1/packages/{library.name}?version=1.0.0"
    page.route(asked, lambda route: held.append(route))
    choose = page.get_by_label("Version")
    choose.focus()
    with page.expect_request(asked):
        choose.select_option("1.0.0")
    while not held:  # the answer to each call brings what has happened meanwhile
        page.evaluate("() => 0")
    expect(page.get_by_text("This is 2.0.0.")).to_be_visible()
    held.pop().continue_()
    shown(page, "1.0.0")
    # Whoever chooses by the keyboard goes on from there.
    expect(page.get_by_label("Version")).to_be_focused()
    assert page.evaluate("() => window.spinners") == 0
    page.go_back()
    shown(page, "2.0.0")


def test_an_answer_that_comes_too_late_is_not_shown(console: Console, library: Library) -> None:
    library.push("1.0.0", "2.0.0", "3.0.0")
    page = console.go(f"/packages/{library.name}")
    shown(page, "3.0.0")
    held: list[Route] = []
    asked = f"**/v1/packages/{library.name}?version=1.0.0"
    page.route(asked, lambda route: held.append(route))
    with page.expect_request(asked):
        page.get_by_label("Version").select_option("1.0.0")
    with page.expect_event("requestfailed", lambda request: "version=1.0.0" in request.url):
        page.get_by_label("Version").select_option("2.0.0")
    shown(page, "2.0.0")


def test_a_version_is_deleted(console: Console, library: Library) -> None:
    library.push("1.0.0", "2.0.0")
    page = console.go(f"/packages/{library.name}?version=2.0.0")
    shown(page, "2.0.0")
    console.button("Delete").click()
    dialog = page.get_by_role("dialog", name=f"Delete {library.name} 2.0.0?")
    dialog.get_by_role("button", name="Go back").click()
    assert library.versions() == ["2.0.0", "1.0.0"]
    console.button("Delete").click()
    console.confirm("Delete")
    expect(page.get_by_text(f"{library.name} 2.0.0 was deleted.")).to_be_visible()
    shown(page, "1.0.0")
    assert library.versions() == ["1.0.0"]
    console.button("Delete").click()
    console.confirm("Delete")
    expect(page.get_by_role("heading", name="Packages")).to_be_visible()
    expect(row(page, "core.shell")).to_be_visible()
    expect(row(page, library.name)).to_have_count(0)
    # Its address tells whoever has kept it what became of it.
    console.go(f"/packages/{library.name}?version=1.0.0")
    expect(page.get_by_role("alert")).to_contain_text(f"{library.name}@1.0.0 was deleted by administrator at ")


def test_a_version_that_a_job_waits_for_is_not_deleted(console: Console, library: Library) -> None:
    library.push("1.0.0")
    job_id = library.held_job()
    page = console.go(f"/packages/{library.name}")
    console.button("Delete").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Delete", exact=True).click()
    said = (
        f"1 job that has not ended needs {library.name} 1.0.0: {job_id}; let it end, or cancel it, and delete it then"
    )
    expect(dialog.get_by_role("alert")).to_contain_text(said)
    assert library.versions() == ["1.0.0"]
    library.client.jobs.cancel(job_id)
    console.confirm("Delete")
    expect(page.get_by_role("heading", name="Packages")).to_be_visible()
    with pytest.raises(ApiError, match="was deleted by administrator"):
        library.client.jobs.rerun(job_id)


def test_what_an_input_takes_is_said_with_its_word(console: Console, library: Library) -> None:
    library.push("1.0.0")
    page = console.go(f"/packages/{library.name}")
    colour = page.get_by_role("row", name="colour")
    expect(colour).to_contain_text("Hint: red")
    expect(colour).to_contain_text("Pattern: [a-z]+")
    digest = library.client.packages.get(library.name).digest
    expect(page.get_by_text(f"SHA-256 {digest}", exact=True)).to_be_visible()


def test_nothing_in_a_row_of_the_list_breaks_it_in_two(console: Console, library: Library) -> None:
    library.push("1.0.0", "1.1.0")
    page = console.go("/packages")
    short = ", ".join(f"[data-label={head}]" for head in ("Version", "Publisher", "Size", "Pushed"))
    cells = row(page, library.name).locator(f"td:is({short})")
    expect(cells).to_have_count(4)
    heights = cells.locator("div").evaluate_all("cells => cells.map((cell) => cell.offsetHeight)")
    assert max(heights) < 1.5 * min(heights), heights


@pytest.mark.parametrize("width", [1360, 390])
def test_a_description_does_not_touch_the_buttons_above_it(
    opened: Callable[..., Console], library: Library, width: int
) -> None:
    library.push("1.0.0")
    page = opened(viewport={"width": width, "height": 850}).go(f"/packages/{library.name}")
    for button, description in (("Delete", "This is 1.0.0."), ("Create a job", "Runs what it is given.")):
        upper = page.get_by_text(button, exact=True).bounding_box()
        lower = page.get_by_text(description, exact=True).bounding_box()
        assert upper is not None and lower is not None
        assert lower["y"] - (upper["y"] + upper["height"]) > 4, button


def test_the_first_button_of_every_list_has_the_same_place(console: Console) -> None:
    places = {}
    buttons = {
        "/jobs": "Create New",
        "/agents": "Pair an agent",
        "/packages": "Push a package",
        "/credentials": "New credential",
    }
    for path, name in buttons.items():
        page = console.go(path)
        button = page.get_by_text(name, exact=True)
        expect(button).to_be_visible()
        box, heading = button.bounding_box(), page.get_by_role("heading", level=1).bounding_box()
        assert box is not None and heading is not None
        places[path] = (box["y"], heading["y"], box["x"] + box["width"])
    assert len(set(places.values())) == 1, places
