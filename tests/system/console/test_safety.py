"""What hostile texts and hostile pages can do to whoever looks at the console: nothing."""

from __future__ import annotations

import http.server
import json
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from sis.client import Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.packages import archive
from sis.queue.v1 import job_pb2
from tests.support.enrolled import EnrolledAgent, pairing_code
from tests.support.numbered_job import shell_job
from tests.support.stack import Stack
from tests.system.console.console import Console
from tests.system.console.test_job_list import ended, made

pytestmark = pytest.mark.timeout(180)

PAYLOADS = [
    "<script>window.owned = 1</script>",
    '"><img src=x onerror="window.owned = 1">',
    "javascript:window.owned=1//",
    "<svg/onload=window.owned=1>",
    "{{constructor.constructor('window.owned=1')()}}",
    "\u202egnp.exe",
]
EVERYWHERE = " ".join(PAYLOADS)
MANIFEST = """
name: hostile
version: 1.0.0
publisher: {line}
description: {text}
platforms: [linux]
operations:
  run:
    description: {text}
    command: [/bin/true]
    inputs:
      word: {{type: string, description: {text}, hint: {text}, default: {text}}}
      one: {{type: enum, choices: [{line}], description: {text}}}
      paper: {{type: file, description: {text}}}
    credentials:
      login: {{description: {text}}}
    outputs:
      answer: {{description: {text}}}
"""


