"""Creating jobs, credentials, pairing codes: forms, and what a session that ends does to them."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from sis.client import Client
from sis.packages import archive
from sis.queue.v1 import job_pb2, job_service_pb2
from tests.support.numbered_job import until
from tests.system.console.console import Console
from tests.system.console.test_job_list import ended, made

pytestmark = pytest.mark.timeout(180)

MANIFEST = """
name: {name}
version: 1.0.0
publisher: Test
description: Takes every type of input.
platforms: [linux]
operations:
  take:
    description: Prints what it was given.
    command: [/bin/sh, "{{package}}/take.sh"]
    inputs:
      word: {{type: string, required: true, pattern: "[a-z]+", hint: tree, description: A word.}}
      count: {{type: integer, default: 3}}
      loud: {{type: boolean, default: false}}
      colour: {{type: enum, choices: [red, green]}}
      items: {{type: list}}
      paper: {{type: file}}
      key: {{type: string, sensitive: true, required: true}}
"""
SCRIPT = """
echo "$SIS_PARAM_WORD $SIS_PARAM_COUNT $SIS_PARAM_LOUD $SIS_PARAM_COLOUR"
echo "$SIS_PARAM_ITEMS"
cat "$SIS_PARAM_PAPER"
echo "the key is $SIS_PARAM_KEY"
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The archive of a package that takes every type of input."""
    source = tmp_path_factory.mktemp("package")
    (source / "package.yaml").write_text(MANIFEST.format(name=f"console.{uuid.uuid4().hex}"))
    (source / "take.sh").write_text(SCRIPT)
    return archive.pack(source)


def begin(console: Console, package: str, name: str) -> Page:
    page = console.go(f"/jobs/new?package={package}")
    page.locator("[name=displayName]").fill(name)
    return page


def test_every_type_of_input(console: Console, client: Client, package: bytes, tmp_path: Path) -> None:
    name = client.packages.push(package).package.name
    page = begin(console, name, "inputs")
    (tmp_path / "paper.txt").write_text("on paper\n")
    page.get_by_label("word").fill("tree")
    page.get_by_label("count").fill("7")
    page.get_by_label("loud").select_option(label="Yes")
    page.get_by_label("colour").select_option("green")
    page.get_by_label("items").fill("one\ntwo words")
    page.get_by_label("paper").set_input_files(tmp_path / "paper.txt")
    page.get_by_label("key: the secret").fill("open sesame please")
    console.button("Create job").click()
    expect(page.locator("h1 + .badge")).to_have_text("Success")
    expect(page.locator(".facts-grid")).to_contain_text("••••••")
    page.get_by_role("link", name="Console Output").click()
    expect(page.locator(".log")).to_contain_text("tree 7 true green")
    for words in ("one", "two words", "on paper", "the key is ***"):
        expect(page.locator(".log")).to_contain_text(words)
    job = client.jobs.get(int(page.url.rpartition("/")[2].partition("?")[0]))
    # It was made for this job, and dies with it.
    assert job.parameters["key"].credential_ref.startswith("job-")
    until(
        lambda: job.job_id not in [each.job_id for each in client.credentials.all(include_for_one_job=True)], "its end"
    )


def test_a_typed_secret_waits_as_long_as_its_job(console: Console, client: Client, package: bytes) -> None:
    """Made for one job, a credential lasts for an hour; tied to it, until that has ended."""
    name = client.packages.push(package).package.name
    page = begin(console, name, "held")
    page.get_by_label("word").fill("tree")
    page.get_by_label("key: the secret").fill("open sesame please")
    page.get_by_label("Hold it until somebody activates it").check()
    console.button("Create job").click()
    expect(page.locator("h1 + .badge")).to_have_text("Deferred")
    job = client.jobs.get(int(page.url.rpartition("/")[2]))
    credential = client.credentials.get(job.parameters["key"].credential_ref)
    assert (credential.job_id, credential.HasField("expire_time")) == (job.job_id, False)
    client.jobs.cancel(job.job_id)


def test_a_typed_secret_that_has_expired_is_stored_again(console: Console, client: Client, package: bytes) -> None:
    """The job was refused, and the form was sent again after the hour of what was stored for it."""
    name = client.packages.push(package).package.name
    before = {each.name for each in client.credentials.all(include_for_one_job=True)}
    page = begin(console, name, "")
    page.get_by_label("word").fill("tree")
    page.get_by_label("key: the secret").fill("open sesame please")
    console.button("Create job").click()
    expect(page.locator("[name=displayName]")).to_have_attribute("aria-invalid", "true")
    (stored,) = {each.name for each in client.credentials.all(include_for_one_job=True)} - before
    client.credentials.delete(stored)
    page.locator("[name=displayName]").fill("late")
    console.button("Create job").click()
    expect(page.locator("h1 + .badge")).to_have_text("Success")


def test_wrong_fields_are_told_where_they_are_in_the_words_of_the_server(
    console: Console, client: Client, package: bytes
) -> None:
    name = client.packages.push(package).package.name
    page = begin(console, name, "")
    page.get_by_label("word").fill("UPPER")
    page.get_by_label("count").fill("many")
    page.get_by_label("key: the secret").fill("open sesame please")
    console.button("Create job").click()
    expect(page.locator("[name=displayName]")).to_have_attribute("aria-invalid", "true")
    page.locator("[name=displayName]").fill("named")
    console.button("Create job").click()
    word = page.locator(".field", has=page.get_by_label("word"))
    expect(word.locator(".error")).to_contain_text("must match")
    expect(page.locator(".field", has=page.get_by_label("count")).locator(".error")).to_be_visible()
    page.get_by_label("word").fill("tree")
    page.get_by_label("count").fill("1")
    console.button("Create job").click()
    expect(page.locator("h1 + .badge")).to_have_text("Success")


def test_sent_twice_it_is_one_job(console: Console, client: Client) -> None:
    name = f"twice {uuid.uuid4().hex}"
    page = begin(console, "core.shell", name)
    page.get_by_label("script").fill("true")
    page.evaluate("() => { const form = document.querySelector('form'); form.requestSubmit(); form.requestSubmit(); }")
    expect(page.locator("h1 + .badge")).to_be_visible()
    assert client.jobs.list(job_service_pb2.JobFilter(text=name)).total_size == 1


def test_when_and_where(console: Console, client: Client) -> None:
    page = begin(console, "core.shell", "times")
    page.get_by_label("script").fill("true")
    expect(page.get_by_text("Online: local-1")).to_be_visible()
    page.get_by_label("One agent").check()
    page.locator("[name=siteTarget]").select_option("local-1")
    page.get_by_label("Not before").fill("2031-01-02T03:04")
    page.get_by_label("Priority").select_option(label="High")
    console.button("Create job").click()
    expect(page.locator("h1 + .badge")).to_have_text("Deferred")
    job = client.jobs.get(int(page.url.rpartition("/")[2]))
    assert job.site_target.agent == "local-1"
    assert job.priority == job_pb2.PRIORITY_HIGH
    # In the reader's zone, which is Berlin's here.
    assert job.not_before.ToJsonString() == "2031-01-02T02:04:00Z"
    client.jobs.cancel(job.job_id)


def test_keysafe(console: Console, client: Client) -> None:
    name = f"key-{uuid.uuid4().hex}"
    page = console.go("/credentials")
    console.button("New credential").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=False).first.fill(name)
    dialog.get_by_label("Username").fill("alice")
    dialog.get_by_label("Password").fill("short")
    dialog.get_by_role("button", name="Store").click()
    expect(dialog.get_by_role("alert")).to_contain_text("8")
    dialog.get_by_label("Password").fill("correct horse battery")
    dialog.get_by_role("button", name="Store").click()
    expect(dialog).to_have_count(0)
    page.get_by_role("link", name=name).click()
    expect(page.get_by_text("alice")).to_be_visible()
    job_id = made(client, "uses it", "true", credentials={"secret": name})
    ended(client, job_id)
    page.reload()
    expect(page.get_by_role("link", name=f"Job {job_id}")).to_be_visible()
    console.button("Replace secret").click()
    page.get_by_role("dialog").get_by_label("Password").fill("another horse battery")
    console.confirm("Replace")
    expect(page.get_by_text("version 2")).to_be_visible()
    console.button("Delete").click()
    console.confirm("Delete")
    expect(page.get_by_role("link", name=name)).to_have_count(0)


def test_packages(console: Console, package: bytes, tmp_path: Path) -> None:
    page = console.go("/packages")
    page.get_by_role("link", name="core.http").click()
    expect(page.get_by_role("heading", name="request")).to_be_visible()
    expect(page.get_by_role("cell", name="follow_redirects").first).to_be_visible()
    page.get_by_role("link", name="Create a job").first.click()
    expect(page.get_by_label("Package")).to_have_value("core.http")
    page.get_by_role("link", name="Packages").click()
    for name, content, told in (("no.tar.gz", b"no archive", "gzip"), ("good.tar.gz", package, "")):
        (tmp_path / name).write_bytes(content)
        console.button("Push a package").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Archive").set_input_files(tmp_path / name)
        dialog.get_by_role("button", name="Push", exact=True).click()
        if told:
            expect(dialog.get_by_role("alert")).to_contain_text(told)
            dialog.get_by_role("button", name="Close").click()
        expect(dialog).to_have_count(0)
    expect(page.get_by_role("link", name="console.").first).to_be_visible()


def test_agents(console: Console, client: Client) -> None:
    name = f"paired-{uuid.uuid4().hex[:8]}"
    job_id = made(client, "in hand", "sleep 600")
    page = console.go("/agents")
    row = page.get_by_role("row", name="local-1")
    expect(row).to_contain_text("Online")
    expect(row.get_by_role("link", name=str(job_id))).to_be_visible()
    row.get_by_role("link", name="local-1").click()
    expect(page.get_by_text("Certificate", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=f"Job {job_id}")).to_be_visible()
    client.jobs.abort(job_id)
    page.go_back()
    console.button("Pair an agent").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=False).first.fill(name)
    dialog.get_by_label("Group").fill("console")
    dialog.get_by_role("button", name="Make a pairing code").click()
    code = page.get_by_role("textbox", name="Pairing code")
    expect(code).not_to_have_value("")
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_who_has_left_the_form_is_not_taken_to_its_job(console: Console) -> None:
    page = begin(console, "core.shell", "left")
    page.get_by_label("script").fill("true")
    held: list[Route] = []
    page.route("**/v1/jobs", lambda route: held.append(route))
    with page.expect_request("**/v1/jobs"):
        console.button("Create job").click()
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Agents").click()
    expect(page.get_by_role("heading", name="Agents")).to_be_visible()
    held[0].continue_()
    expect(page.get_by_text(re.compile(r"Job \d+ was created\."))).to_be_visible()
    expect(page).to_have_url(re.compile("/agents$"))
    expect(page.get_by_role("heading", name="Agents")).to_be_visible()
