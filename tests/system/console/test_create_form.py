"""The form for a job: what somebody chose in it stays, is told where it is wrong, and reaches the job."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import duration_pb2
from playwright.sync_api import Locator, Page, Route, expect

from sis.client import Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.packages import archive
from sis.queue.v1 import job_pb2, job_service_pb2
from tests.support.numbered_job import shell_job
from tests.support.stack import Stack
from tests.system.console.console import Console
from tests.system.console.test_forms import begin
from tests.system.console.test_job_list import made

pytestmark = pytest.mark.timeout(180)

INPUTS = """
      word: {{type: string, default: "{version}"}}
      other: {{type: string, default: "{version}"}}
      paper: {{type: file}}
      key: {{type: string, sensitive: true}}
      second: {{type: string, sensitive: true}}
"""
MANIFEST = """
name: {name}
version: {version}
publisher: Test
description: Has two operations.
platforms: [linux]
operations:
  give:
    command: [/bin/sh, "{{package}}/it.sh"]
    inputs: {inputs}
    credentials: {{login: {{}}}}
  take:
    command: [/bin/sh, "{{package}}/it.sh"]
    inputs: {inputs}
    credentials: {{login: {{}}}}
  rest:
    command: [/bin/sh, "{{package}}/it.sh"]
"""
SCRIPT = """
echo "word $SIS_PARAM_WORD"
cat "$SIS_PARAM_PAPER"
echo "the login is $SIS_CREDENTIAL_LOGIN_USERNAME"
"""
SECRET = "open sesame please"


@pytest.fixture(scope="module")
def package(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a package of two versions, with two operations that take the same and one that takes nothing."""
    name = f"console.{uuid.uuid4().hex}"
    with stack.client() as client:
        for version in ("1.0.0", "2.0.0"):
            source = tmp_path_factory.mktemp("package")
            inputs = INPUTS.format(version=version)
            (source / "package.yaml").write_text(MANIFEST.format(name=name, version=version, inputs=inputs))
            (source / "it.sh").write_text(SCRIPT)
            client.packages.push(archive.pack(source))
    return name


@pytest.fixture(scope="module")
def account(stack: Stack) -> Iterator[str]:
    """The name of a credential."""
    name = f"account-{uuid.uuid4().hex[:8]}"
    with stack.client() as client:
        client.credentials.create(
            credentials_pb.CreateCredentialRequest(
                name=name,
                kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
                username="alice",
                value=credential_pb2.SecretValue(secret=SECRET.encode()),
            )
        )
        yield name
        client.credentials.delete(name)


def held(console: Console, client: Client) -> job_pb2.Job:
    """The job that the form creates, which was to be held."""
    console.page.get_by_label("Hold it until somebody activates it").check()
    console.button("Create job").click()
    expect(console.page.locator("h1 + .badge")).to_have_text("Deferred")
    return client.jobs.get(int(console.page.url.rpartition("/")[2]))


def field(page: Page, label: str) -> Locator:
    return page.locator(".field", has=page.get_by_label(label, exact=True))


def file_names(page: Page) -> object:
    return page.get_by_label("paper").evaluate("input => [...input.files].map((file) => file.name)")


def test_what_was_chosen_stays_with_another_operation_and_version(
    console: Console, client: Client, package: str, account: str, tmp_path: Path
) -> None:
    """Otherwise the job would run as the agent's own account without a word."""
    (tmp_path / "paper.txt").write_text("on paper\n")
    page = begin(console, package, "kept")
    page.get_by_label("Version", exact=True).select_option("1.0.0")
    page.get_by_label("Operation").select_option("give")
    for role in ("Admin", "Run As", "login"):
        page.get_by_label(role, exact=True).select_option(account)
    page.get_by_label("word").fill("mine")
    page.get_by_label("paper").set_input_files(tmp_path / "paper.txt")
    page.get_by_label("key: the secret").fill(SECRET)
    page.get_by_label("second", exact=True).select_option(account)

    def stayed() -> None:
        for role in ("Admin", "Run As", "login"):
            expect(page.get_by_label(role, exact=True)).to_have_value(account)
        expect(page.get_by_label("word")).to_have_value("mine")
        assert file_names(page) == ["paper.txt"]
        expect(page.get_by_label("key: the secret")).to_have_value(SECRET)
        expect(page.get_by_label("second", exact=True)).to_have_value(account)
        expect(page.get_by_label("second: the secret")).to_be_hidden()

    page.get_by_label("Operation").select_option("take")
    stayed()
    page.get_by_label("Version", exact=True).select_option("2.0.0")
    # What nobody has touched is the default of the new version.
    expect(page.get_by_label("other")).to_have_value("2.0.0")
    stayed()
    page.get_by_label("Operation").select_option("rest")
    expect(page.get_by_text("This operation takes none.")).to_be_visible()
    expect(page.get_by_label("Run As")).to_have_value(account)
    page.get_by_label("Operation").select_option("take")
    stayed()
    # Another package has accounts of its own names, but the job's are the same.
    page.get_by_label("Package").select_option("core.shell")
    expect(page.get_by_label("script")).to_be_visible()
    expect(page.get_by_label("Admin")).to_have_value(account)
    expect(page.get_by_label("secret", exact=True)).to_have_value("")
    page.get_by_label("Package").select_option(package)
    expect(page.get_by_label("word")).to_be_visible()
    page.get_by_label("Version", exact=True).select_option("2.0.0")
    page.get_by_label("Operation").select_option("take")
    stayed()
    job = held(console, client)
    assert (job.admin, job.run_as, dict(job.credentials)) == (account, account, {"login": account})
    assert (job.operation, job.package.version) == ("take", "2.0.0")
    assert job.parameters["word"].plain == "mine"
    assert job.parameters["paper"].file.name == "paper.txt"
    assert job.parameters["second"].credential_ref == account
    client.jobs.cancel(job.job_id)


