"""The log of a job: live and afterwards, whole or a part of it, searched and copied."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Route, expect

from sis.client import Client
from tests.support.stack import Stack
from tests.support.tcp_proxy import proxied
from tests.system.console.console import Console, unavailable
from tests.system.console.test_job_list import ended, made

pytestmark = pytest.mark.timeout(180)

LOCAL_TIME = """line => {
    const time = new Date(line.time);
    return new Date(time - time.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}"""
"""When a line was written, as an input for a local time has it."""


def test_every_line_once_through_cut_connections(
    opened: Callable[..., Console], stack: Stack, client: Client, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    # Slowly: a page that follows lets go of the first lines once there are hundreds, however long the cuts take.
    script = (
        f'i=0; while [ ! -e {end} ]; do i=$((i+1)); echo "line $i"; sleep 0.2; done; echo "result=$i" >> "$SIS_OUTPUT"'
    )
    job_id = made(client, "cut", script)
    with proxied(stack.gateway.removeprefix("http://")) as proxy:
        console = opened(url=f"http://{proxy.endpoint}")
        page = console.job(job_id)
        expect(page.locator(".log .line.out").first).to_be_visible()
        for _ in range(8):
            before = page.locator(".log .line.out").count()
            proxy(lambda each: each.cut())
            page.wait_for_function("before => document.querySelectorAll('.log .line.out').length > before", arg=before)
        end.touch()
        expect(page.locator("h1 + .badge")).to_have_text("Success")
        count = int(next(o.value for o in client.jobs.get(job_id).outputs if o.name == "result"))
        expect(page.locator(".log .line.out").last).to_have_text(f"line {count}")
        assert [line for line in console.log_lines() if line.startswith("line ")] == [
            f"line {n}" for n in range(1, count + 1)
        ]


def test_a_long_log(console: Console, client: Client) -> None:
    """Only a part of it is on the page; every other part can be had, by its place, its time, and what is written."""
    script = 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo "line $i of many"; done; sleep 2; echo last'
    job_id = made(client, "long", script)
    ended(client, job_id)
    page = console.job(job_id, "output")
    expect(page.locator(".log .line").last).to_have_text("last")
    assert page.locator(".log .line").count() < 10_000
    seen = console.log_lines()
    numbers = [int(line.split()[1]) for line in seen if line.startswith("line ")]
    assert numbers == list(range(numbers[0], 100_001))
    page.locator(".log").evaluate("log => log.scrollTo(0, 0)")
    page.wait_for_function("first => document.querySelector('.log .line').textContent != first", arg=seen[0])
    numbers = [int(line.split()[1]) for line in console.log_lines() if line.startswith("line ")]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    page.get_by_label("Place in the log").fill("1")
    expect(page.locator(".log .line").first).to_have_text("line 1 of many")
    page.get_by_label("Search the log").fill("LINE 77777 of")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 matching line")).to_be_visible()
    page.locator(".matches button").click()
    expect(page.locator(".log .line.current")).to_have_text("line 77777 of many")
    expect(page.locator(".log .line.current")).to_be_in_viewport()
    console.button("To the latest line").click()
    expect(page.locator(".log .line").last).to_have_text("last")
    at_the_end = page.locator(".log .line").last.evaluate(LOCAL_TIME)
    page.get_by_label("Place in the log").fill("1")
    expect(page.locator(".log .line").first).to_have_text("line 1 of many")
    page.get_by_label("Go to a time").fill(at_the_end)
    expect(page.locator(".log .line.current")).to_have_text("last")
    expect(page.locator(".log .line.current")).to_be_in_viewport()


def test_pause_and_follow(console: Console, client: Client) -> None:
    job_id = made(client, "pause", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done")
    page = console.job(job_id, "output")
    page.wait_for_function("() => document.querySelectorAll('.log .line').length > 100")
    log = "document.querySelector('.log')"
    at_bottom = f"() => {log}.scrollHeight - {log}.scrollTop - {log}.clientHeight < 60"
    page.wait_for_function(at_bottom)
    console.button("Pause").click()
    place = page.locator(".log").evaluate("log => log.scrollTop")
    before = page.locator(".log .line").count()
    page.wait_for_function("before => document.querySelectorAll('.log .line').length > before + 20", arg=before)
    assert page.locator(".log").evaluate("log => log.scrollTop") == place
    console.button("Follow").click()
    page.wait_for_function(at_bottom)
    client.jobs.abort(job_id)


def test_colours_and_escapes_do_no_harm(console: Console, client: Client) -> None:
    script = (
        r"""printf '\033[31mred\033[0m plain\n\033]0;owned\007\n<img src=x onerror=alert(1)>\n\342\200\256desrever\n'"""
    )
    job_id = made(client, "colours", script)
    ended(client, job_id)
    page = console.job(job_id, "output")
    expect(page.locator(".log .line").nth(0)).to_have_text("red plain")
    expect(page.locator(".log .f-1")).to_have_text("red")
    assert console.log_lines()[1:] == ["\\x1b]0;owned\\x07", "<img src=x onerror=alert(1)>", "\\u202edesrever"]
    assert page.locator(".log img").count() == 0


def test_colours_of_any_kind_can_be_read(console: Console, client: Client) -> None:
    """With parts, by the rules of T.416; black letters on the dark page; and nothing is hidden between letters."""
    script = r"""printf '\033[38:2::255:0:0mred\033[4:3mwavy\033[4:0m\033[38;5;16mblack\033[0m hid\342\200\213den\n'"""
    job_id = made(client, "more colours", script)
    ended(client, job_id)
    page = console.job(job_id, "output")
    line = page.locator(".log .line")
    expect(line).to_have_text("redwavyblack hid\\u200bden")
    expect(line.get_by_text("red", exact=True)).to_have_css("color", "rgb(255, 0, 0)")
    expect(line.get_by_text("wavy", exact=True)).to_have_css("color", "rgb(255, 0, 0)")
    expect(line.locator(".underline")).to_have_text("wavy")
    expect(line.locator(".italic")).to_have_count(0)
    expect(line.get_by_text("black", exact=True)).to_have_css("color", "rgb(128, 128, 128)")


def test_go_to_a_time_in_a_short_log(console: Console, client: Client) -> None:
    job_id = made(client, "times", "echo first; sleep 2; echo second; sleep 2; echo third")
    ended(client, job_id)
    page = console.job(job_id, "output")
    second = page.locator(".log .line", has_text="second")
    page.get_by_label("Go to a time").fill(second.evaluate(LOCAL_TIME))
    expect(page.locator(".log .line.current")).to_have_text("second")
    expect(page.locator(".log .line")).to_have_text(["first", "second", "third"])


def test_a_search_that_is_closed_while_it_jumps(console: Console, client: Client) -> None:
    job_id = made(client, "closed", 'i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo "line $i of many"; done')
    ended(client, job_id)
    page = console.job(job_id, "output")
    expect(page.locator(".log .line").last).to_have_text("line 30000 of many")
    page.get_by_label("Search the log").fill("line 7 of")
    page.keyboard.press("Enter")
    held: list[Route] = []
    page.route("**/log?*", lambda route: held.append(route))
    with page.expect_request("**/log?*"):
        page.locator(".matches button").click()
    console.button("Close the search").click()
    held[0].continue_()
    expect(page.locator(".log .line", has_text="line 7 of")).to_have_count(1)
    assert page.locator(".log .line.current").count() == 0


def test_what_is_found_is_marked_whatever_its_letters(console: Console, client: Client) -> None:
    """In lower case, this letter is two."""
    job_id = made(client, "letters", "echo 'İİİend'")
    ended(client, job_id)
    page = console.job(job_id, "output")
    page.get_by_label("Search the log").fill("END")
    page.keyboard.press("Enter")
    page.locator(".matches button", has_text="İ").click()
    expect(page.locator(".log .line.current")).to_have_text("İİİend")
    assert page.evaluate("() => [...CSS.highlights.get('found')].map(String)") == ["end"]


AT_END = """() => {
    const log = document.querySelector(".log");
    return log.scrollHeight - log.scrollTop - log.clientHeight < 2;
}"""
"""Whether the end of the log is in sight."""


@pytest.mark.parametrize("width", [1360, 400])
def test_lines_that_wrap_are_followed(opened: Callable[..., Console], client: Client, width: int) -> None:
    script = 'while :; do for n in 1 2 3 4 5; do printf "%0600d\\n" $n; done; sleep 0.1; done'
    job_id = made(client, "wide", script)
    console = opened(viewport={"width": width, "height": 850})
    page = console.job(job_id, "output")
    page.wait_for_function("() => document.querySelectorAll('.log .line').length > 200")
    expect(console.button("Pause")).to_be_visible()
    client.jobs.abort(job_id)
    expect(page.locator("h1 + .badge")).to_have_text("Aborted")
    page.wait_for_function(AT_END)
    # As when a phone is turned.
    page.set_viewport_size({"width": width - 80, "height": 800})
    page.wait_for_function(AT_END)


def test_what_is_found_among_lines_that_wrap_is_in_sight(console: Console, client: Client) -> None:
    job_id = made(client, "wrapped", 'for n in $(seq 400); do printf "line $n %01200d\\n" 0; done')
    ended(client, job_id)
    page = console.job(job_id, "output")
    expect(page.locator(".log .line").last).to_contain_text("line 400 ")
    page.get_by_label("Search the log").fill("line 300 ")
    page.keyboard.press("Enter")
    page.locator(".matches button").click()
    expect(page.locator(".log .line.current")).to_contain_text("line 300 ")
    expect(page.locator(".log .line.current")).to_be_in_viewport()
    page.locator(".log").evaluate("log => log.scrollBy(0, -40)")
    expect(page.locator(".log .line.current")).to_be_in_viewport()


@pytest.mark.parametrize("others", [400, 5_000])
def test_what_goes_on_after_its_line_was_let_go_is_shown(
    console: Console, client: Client, tmp_path: Path, others: int
) -> None:
    """Standard output and standard error take turns, and the view keeps a few hundred lines."""
    copied = tmp_path / "copied"
    script = f"""
printf 'Copying: '
sleep 0.2
i=0; while [ $i -lt {others} ]; do i=$((i+1)); echo "note $i" >&2; done
until [ -e {copied} ]; do sleep 0.02; done
echo "done"
"""
    job_id = made(client, "turns", script)
    page = console.job(job_id, "output")
    expect(page.locator(".log .line.err").last).to_have_text(f"note {others}")
    expect(page.locator(".log .line", has_text="Copying: ")).to_have_count(0)
    copied.touch()
    expect(page.locator(".log .line.out").last).to_have_text("done")


def test_a_search_finds_what_the_view_has(console: Console, client: Client) -> None:
    """The log has lines of the site, which are no console output."""
    job_id = made(client, "views", "echo written")
    ended(client, job_id)
    page = console.job(job_id)
    told = page.locator(".log .line.site").first.text_content()
    for view, lines in ("Monitor", "1 matching line"), ("Console Output", "0 matching lines"):
        page.get_by_role("link", name=view).click()
        page.get_by_label("Search the log").fill(told)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status").filter(has_text="matching")).to_have_text(lines)


def test_an_entry_that_comes_while_a_move_fails_is_shown(console: Console, client: Client) -> None:
    job_id = made(client, "moves", "echo written; sleep 600")
    page = console.job(job_id)
    expect(page.locator(".log")).to_contain_text("written")
    held: list[Route] = []
    page.route("**/log?*", lambda route: held.append(route))
    with page.expect_request("**/log?*"):
        page.get_by_label("Go to a time").fill("2026-01-01T00:00:00")
    client.jobs.cancel(job_id, reason="a test says so")
    expect(page.locator("h1 + .badge")).to_have_text("Canceled")
    unavailable(held[0])
    expect(page.locator(".log .line.server", has_text="Cancel requested by administrator")).to_have_count(1)


def test_wrap_times_and_copy(opened: Callable[..., Console], client: Client) -> None:
    job_id = made(client, "tools", "echo one; echo two")
    ended(client, job_id)
    console = opened(permissions=["clipboard-read", "clipboard-write"])
    page = console.job(job_id, "output")
    line = page.locator(".log .line").first
    for name, state in (
        ("Wrap lines", "line => getComputedStyle(line).whiteSpace.startsWith('pre-wrap')"),
        ("Times", "line => /^\"[0-9:]{8}\"$/.test(getComputedStyle(line, '::before').content)"),
    ):
        before = line.evaluate(state)
        expect(console.button(name)).to_have_attribute("aria-pressed", str(before).lower())
        console.button(name).click()
        expect(console.button(name)).to_have_attribute("aria-pressed", str(not before).lower())
        assert line.evaluate(state) is not before
    console.button("Copy").click()
    expect(page.get_by_text("Copied: 2 lines.")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == "one\ntwo"
    line.evaluate("line => getSelection().selectAllChildren(line)")
    console.button("Copy").click()
    expect(page.get_by_text("The selection was copied.")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == "one"


def test_who_scrolls_away_is_left_alone_and_can_come_back(console: Console, client: Client) -> None:
    job_id = made(client, "scrolls", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done")
    page = console.job(job_id, "output")
    page.wait_for_function("() => document.querySelectorAll('.log .line').length > 100")
    log = page.locator(".log")
    log.hover()
    page.mouse.wheel(0, -400)
    expect(console.button("Follow")).to_be_visible()
    page.mouse.wheel(0, 100_000)
    expect(console.button("Pause")).to_be_visible()
    before = log.evaluate("log => log.scrollTop")
    page.wait_for_function("before => document.querySelector('.log').scrollTop != before", arg=before)
    client.jobs.abort(job_id)
    expect(console.button("Pause")).to_be_hidden()


def test_a_log_that_is_empty_has_no_tools(console: Console, client: Client) -> None:
    job_id = made(client, "empty", deferred=True)
    page = console.job(job_id, "output")
    expect(page.get_by_text("Nothing was written yet.")).to_be_visible()
    for name in ("Download", "Pause", "Copy"):
        expect(page.locator(".log-view").get_by_text(name)).to_be_hidden()
    client.jobs.activate(job_id)
    expect(page.get_by_text("Nothing was written.", exact=True)).to_be_visible()


def test_a_log_that_cannot_be_read_is_not_said_to_be_empty(console: Console, client: Client) -> None:
    job_id = made(client, "unread", "echo written")
    ended(client, job_id)
    page = console.page
    page.route("**/log?*", unavailable)
    console.job(job_id, "output")
    trouble = page.get_by_role("alert").filter(has_text="This could not be loaded")
    expect(trouble).to_contain_text("Being rolled.")
    expect(page.get_by_text("Nothing was written")).to_be_hidden()
    expect(console.button("Copy")).to_be_hidden()
    page.unroute("**/log?*")
    console.button("Try again").click()
    expect(page.locator(".log .line")).to_have_text(["written"])
    expect(trouble).to_have_count(0)
    expect(console.button("Copy")).to_be_visible()


def test_output_that_ended_long_before_the_log_is_shown(console: Console, client: Client) -> None:
    """The last parts of the log tell of progress alone, and a page of nothing cannot be scrolled."""
    job_id = made(client, "progress", "echo written")
    ended(client, job_id)
    time = client.jobs.get(job_id).complete_time.ToDatetime().isoformat() + "Z"
    lines, total, piece = 30, 9_000, 2_000

    def frame(sequence: int) -> dict[str, object]:
        if sequence > lines:
            notice = {"severity": "SEVERITY_INFO", "text": "", "progress": {"percent": 1, "text": f"{sequence}"}}
            return {"sequence": str(sequence), "time": time, "notice": notice}
        data = base64.b64encode(f"line {sequence}\n".encode()).decode()
        return {"sequence": str(sequence), "time": time, "chunk": {"channel": "CHANNEL_STDOUT", "data": data}}

    def read(route: Route) -> None:
        asked = {name: int(value) for name, (value,) in parse_qs(urlsplit(route.request.url).query).items()}
        end = min(asked.get("beforeSequence", asked.get("firstSequence", 1) + piece), total + 1)
        first = asked.get("firstSequence", max(1, end - piece))
        frames = [frame(sequence) for sequence in range(first, end)]
        route.fulfill(json={"totalFrames": str(total), "frames": {"attempt": 1, "frames": frames}})

    page = console.page
    page.route("**/log?*", read)
    console.job(job_id, "output")
    expect(page.locator(".log .line")).to_have_text([f"line {n}" for n in range(1, lines + 1)])
    page.get_by_role("link", name="Monitor").click()
    expect(page.locator(".log .line", has_text=f"{total}")).to_be_in_viewport()
    page.get_by_role("link", name="Console Output").click()
    expect(page.locator(".log .line").last).to_have_text(f"line {lines}")
    expect(page.locator(".log .line").last).to_be_in_viewport()


def test_a_search_ends_with_its_view(console: Console, client: Client) -> None:
    job_id = made(client, "left", "echo written")
    ended(client, job_id)
    # Nothing but the page ends what it has asked for.
    console.context.add_init_script("AbortSignal.timeout = () => new AbortController().signal;")
    page = console.job(job_id, "output")
    page.route("**/log:search?*", lambda _: None)
    page.get_by_label("Search the log").fill("written")
    with page.expect_request("**/log:search?*"):
        page.keyboard.press("Enter")
    with page.expect_event("requestfailed", lambda request: "/log:search?" in request.url):
        page.get_by_role("link", name="History").click()
