#!/bin/sh
# Build the container images, with the locked wheels as they are installed everywhere else: `make image`.
#
#   BASE_IMAGE      what they are built upon (the one in deploy/Containerfile)
#   PYTHON_VERSION  its Python (3.13)
#   BUILDER         buildah, podman or docker (the first of these that is there)
#   TAG             of the images sis-server and sis-agent (the version of the project)
set -eu
cd "$(dirname "$0")/.."

PYTHON_VERSION=${PYTHON_VERSION:-3.13}

unset VIRTUAL_ENV PYTHONHOME PYTHONPATH
fail() {
    echo "error: $1" >&2
    exit 1
}

uv=$(command -v .venv/bin/uv || command -v uv) || fail "uv is not there; run make setup"
if [ -z "${BUILDER:-}" ]; then
    for BUILDER in buildah podman docker none; do
        if command -v "$BUILDER" >/dev/null; then break; fi
    done
fi
command -v "$BUILDER" >/dev/null || fail "nothing builds images here; on Debian and Ubuntu: apt install buildah"

context=build/image
wheels=$context/wheels
mkdir -p "$wheels"
rm -f "$wheels"/sis-*.whl "$context"/requirements-*.txt
"$uv" build --quiet --wheel --out-dir "$wheels"
wheel=$(echo "$wheels"/sis-*.whl)
version=$(basename "$wheel" | cut -d - -f 2)
digest=$(sha256sum "$wheel" | cut -d ' ' -f 1)

for extra in server agent; do
    requirements=$context/requirements-$extra.txt
    "$uv" export --quiet --locked --no-dev --extra "$extra" --no-emit-project --no-header --no-annotate \
        --output-file "$requirements" >/dev/null
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --dest "$wheels" --no-deps \
        --python-version "$PYTHON_VERSION" --only-binary :all: --require-hashes --requirement "$requirements"
    echo "sis==$version --hash=sha256:$digest" >>"$requirements"
done

for image in server agent; do
    set -- build --file deploy/Containerfile --target "$image" --tag "sis-$image:${TAG:-$version}"
    if [ -n "${BASE_IMAGE:-}" ]; then set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"; fi
    "$BUILDER" "$@" "$context"
done