def test_a_job_runs_with_the_credential_that_was_chosen(
    console: Console, client: Client, package: str, account: str
) -> None:
    page = begin(console, package, "with a login")
    page.get_by_label("login", exact=True).select_option(account)
    console.button("Create job").click()
    expect(page.locator("h1 + .badge")).to_have_text("Success")
    expect(page.locator(".log")).to_contain_text("the login is alice")
    page = console.go(f"/credentials/{account}")
    expect(page.get_by_role("cell", name="Credential login")).to_be_visible()


def test_a_refused_secret_is_told_at_its_input(console: Console, package: str) -> None:
    page = begin(console, package, "short secrets")
    page.get_by_label("key: the secret").fill("short")
    page.get_by_label("second: the secret").fill("brief")
    console.button("Create job").click()
    for name in ("key", "second"):
        expect(field(page, name).locator(".error")).to_have_text("is required, with at least 8 bytes")
        expect(page.get_by_label(f"{name}: the secret")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("key: the secret").fill(SECRET)
    console.button("Create job").click()
    expect(field(page, "second").locator(".error")).to_be_visible()
    expect(field(page, "key").locator(".error")).to_have_count(0)
    page.get_by_label("second: the secret").fill(SECRET)
    console.button("Create job").click()
    expect(page.locator("h1 + .badge")).to_have_text("Success")


def seconds(number: int) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=number)


def test_a_copy_carries_everything(console: Console, client: Client, package: str, account: str) -> None:
    request = shell_job("", site="group:nobody-there", deferred=True, labels={"team": "blue", "of=it": " all = "})
    request.package.name, request.operation = package, "give"
    request.package.version = "1.0.0"
    del request.parameters["script"]
    request.parameters["word"].plain = "two\r\nlines"
    request.parameters["other"].plain = ""
    request.parameters["paper"].file.name = "paper.txt"
    request.parameters["paper"].file.content = b"on paper"
    request.parameters["key"].credential_ref = account
    request.parameters["second"].credential_ref = "not-there"
    for name, value in (("run", 100), ("heartbeat", 90), ("start", 80), ("output", 70)):
        getattr(request, f"{name}_timeout").CopyFrom(seconds(value))
    request.cancel_grace.CopyFrom(seconds(0))
    request.priority = job_pb2.PRIORITY_LOW
    request.admin, request.run_as, request.credentials["login"] = account, "gone-for-good", account
    original = client.jobs.create(request)
    page = console.go(f"/jobs/new?copy={original.job_id}")
    expect(page.get_by_text("it is paper.txt of the copied job")).to_be_visible()
    expect(page.get_by_label("Labels")).to_have_value("of=it= all = \nteam=blue")
    job = held(console, client)
    assert client.jobs.copy(job.job_id) == client.jobs.copy(original.job_id)
    for each in (job, original):
        client.jobs.cancel(each.job_id)


def test_a_job_that_is_held_until_a_limit(console: Console, client: Client) -> None:
    page = begin(console, "core.shell", "held")
    page.get_by_label("script").fill("true")
    page.get_by_label("Labels").fill("team=blue\nempty")
    page.get_by_text("Limits, in seconds").click()
    expect(page.get_by_label("Deferral limit")).to_be_disabled()
    page.get_by_label("Hold it until somebody activates it").check()
    expect(page.get_by_label("Not before")).to_be_disabled()
    page.get_by_label("Latest start").fill("2031-01-02T03:04")
    page.get_by_label("Deferral limit").fill("3600")
    for label, value in (("Run", "11"), ("Start", "12"), ("Output", "13"), ("Heartbeat", "63")):
        page.get_by_label(f"{label} timeout").fill(value)
    page.get_by_label("Cancel grace").fill("0.5")
    job = held(console, client)
    assert job.latest_start.ToJsonString() == "2031-01-02T02:04:00Z"
    assert job.deferral_expire_time.seconds - job.create_time.seconds == 3600
    limits = (job.run_timeout, job.start_timeout, job.output_timeout, job.heartbeat_timeout)
    assert [each.seconds for each in limits] == [11, 12, 13, 63]
    assert job.cancel_grace.ToMilliseconds() == 500
    assert dict(job.labels) == {"team": "blue", "empty": ""}
    client.jobs.cancel(job.job_id)


