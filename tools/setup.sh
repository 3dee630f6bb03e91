#!/bin/sh
# Build the locked environment in .venv: `tools/setup.sh [GROUP...]`, or `make setup`. Each GROUP of dependencies in
# pyproject.toml is installed beside the group dev.
#
# Needs Python 3.11 or later with its venv module. uv is used if a recent one is there, else a pinned one is installed
# into .venv. PYTHON names the interpreter to build upon.
set -eu
cd "$(dirname "$0")/.."

UV_VERSION=0.13.9

unset VIRTUAL_ENV PYTHONHOME PYTHONPATH
# An activated .venv must not be built upon itself.
PATH=$(printf '%s' "$PATH" | tr ':' '\n' | grep -vxF "$PWD/.venv/bin" | paste -s -d ':' -)
export UV_PROJECT_ENVIRONMENT="$PWD/.venv" UV_COMPILE_BYTECODE=1
if [ ! -w "${HOME:-/nowhere}" ]; then # nothing can be cached there
    export UV_CACHE_DIR="$PWD/build/uv-cache" PIP_NO_CACHE_DIR=1 HOME="$PWD/build"
fi

fail() {
    echo "error: $1" >&2
    exit 1
}

recent_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

recent_uv() {
    "$1" --version 2>/dev/null | awk '{ split($2, v, "."); exit !(v[1] > 0 || v[2] >= 9) }' 2>/dev/null
}

if [ -z "${PYTHON:-}" ]; then
    for PYTHON in python3 python3.14 python3.13 python3.12 python3.11; do
        if recent_python "$PYTHON"; then break; fi
    done
fi
recent_python "$PYTHON" || fail "Python 3.11 or later is needed; install it, or name it: make setup PYTHON=/path/to/python3.11"

if ! recent_python .venv/bin/python; then
    rm -rf .venv # half built, or its Python is gone
fi

if command -v uv >/dev/null && recent_uv uv; then
    uv=uv
    [ -x .venv/bin/python ] || uv venv --quiet --python "$PYTHON" .venv
else
    uv=.venv/bin/uv
    if ! [ -x "$uv" ] || [ "$("$uv" --version | awk '{ print $2 }')" != "$UV_VERSION" ]; then
        "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
            fail "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"
        "$PYTHON" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
    fi
fi

for group; do
    set -- "$@" --group "$group"
    shift
done
# Inexact, since an exact sync would remove the uv that it runs, and the groups of other calls.
"$uv" sync --locked --inexact --group dev "$@" --python .venv/bin/python
