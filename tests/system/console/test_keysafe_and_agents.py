"""The pages of the KeySafe and of the agents: what can be stored, and what is shown while things change beneath."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from playwright.sync_api import Locator, Page, Route, expect

from sis.client import Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from tests.support.enrolled import EnrolledAgent, pairing_code
from tests.support.stack import Stack
from tests.system.console.console import Console, unavailable

pytestmark = pytest.mark.timeout(180)

AGENTS = "**/v1/agents?*"
IDENTITIES = "**/v1/agentIdentities*"
PASSPHRASE = "open sesame please"


def private_key() -> str:
    key = ed25519.Ed25519PrivateKey.generate()
    encryption = serialization.BestAvailableEncryption(PASSPHRASE.encode())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, encryption
    ).decode()  # fmt: skip


# The KeySafe


def begin(console: Console, kind: str) -> tuple[str, Locator]:
    """A name, in the dialog for a new credential of this kind."""
    name = f"key-{uuid.uuid4().hex}"
    page = console.go("/credentials")
    console.button("New credential").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("[name=name]").fill(name)
    dialog.get_by_label("Kind").select_option(label=kind)
    return name, dialog


def store(console: Console, name: str, dialog: Locator) -> Locator:
    """Its row in the list, once it is stored."""
    dialog.get_by_role("button", name="Store").click()
    expect(dialog).to_have_count(0)
    row = console.page.get_by_role("row", name=name)
    expect(row).to_contain_text("Ready")
    return row


def test_an_ssh_key(console: Console, client: Client) -> None:
    name, dialog = begin(console, "SSH private key")
    dialog.get_by_label("Username").fill("alice")
    dialog.get_by_label("Private key").fill("this is no key at all")
    dialog.get_by_role("button", name="Store").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Private key:")
    dialog.get_by_label("Private key").fill(private_key())
    dialog.get_by_label("Passphrase").fill("another passphrase")
    dialog.get_by_role("button", name="Store").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Passphrase:")
    dialog.get_by_label("Passphrase").fill(PASSPHRASE)
    expect(store(console, name, dialog)).to_contain_text("alice")
    assert client.credentials.get(name).kind == credential_pb2.CREDENTIAL_KIND_SSH_KEY
    client.credentials.delete(name)


def test_a_token(console: Console, client: Client) -> None:
    name, dialog = begin(console, "Token")
    expect(dialog.get_by_label("Username")).to_have_count(0)
    dialog.locator("[name=secret]").fill("a token of a test")
    store(console, name, dialog)
    page = console.page
    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name="Secret", exact=True)).to_be_visible()
    expect(page.get_by_text("Account", exact=True)).to_have_count(0)
    client.credentials.delete(name)


def test_a_domain_account(console: Console, client: Client) -> None:
    name, dialog = begin(console, "Domain account")
    dialog.get_by_label("Username").fill("alice")
    dialog.get_by_label("Password").fill(PASSPHRASE)
    dialog.get_by_role("button", name="Store").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Domain:")
    dialog.get_by_label("Domain").fill("EXAMPLE")
    expect(store(console, name, dialog)).to_contain_text(r"EXAMPLE\alice")
    client.credentials.delete(name)


def test_two_people_replace_one_secret(console: Console, client: Client) -> None:
    name, dialog = begin(console, "Token")
    dialog.locator("[name=secret]").fill("the first token")
    store(console, name, dialog)
    page = console.go(f"/credentials/{name}")
    console.button("Replace secret").click()
    request = credentials_pb.ReplaceCredentialRequest(name=name, version=1)
    request.value.secret = b"the second token"
    client.credentials.replace(request)
    page.get_by_role("dialog").locator("[name=secret]").fill("the third token")
    page.get_by_role("dialog").get_by_role("button", name="Replace").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).not_to_be_empty()
    assert client.credentials.get(name).version == 2
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    # What is shown now is what is there, so that the next attempt is not refused for the same reason.
    expect(page.get_by_text("version 2")).to_be_visible()
    console.button("Replace secret").click()
    page.get_by_role("dialog").locator("[name=secret]").fill("the third token")
    console.confirm("Replace")
    expect(page.get_by_text("version 3")).to_be_visible()
    client.credentials.delete(name)


def test_a_secret_that_nobody_replaced_leaves_the_page_as_it_was(console: Console, client: Client) -> None:
    """The button that opened the dialog has the focus again, also where the credential has changed meanwhile; and where
    it cannot be looked at again, what was there stays."""
    name, dialog = begin(console, "Token")
    dialog.locator("[name=secret]").fill("the first token")
    store(console, name, dialog)
    page = console.go(f"/credentials/{name}")
    console.button("Replace secret").click()
    request = credentials_pb.ReplaceCredentialRequest(name=name, version=1)
    request.value.secret = b"the second token"
    client.credentials.replace(request)
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.get_by_text("version 2")).to_be_visible()
    expect(console.button("Replace secret")).to_be_focused()
    page.route(f"**/v1/credentials/{name}", unavailable)
    console.button("Replace secret").click()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.get_by_text("Being rolled.")).to_be_visible()
    expect(page.get_by_text("version 2")).to_be_visible()
    page.unroute(f"**/v1/credentials/{name}")
    console.button("Replace secret").click()
    page.get_by_role("dialog").locator("[name=secret]").fill("the third token")
    console.confirm("Replace")
    expect(page.get_by_text("version 3")).to_be_visible()
    client.credentials.delete(name)


# The agents


@pytest.fixture
def agent(stack: Stack, tmp_path: Path) -> Iterator[tuple[str, EnrolledAgent]]:
    """The name of an agent of its own that has enrolled, and that agent, not started yet."""
    name = f"agent-{uuid.uuid4().hex[:8]}"
    agent = EnrolledAgent(stack, tmp_path / "state", slots=2)
    done = agent.enrol(pairing_code(stack, name, "console"))
    assert done.returncode == 0, done.stderr
    try:
        yield name, agent
    finally:
        # It runs an event loop, which there cannot be beside Playwright's.
        closing = threading.Thread(target=agent.close)
        closing.start()
        closing.join()


def test_an_agent_comes_goes_is_revoked_and_paired_again(
    console: Console, stack: Stack, agent: tuple[str, EnrolledAgent]
) -> None:
    name, program = agent
    page = console.go("/agents")
    row = page.get_by_role("row", name=name)
    expect(row).to_contain_text("Never connected")
    process = program.start()
    expect(row).to_contain_text("Online")
    process.kill()
    expect(row).to_contain_text("Offline")
    total = page.locator("tbody tr").count()
    expect(page.get_by_text(f" of {total} online")).to_be_visible()
    row.get_by_role("link", name=name).click()
    state = page.locator("h1 + .badge")
    expect(state).to_have_text("Offline")
    console.button("Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    console.button("Revoke").click()
    console.confirm("Revoke", "stolen")
    expect(state).to_have_text("Revoked")
    expect(page.get_by_text("stolen")).to_be_visible()
    expect(console.button("Revoke")).to_have_count(0)
    console.button("Pair again").click()
    expect(page.get_by_role("dialog").locator("[name=group]")).to_have_value("console")
    page.get_by_role("dialog").get_by_role("button", name="Make a pairing code").click()
    code = page.get_by_role("textbox", name="Pairing code").input_value()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    again = program.enrol(code)
    assert again.returncode == 0, again.stderr
    program.start()
    expect(state).to_have_text("Online")
    expect(console.button("Revoke")).to_be_visible()


@pytest.mark.parametrize("path", ["/agents", "/agents/local-1"])
def test_what_is_shown_stays_while_servers_are_rolled(console: Console, path: str) -> None:
    """Also what nobody could load at first comes by itself."""
    page = console.page
    page.route(IDENTITIES, unavailable)
    console.go(path)
    expect(page.get_by_text("This could not be loaded")).to_be_visible()
    page.unroute(IDENTITIES)
    expect(page.get_by_text("local-1").first).to_be_visible()
    page.route(IDENTITIES, unavailable)
    old = page.get_by_text("This is how it was at")
    expect(old).to_contain_text("Being rolled.")
    expect(page.get_by_text("local-1").first).to_be_visible()
    expect(page.get_by_text("Online", exact=True)).to_be_visible()
    page.unroute(IDENTITIES)
    expect(old).to_have_count(0)


def looked_again(page: Page) -> None:
    """Once the page has looked twice: what the first look found is shown by then."""
    for _ in range(2):
        with page.expect_response(IDENTITIES):
            pass


def test_what_somebody_has_selected_stays(console: Console) -> None:
    page = console.go("/agents/local-1")
    page.get_by_text("Last seen", exact=True).wait_for()
    page.evaluate(
        """() => {
            const fact = [...document.querySelectorAll("dt")].find((each) => each.textContent === "Host").nextSibling;
            getSelection().selectAllChildren(fact);
        }"""
    )
    chosen = page.evaluate("() => getSelection().toString()")
    assert chosen
    looked_again(page)
    assert page.evaluate("() => getSelection().toString()") == chosen
    page.get_by_role("link", name="Agents").last.focus()
    looked_again(page)
    expect(page.get_by_role("link", name="Agents").last).to_be_focused()


def test_focus_stays_with_its_agent_when_others_come_and_go(console: Console) -> None:
    others: list[str] = []

    def with_others(route: Route) -> None:
        found = route.fetch().json()
        made = {"group": "g", "serial": "1", "enrolTime": "2026-01-01T00:00:00Z", "notAfter": "2099-01-01T00:00:00Z"}
        found["identities"] += [{"name": name, "revoked": False, "pairer": "a", **made} for name in others]
        route.fulfill(json=found)

    page = console.page
    page.route(IDENTITIES, with_others)
    console.go("/agents")
    link = page.get_by_role("link", name="local-1")
    link.focus()
    others.append("a-first")
    expect(page.get_by_role("link", name="a-first")).to_be_visible()
    expect(link).to_be_focused()
    others.clear()
    expect(page.get_by_role("link", name="a-first")).to_have_count(0)
    expect(link).to_be_focused()


def test_the_end_of_a_certificate_is_warned_of(console: Console) -> None:
    left = timedelta(hours=9)

    def ending(route: Route) -> None:
        found = route.fetch().json()
        for each in found["identities"]:
            each["notAfter"] = (datetime.now(UTC) + left).isoformat()
            each["enrolTime"] = "2026-01-01T00:00:00Z"
        route.fulfill(json=found)

    page = console.page
    page.route(IDENTITIES, ending)
    console.go("/agents")
    row = page.get_by_role("row", name="local-1")
    expect(row).to_contain_text("Online")
    expect(row.locator(".badge")).to_have_count(1)
    left = timedelta(hours=1)
    expect(row).to_contain_text("Ends soon")
    left = timedelta(hours=-1)
    expect(row).to_contain_text("Over")
    row.get_by_role("link", name="local-1").click()
    expect(page.locator(".facts .badge")).to_have_text("Over")


def made_code(console: Console) -> Locator:
    page = console.go("/agents")
    console.button("Pair an agent").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("[name=name]").fill(f"paired-{uuid.uuid4().hex[:8]}")
    dialog.get_by_role("button", name="Make a pairing code").click()
    expect(page.get_by_role("textbox", name="Pairing code")).to_be_visible()
    return page.get_by_role("dialog")


def test_the_code_is_copied_and_that_is_said_where_it_is_seen(console: Console) -> None:
    console.context.grant_permissions(["clipboard-read", "clipboard-write"])
    dialog = made_code(console)
    console.button("Copy the code").click()
    expect(dialog.get_by_role("status")).to_have_text("The code was copied.")
    code = dialog.get_by_label("Pairing code").input_value()
    assert console.page.evaluate("() => navigator.clipboard.readText()") == code


def test_a_browser_that_refuses_to_copy(opened: Callable[..., Console]) -> None:
    console = opened()
    console.context.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined });")
    dialog = made_code(console)
    console.button("Copy the code").click()
    expect(dialog.get_by_role("status")).to_contain_text("is selected")
    code = dialog.get_by_label("Pairing code")
    selected = code.evaluate("area => area.value.slice(area.selectionStart, area.selectionEnd)")
    assert selected == code.input_value()


def test_what_agents_say_of_themselves_is_shown_and_does_nothing(console: Console) -> None:
    hostile = ["\u202egnp.exe", "<script>window.owned = 1</script>", "\x1b[2Jgone", '"><img src=x onerror="owned = 1">']

    def told(route: Route) -> None:
        found = route.fetch().json()
        agents = found.get("agents") or [found["agent"]]
        for each in agents:
            each["hostname"], each["platform"], each["version"], each["hub"] = hostile
            each["labels"] = dict.fromkeys(hostile, hostile[0])
        if "agents" in found:
            found["agents"].append({**agents[0], "name": hostile[0], "group": hostile[1], "online": False})
        route.fulfill(body=json.dumps(found), content_type="application/json")

    page = console.page
    page.route("**/v1/agents*/**", told)
    page.route("**/v1/agents?*", told)
    for path in ("/agents", "/agents/local-1"):
        console.go(path)
        shown = page.locator("main")
        expect(shown).to_contain_text(r"\u202egnp.exe")
        expect(shown).to_contain_text(r"\x1b[2Jgone")
        expect(shown).to_contain_text("<script>window.owned = 1</script>")
        assert not set(shown.inner_text()) & {"\u202e", "\x1b"}
        assert page.evaluate("() => window.owned") is None
        assert page.locator("main img, main script").count() == 0