@pytest.fixture(scope="module")
def hostile_job(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> int:
    """A job with payloads in every field that takes a text, and in what it writes. After it come one that was canceled
    for such a reason, and one of a package with such texts, with such a file; an agent was revoked for that reason."""
    agent = EnrolledAgent(stack, tmp_path_factory.mktemp("agent") / "state", slots=1)
    done = agent.enrol(pairing_code(stack, "hostile", "hostile"))
    assert done.returncode == 0, done.stderr
    assert stack.cli("agents", "revoke", "hostile", "--reason", EVERYWHERE).returncode == 0
    source = tmp_path_factory.mktemp("package")
    with stack.client() as client:
        client.credentials.create(
            credentials_pb.CreateCredentialRequest(
                name="hostile",
                kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
                username=PAYLOADS[1],
                description=EVERYWHERE,
                value=credential_pb2.SecretValue(secret=b"a secret of a test"),
            )
        )
        lines = "\n".join(PAYLOADS)
        script = f"""
cat <<'END'
{lines}
END
printf '\\033]0;owned\\007\\033[2J\\033[1;1Hover\\r\\033[8mhidden\\033[0m\\n' >&2
printf 'answer<<MARK\\n%s\\nMARK\\n' '{PAYLOADS[3]}' >> "$SIS_OUTPUT"
printf '50 {PAYLOADS[3]}\\n' >> "$SIS_PROGRESS"
"""
        job_id = made(client, EVERYWHERE[:200], script, labels={"label": PAYLOADS[1]})
        ended(client, job_id)
        held = made(client, EVERYWHERE[:200], deferred=True)
        (source / "package.yaml").write_text(
            MANIFEST.format(text=json.dumps(EVERYWHERE), line=json.dumps(" ".join(PAYLOADS[:5])))
        )
        client.packages.push(archive.pack(source))
        request = shell_job("", deferred=True)
        request.package.name = "hostile"
        del request.parameters["script"]
        request.parameters["paper"].file.name = PAYLOADS[1]
        request.parameters["paper"].file.content = b"paper"
        client.jobs.create(request)
        client.jobs.cancel(held, reason=EVERYWHERE)
        assert client.jobs.get(job_id).status == job_pb2.JOB_STATUS_SUCCEEDED
        return job_id


@pytest.mark.parametrize(
    "path",
    [
        "/jobs",
        "/jobs/{job}",
        "/jobs/{job}?view=output",
        "/jobs/{job}?view=debug&part=full",
        "/jobs/{job}?view=debug&part=problem",
        "/jobs/{job}?view=processes",
        "/jobs/{job}?view=history",
        "/jobs/{next}?view=history",
        "/jobs/new?copy={job}",
        "/jobs/{after}?view=history",
        "/jobs/new?copy={after}",
        "/jobs/new?package=hostile",
        "/packages",
        "/packages/hostile",
        "/agents",
        "/agents/hostile",
        "/credentials",
        "/credentials/hostile",
        "/jobs?text=%3Cscript%3Ewindow.owned%3D1%3C/script%3E&type=%22%3E%3Cimg%20src=x%20onerror=window.owned=1%3E",
        "/jobs/%3Cimg%20src=x%20onerror=window.owned=1%3E",
        "/packages/%3Cimg%20src=x%20onerror=window.owned=1%3E",
    ],
)
def test_no_text_becomes_markup(console: Console, hostile_job: int, path: str) -> None:
    page = console.go(path.format(job=hostile_job, next=hostile_job + 1, after=hostile_job + 2))
    expect(page.locator("main h1, main .state, main table").first).to_be_visible()
    page.wait_for_load_state("networkidle") if "view" not in path and path != "/jobs" else None
    assert page.evaluate("() => window.owned") is None
    assert page.locator("main img, main script, main iframe").count() == 0
    # Nothing turns the direction of what is beside it, or says more than can be seen.
    assert not set(page.locator("body").inner_text()) & {"\u202e", "\x1b"}
    assert page.evaluate("() => [...document.links].every(link => /^https?:/.test(link.href))")


@pytest.fixture
def stranger() -> Iterator[str]:
    """A page of somebody else, at another port of this machine: to cookies, the same site."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>stranger</title><p>hello")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_requests_of_other_pages_do_nothing(opened: Callable[..., Console], client: Client, stranger: str) -> None:
    held = made(client, f"mine {uuid.uuid4().hex}", deferred=True)
    console = opened()
    page = console.context.new_page()
    page.goto(stranger)
    tried = page.evaluate(
        """async ([url, id]) => {
            const outcomes = [];
            const send = async (path, options) => {
                try {
                    const response = await fetch(url + path, { credentials: "include", ...options });
                    outcomes.push(response.type === "opaque" ? "opaque" : response.status);
                } catch { outcomes.push("refused"); }
            };
            await send(`/v1/jobs/${id}`, {});
            await send(`/v1/jobs/${id}:cancel`, { method: "POST", mode: "no-cors" });
            await send(`/v1/jobs/${id}:cancel`, { method: "POST", mode: "no-cors", body: "{}" });
            await send(`/v1/jobs/${id}`, { method: "DELETE" });
            await send("/session", { method: "DELETE" });
            const form = document.createElement("form");
            form.action = `${url}/v1/jobs/${id}:cancel`;
            form.method = "post";
            form.enctype = "text/plain";
            const frame = document.createElement("iframe");
            frame.name = form.target = "frame";
            document.body.append(frame, form);
            form.submit();
            await new Promise((resolve) => (frame.onload = resolve));
            const image = new Image();
            await new Promise((resolve) => { image.onerror = resolve; image.src = `${url}/v1/jobs/${id}`; });
            return outcomes;
        }""",
        [console.url, str(held)],
    )
    assert tried == ["refused"] * 5
    assert client.jobs.get(held).status == job_pb2.JOB_STATUS_DEFERRED
    assert len(list(client.jobs.history(held))) == 1
    # The session lives, and the page cannot be put into a frame of theirs.
    expect(console.row(held)).to_be_visible()
    framed = page.evaluate(
        """async (url) => {
            const frame = document.createElement("iframe");
            frame.src = url;
            document.body.append(frame);
            await new Promise((resolve) => (frame.onload = resolve));
            try { return frame.contentDocument?.title ?? "cross-origin"; } catch { return "cross-origin"; }
        }""",
        console.url,
    )
    assert framed == "cross-origin"
    client.jobs.delete(held)


def test_scripts_cannot_read_the_session(console: Console) -> None:
    (cookie,) = [each for each in console.context.cookies() if "session" in each["name"]]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    assert console.page.evaluate("() => document.cookie") == ""
    assert console.token not in str(console.page.evaluate("() => JSON.stringify({...localStorage, ...sessionStorage})"))
    assert console.token not in cookie["value"]
