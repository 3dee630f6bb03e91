#!/bin/sh
# Build the wheel, install it into a fresh environment, and use it from elsewhere: `make wheel-test`.
set -eu
cd "$(dirname "$0")/.."
root=$PWD

unset VIRTUAL_ENV PYTHONHOME PYTHONPATH
if [ ! -w "${HOME:-/nowhere}" ]; then
    export UV_CACHE_DIR="$PWD/build/uv-cache" HOME="$PWD/build"
fi
uv=$(command -v .venv/bin/uv || command -v uv) || {
    echo "error: uv is not there; run make setup" >&2
    exit 1
}

rm -rf build/wheel
mkdir -p build/wheel
"$uv" build --quiet --wheel --out-dir build/wheel
# What is locked, so that the test is of the wheel and not of today's releases.
"$uv" export --quiet --locked --no-dev --extra stack --no-emit-project --output-file build/wheel/requirements.txt >/dev/null
"$uv" venv --quiet --python .venv/bin/python build/wheel/venv
"$uv" pip install --quiet --python build/wheel/venv/bin/python --requirements build/wheel/requirements.txt
"$uv" pip install --quiet --python build/wheel/venv/bin/python --no-deps build/wheel/*.whl

cd "$root/build/wheel"
venv/bin/sis --version
venv/bin/sis --help >/dev/null
venv/bin/python - <<'PYTHON'
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import sis
from sis import packages

home = Path(sis.__file__).resolve()
assert "site-packages" in home.parts, f"sis comes from {home}, not from the wheel"
for entry in entry_points(group="console_scripts"):
    if entry.value.startswith(("gateway.", "sis.", "services.")):
        entry.load()
for module in ("services.queue.main", "services.sis_agent.hub.main", "services.sis_agent.agent.main", "sis.stack"):
    import_module(module)
for service in ("queue", "sis_agent/hub"):
    assert list((home.parents[1] / "services" / service / "migrations" / "versions").glob("v*.py")), service
found = {directory.name for directory in packages.shipped().iterdir() if (directory / "package.yaml").is_file()}
assert packages.shipped().is_relative_to(home.parent), packages.shipped()
assert found >= {"core.http", "core.shell", "files.push", "linux.facts", "linux.package", "linux.service"}, found
assert b"ListJobs" in import_module("gateway.openapi").document()
assert b"ListJobs" in import_module("gateway.reference").page()
PYTHON

# The gateway serves the page of the console, and everything that the page loads.
venv/bin/python - <<'PYTHON'
import asyncio
import http.client
import re
from pathlib import Path

from gateway.app import Gateway
from gateway.server import Server
from gateway.site import DIRECTORY
from gateway.upstreams import Upstreams
from services.runtime.identity import Identity


async def nothing(_: bytes) -> bytes:
    raise AssertionError("no service is called")


def loaded(port: int) -> dict[str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def body(path: str) -> bytes:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200, f"{path}: {answer.status}"
        return answer.read()

    page = body("/")
    return {path: body(path) for path in re.findall(r'(?:href|src)="([^"]+)"', page.decode())}


async def served() -> dict[str, bytes]:
    upstreams = Upstreams(
        Identity(Path("none"), Path("none"), nothing, name="gateway"), **dict.fromkeys(("queue", "credentials", "hub"), "")
    )
    server = Server(Gateway(upstreams, tls=False, behind_proxy=False), "127.0.0.1:0")
    server.start()
    stopping = asyncio.Event()
    running = asyncio.create_task(server.run_until(stopping.wait()))
    try:
        return await asyncio.to_thread(loaded, server.port)
    finally:
        stopping.set()
        await running


files = asyncio.run(served())
assert any(path.endswith("/main.js") for path in files), sorted(files)
# Pages fetch the rest when they are wanted.
there, source = ({path.relative_to(root) for path in root.rglob("*.*")} for root in (DIRECTORY, Path("../../gateway/console")))
assert there == source, there ^ source
PYTHON
echo "the wheel works"
