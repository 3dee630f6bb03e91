"""Makes what the pods of deploy/k8s/overlays/single-node prove themselves by, once.

    python -m sis.stack.single_node DIRECTORY

Each pod has a volume, mounted at DIRECTORY/HOLDER, with what it may know and nothing else. What is there stays as it
is, so this may be repeated, and be interrupted: what only one of two holders has got is given to the other. A holder is
complete once it has the file COMPLETE.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sis.private_files import write_private
from sis.stack.commands import token_sha256
from sis.stack.layout import JOINING
from sis.stack.openbao import make_certificate

COMPLETE: Final = "complete"
HOLDERS: Final = ("administrator", "postgres", "openbao", "credentials", *JOINING)
_SERVERS: Final = ("credentials", "queue", "hub")
"""Those that have a database, and know the administrator's token by its digest."""


def make(directory: Path) -> None:
    """Make what is missing.

    Raises:
        OSError: a volume cannot be written; what is there is whole.
    """
    administrator, postgres, openbao = (directory / holder for holder in HOLDERS[:3])
    digest = token_sha256(_random(administrator / "token"))
    password = _random(postgres / "password")
    for service in _SERVERS:
        url = f"postgresql+psycopg://sis:{password}@sis-postgres:5432/sis"
        _settings(directory, service, {"DATABASE_URL": url, "ADMIN_TOKEN_SHA256": digest})
    joins = {service: token_sha256(_random(directory / service / "join.token")) for service in JOINING}
    listed = ",".join(f"{service}={joined}" for service, joined in joins.items())
    _settings(directory, "credentials", {"JOIN_TOKENS": listed})
    _random(directory / "gateway" / "session.key")
    _key(openbao / "unseal.key")
    if not (openbao / "certificate.pem").exists():
        make_certificate(openbao, ["sis-openbao"])
    _copy(openbao / "certificate.pem", directory / "credentials" / "openbao.pem")
    for holder in HOLDERS:
        write_private(directory / holder / COMPLETE, b"")


def _random(file: Path) -> str:
    """The 32 random bytes in a file, in URL-safe base64."""
    if not file.exists():
        write_private(file, secrets.token_urlsafe(32).encode("ascii"))
    return file.read_text(encoding="ascii")


def _key(file: Path) -> None:
    if not file.exists():
        write_private(file, secrets.token_bytes(32))


def _settings(directory: Path, service: str, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        write_private(directory / service / f"SIS_{service.upper()}_{name}", value.encode("ascii"))


def _copy(source: Path, target: Path) -> None:
    write_private(target, source.read_bytes())


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 done, 1 refused, 2 not understood."""
    if len(arguments) != 1:
        print("error: give the directory with the volumes", file=sys.stderr)
        return 2
    try:
        make(Path(arguments[0]))
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
