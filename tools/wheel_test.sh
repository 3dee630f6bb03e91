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
echo "the wheel works"
