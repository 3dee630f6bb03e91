# Everything a contributor runs. `make setup` builds the environment, and every other target does so when it must.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-root test-long test-system test-crash soak lint format generate bench bench-console\
    wheel wheel-test image image-test clean

bin := .venv/bin
stamp := .venv/.locked
soak_stamp := .venv/.locked-soak
browser_stamp := .venv/.locked-browser
image_stamp := .venv/.locked-image

# An activated environment, or somebody's PYTHONPATH, must not be mixed with ours.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
# Compiled once instead of at every start of every process.
unexport PYTHONDONTWRITEBYTECODE
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv
export BUF_CACHE_DIR := $(CURDIR)/build/buf-cache

help:
	@sed -n 's/^\([a-z-]*\):.* ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(stamp): pyproject.toml uv.lock tools/setup.sh
	@PYTHON='$(PYTHON)' tools/setup.sh
	@touch $@

$(soak_stamp): $(stamp)
	@PYTHON='$(PYTHON)' tools/setup.sh soak
	@touch $@

setup: $(stamp) ## the locked environment in .venv, and nothing else

$(browser_stamp): $(stamp)
	@PYTHON='$(PYTHON)' tools/setup.sh browser
	@touch $@

$(image_stamp): $(stamp)
	@PYTHON='$(PYTHON)' tools/setup.sh image
	@touch $@

demo: $(stamp) ## starts everything, runs four jobs in front of you, takes everything down
	@$(bin)/sis demo

test: $(stamp) ## what any user can run; skips nothing
	$(bin)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not root and not long'

test-root: $(stamp) ## what needs root: a second user, cgroups
	$(bin)/python -m pytest -m root

test-long: $(stamp) ## the tests that make test runs in a shorter form, at full length; OF=FILES takes some of them
	$(bin)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'long and not root' $(OF)

test-system: $(browser_stamp) ## what needs Debian's servers and browser: PgBouncer, Prometheus, Chromium, npm
	$(bin)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/system --ignore=tests/system/image --ignore=tests/system/kubernetes

test-crash: $(stamp) ## kills and stops every process at every named moment, and prints the table
	$(bin)/python -m tests.crash

MINUTES ?= 30
soak: $(soak_stamp) ## MINUTES (30) of churn and random faults; plots everything that could grow to build/soak
	@$(bin)/python -m tests.soak --minutes $(MINUTES)

lint: $(stamp) ## ruff, mypy --strict, contracts, generated code, import rules
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/python tools/generate.py --check
	$(bin)/python tools/client.py --check
	$(bin)/python tools/state_diagram.py --check
	$(bin)/python tools/package_schema.py --check
	$(bin)/python tools/package_reference.py --check
	$(bin)/buf lint build/protos.binpb
	$(bin)/buf breaking build/protos.binpb --against protos/released.binpb
	$(bin)/lint-imports --no-cache

format: $(stamp)
	$(bin)/ruff check --fix-only .
	$(bin)/ruff format .

generate: $(stamp) ## stubs and openapi.json, the synchronous client, the state diagram, the package reference
	$(bin)/python tools/generate.py
	$(bin)/python tools/client.py
	$(bin)/python tools/state_diagram.py
	$(bin)/python tools/package_schema.py
	$(bin)/python tools/package_reference.py

bench: $(stamp) ## measurements beside the peers, in one run
	@$(bin)/python -m bench

bench-console: $(browser_stamp) ## the web console in Chromium
	@$(bin)/python -m bench.console

wheel: $(stamp) ## dist/sis-VERSION-py3-none-any.whl, for machines without this tree
	@$(bin)/uv build --quiet --wheel --out-dir dist && ls dist/*.whl

wheel-test: $(stamp) ## the wheel builds, installs and starts outside this tree
	@tools/wheel_test.sh

image: $(image_stamp) ## the container images, by BUILDER upon BASE_IMAGE with PYTHON_VERSION
	@tools/image.sh

image-test: $(image_stamp) ## builds, checks and runs the images and the Kubernetes manifests
	$(bin)/python -m pytest tests/system/image tests/system/kubernetes

clean: ## removes what was built, the environment too
	rm -rf .venv build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
