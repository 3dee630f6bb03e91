"""The web console in a real browser: `make bench-console`. Figures, no verdicts.

`make bench-console JOBS=1000000` fills the list with that many jobs.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import psycopg
from playwright.sync_api import Browser, Page, sync_playwright

from bench.figures import Figure, show
from sis import stack
from sis.client import Client
from sis.queue.v1 import job_pb2, job_service_pb2
from sis.stack import state as states
from sis.stack.layout import Layout
from sis.stack.postgres import USER

JOBS = int(os.environ.get("JOBS", "100_000"))
RUNS = 5
LINES_PER_SECOND = 5_000
WATCHED_SECONDS = 20

# Prints in bursts of a fiftieth of a second, as fast as asked, by the clock.
_TALKER = f"""
import sys, time
began, said = time.monotonic(), 0
while said < {LINES_PER_SECOND * (WATCHED_SECONDS + 60)}:
    due = int((time.monotonic() - began) * {LINES_PER_SECOND})
    sys.stdout.write("".join(f"line {{n}} {{'of a log ' * 10}}\\n" for n in range(said, due)))
    sys.stdout.flush()
    said = due
    time.sleep(0.02)
"""
# How long each picture of the page took, while it is being watched.
_FRAMES = """
window.frames_ = []; let last = performance.now();
const note = (now) => { frames_.push(now - last); last = now; requestAnimationFrame(note); };
requestAnimationFrame(note);
"""
# At each picture of the page; Playwright looks for a selector at growing intervals.
_ROWS_ARE_THERE = "() => document.querySelector('table.jobs tbody tr')"
# Takes the rows that are there away, so that those that come are not mistaken for them.
_TAKE_ROWS_AWAY = "document.querySelector('table.jobs tbody').replaceChildren()"


def main() -> None:
    """Start a stack, measure, take it down."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("error: Chromium is needed; on Debian: apt install chromium")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="sis-bench-") as name, sync_playwright() as playwright:
        data = Path(name) / "stack"
        if stack.up(stack.Options(data=data, detach=True)) != 0:
            raise SystemExit("the stack did not start")
        try:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
            )
            with Client.find(data) as client:
                client.jobs.create(_job("true"))
                show("Console, a first visit", _first_visit(browser, data))
                show("Console, monitor", _monitor(browser, data, client))
                _fill(data)
                show(f"Console, {JOBS:,} jobs", _long_list(browser, data))
            browser.close()
        finally:
            stack.down(data)


def _job(script: str, interpreter: str = "/bin/sh") -> job_service_pb2.CreateJobRequest:
    request = job_service_pb2.CreateJobRequest(
        display_name="bench console",
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name="core.shell"),
        operation="run",
        site_target=job_pb2.SiteTarget(group="local"),
    )
    request.parameters["script"].plain = script
    request.parameters["interpreter"].plain = interpreter
    return request


def _url(data: Path) -> str:
    state = states.read(Layout(data))
    assert state is not None
    return f"http://{state.gateway_endpoints[0]}"


def _signed_in(browser: Browser, data: Path) -> Page:
    page = browser.new_context(base_url=_url(data)).new_page()
    page.goto("/")
    page.get_by_label("Token").fill(Layout(data).token.read_text().strip())
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("table.jobs tbody tr")
    return page


def _first_visit(browser: Browser, data: Path) -> list[Figure]:
    """With a session and nothing in the cache: what is transferred, and when the first row is there."""
    kilobytes, seconds = [], []
    for _ in range(RUNS):
        page = _signed_in(browser, data)
        devtools = page.context.new_cdp_session(page)
        devtools.send("Network.enable")
        devtools.send("Network.clearBrowserCache")
        sizes: list[float] = []
        devtools.on("Network.loadingFinished", lambda event, into=sizes: into.append(event["encodedDataLength"]))
        began = time.perf_counter()
        page.goto("/jobs", wait_until="commit")
        page.wait_for_function(_ROWS_ARE_THERE)
        seconds.append(time.perf_counter() - began)
        # What is fetched ahead, for the pages that come next, is none of it.
        kilobytes.append(sum(sizes) / 1000)
        page.context.close()
    return [
        Figure("transferred until the first list", f"{statistics.median(kilobytes):.0f} kB", "the aim: under 100"),
        Figure("navigation to first row", f"{statistics.median(seconds) * 1000:.0f} ms", "the aim: under 1,000"),
    ]