def test_a_wrong_field_that_nobody_sees_is_opened(console: Console) -> None:
    page = begin(console, "core.shell", "limits")
    page.get_by_label("script").fill("true")
    page.get_by_text("Limits, in seconds").click()
    page.get_by_label("Heartbeat timeout").fill("1")
    page.get_by_text("Limits, in seconds").click()
    expect(page.get_by_label("Heartbeat timeout")).to_be_hidden()
    console.button("Create job").click()
    expect(field(page, "Heartbeat timeout").locator(".error")).to_be_visible()
    expect(page.get_by_label("Heartbeat timeout")).to_be_focused()


def test_half_a_time_is_not_taken_for_none(console: Console, client: Client) -> None:
    name = f"half {uuid.uuid4().hex}"
    page = begin(console, "core.shell", name)
    page.get_by_label("script").fill("true")
    page.get_by_label("Not before").press_sequentially("0102")
    console.button("Create job").click()
    expect(field(page, "Not before").locator(".error")).to_contain_text("is not complete")
    assert client.jobs.list(job_service_pb2.JobFilter(text=name)).total_size == 0


def test_words_of_the_form(console: Console, client: Client, package: str) -> None:
    page = begin(console, "core.shell", "words")
    expect(field(page, "environment one a line")).to_contain_text("Each has to match the regular expression")
    expect(page.get_by_text("One item a line")).to_have_count(0)
    page = begin(console, package, "words")
    with console.context.expect_page() as opened:
        page.get_by_role("link", name="Reference of the package").click()
    expect(opened.value.get_by_role("heading", name=package)).to_be_visible()
    version = page.get_by_label("Version", exact=True).input_value()
    assert opened.value.url.endswith(f"/packages/{package}?version={version}")
    # Beside each other where there is room.
    boxes = [page.locator("fieldset", has_text=word).bounding_box() for word in ("Parameters", "As whom")]
    assert boxes[0] and boxes[1] and boxes[1]["x"] >= boxes[0]["x"] + boxes[0]["width"]


def test_it_begins_where_somebody_is_online(console: Console) -> None:
    def told(route: Route) -> None:
        found = route.fetch().json()
        (agent,) = (each for each in found["agents"] if each["name"] == "local-1")
        found["agents"] = [{**agent, "name": "gone-1", "group": "gone", "online": False}, agent]
        route.fulfill(body=json.dumps(found), content_type="application/json")

    console.page.route("**/v1/agents?*", told)
    page = begin(console, "core.shell", "somewhere")
    expect(page.get_by_label("Site target", exact=True).locator("option")).to_have_count(2)
    expect(page.locator("select[name=siteTarget]")).to_have_value("local")
    page.get_by_label("One agent").check()
    expect(page.locator("select[name=siteTarget]")).to_have_value("local-1")


def test_what_has_a_default_can_be_left_without_it(console: Console, client: Client, tmp_path: Path) -> None:
    """An empty list is one; a choice that would mean the default is not offered beside it."""
    name = f"console.{uuid.uuid4().hex}"
    (tmp_path / "it.sh").write_text("true")
    (tmp_path / "package.yaml").write_text(f"""
name: {name}
version: 1.0.0
publisher: Test
description: Has defaults.
platforms: [linux]
operations:
  run:
    command: [/bin/sh, "{{package}}/it.sh"]
    inputs:
      hosts: {{type: list, default: [a, b]}}
      colour: {{type: enum, choices: [red, green], default: green}}
      loud: {{type: boolean, default: true}}
      count: {{type: integer, default: 5}}
""")
    client.packages.push(archive.pack(tmp_path))
    page = begin(console, name, "defaults")
    expect(page.get_by_label("hosts")).to_have_value("a\nb")
    page.get_by_label("hosts").fill("")
    expect(page.get_by_label("colour").locator("option")).to_have_text(["red", "green"])
    expect(page.get_by_label("loud").locator("option")).to_have_text(["Yes", "No"])
    expect(field(page, "count")).to_contain_text("Left empty, it is 5.")
    job = held(console, client)
    assert job.parameters["hosts"].WhichOneof("value") == "list" and not job.parameters["hosts"].list.items
    assert job.parameters["colour"].plain == "green"


def test_a_choice_of_site_is_kept_by_kind(console: Console, client: Client) -> None:
    job_id = made(client, "sites", site="group:nowhere", deferred=True)
    page = console.go(f"/jobs/new?copy={job_id}")
    site = page.get_by_label("Site target", exact=True).and_(page.locator("select"))
    expect(site).to_have_value("nowhere")
    site.select_option("local")
    page.get_by_label("One agent").check()
    expect(site).to_have_value("local-1")
    page.get_by_label("Any agent of a group").check()
    expect(site).to_have_value("local")