def _monitor(browser: Browser, data: Path, client: Client) -> list[Figure]:
    """A job that prints at a given rate, watched."""
    job_id = client.jobs.create(_job(_TALKER, shutil.which("python3") or "python3")).job_id
    page = _signed_in(browser, data)
    page.goto(f"/jobs/{job_id}")
    page.wait_for_selector(".log .line.out")
    devtools = page.context.new_cdp_session(page)
    page.wait_for_timeout(2_000)
    page.evaluate(_FRAMES)
    before = _heap(devtools)
    seen = _last_line(page)
    began = time.perf_counter()
    page.wait_for_timeout(WATCHED_SECONDS * 1_000)
    rate = (_last_line(page) - seen) / (time.perf_counter() - began)
    after = _heap(devtools)
    frames = sorted(page.evaluate("frames_"))
    client.jobs.abort(job_id)
    page.context.close()
    return [
        Figure("lines shown", f"{rate:,.0f}/s", f"{LINES_PER_SECOND:,}/s are printed"),
        Figure(
            "time of a picture",
            f"p50 {frames[len(frames) // 2]:.0f}, p99 {frames[int(len(frames) * 0.99)]:.0f}, most {frames[-1]:.0f} ms",
            "the aim: under 50",
        ),
        Figure(
            "script memory after garbage collection", f"{before:.1f} -> {after:.1f} MB", f"{WATCHED_SECONDS} s apart"
        ),
    ]


def _last_line(page: Page) -> int:
    text = page.locator(".log .line.out").nth(-2).text_content() or ""
    return int(text.split()[1])


def _heap(devtools: object) -> float:
    devtools.send("HeapProfiler.collectGarbage")  # type: ignore[attr-defined]
    used: float = devtools.send("Runtime.getHeapUsage")["usedSize"]  # type: ignore[attr-defined]
    return used / 1e6


def _fill(data: Path) -> None:
    """Copies of an ended job, until there are JOBS."""
    state = states.read(Layout(data))
    assert state is not None
    sockets = next(each for each in state.processes if each.name == "postgres").endpoint.removeprefix("unix:")
    with psycopg.connect(host=str(Path(sockets).parent), user=USER, dbname="sis", autocommit=True) as connection:
        columns = [
            str(row[0])
            for row in connection.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_schema = 'queue'"
                " AND table_name = 'jobs' AND column_name NOT IN ('job_id', 'display_name') ORDER BY 1"
            )
        ]
        names = ", ".join(columns)
        connection.execute(
            f"INSERT INTO queue.jobs (display_name, {names}) SELECT 'copy ' || n, {names}"
            f" FROM queue.jobs, generate_series(1, {JOBS}) AS n WHERE job_id = 1".encode()
        )
        connection.execute("VACUUM ANALYZE queue.jobs")


def _long_list(browser: Browser, data: Path) -> list[Figure]:
    """From a click to the rows of it, in a console that is open."""
    page = _signed_in(browser, data)
    found = []
    for name, act in (
        ("Refresh", lambda: page.get_by_role("button", name="Refresh").click()),
        ("the next page", lambda: page.get_by_role("button", name="Older").click()),
        (
            "a text, the pause after its last letter included",
            lambda: page.get_by_label("Filter by name").fill(f"copy {JOBS * 7 // 9}"),
        ),
        ("by completion, the console opened", lambda: page.goto("/jobs?order=complete_time+desc", wait_until="commit")),
    ):
        taken = []
        for _ in range(RUNS):
            page.goto("/jobs")
            page.wait_for_selector("table.jobs tbody tr")
            page.wait_for_timeout(500)
            page.evaluate(_TAKE_ROWS_AWAY)
            began = time.perf_counter()
            act()
            page.wait_for_function(_ROWS_ARE_THERE)
            taken.append(time.perf_counter() - began)
        most = f"most {max(taken) * 1000:.0f} ms; to the rows; the aim: under 200"
        found.append(Figure(name, f"{statistics.median(taken) * 1000:.0f} ms", most))
    page.context.close()
    return found


if __name__ == "__main__":
    main()
