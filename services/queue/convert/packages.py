"""PackageService: requests to commands, packages to messages."""

from __future__ import annotations

import re

from google.protobuf import duration_pb2

from services.queue.packages import ListPackages, Package, Upload
from services.runtime.errors import InvalidArgument
from services.runtime.fields import Violations, members, numbers, to_timestamp
from sis.credentials.v1 import credential_pb2
from sis.packages.archive import MAX_PACKED_BYTES
from sis.packages.manifest import CredentialReference, Input, Operation
from sis.packages.operation import CredentialKind
from sis.packages.values import text
from sis.queue.v1 import package_service_pb2

_DIGEST = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20
CREDENTIAL_KINDS = members(credential_pb2.CredentialKind, "CREDENTIAL_KIND_", CredentialKind)
CREDENTIAL_KIND_NUMBERS = numbers(CREDENTIAL_KINDS)


def digest(field: str, value: str) -> str:
    """Raises InvalidArgument unless it is a SHA-256 in lower-case hexadecimal."""
    if not _DIGEST.fullmatch(value):
        raise InvalidArgument.field(field, "must be a SHA-256 in lower-case hexadecimal, 64 digits")
    return value


def upload(request: package_service_pb2.PushPackageRequest) -> Upload:
    """The first message of a push. Raises InvalidArgument."""
    if request.WhichOneof("content") != "upload":
        raise InvalidArgument.field("upload", "is required: the first message announces what comes")
    size, announced = request.upload.size_bytes, request.upload.digest
    if not 0 <= size <= MAX_PACKED_BYTES:
        raise InvalidArgument.field("upload.size_bytes", f"must be between 1 and {MAX_PACKED_BYTES:,}, or absent")
    return Upload(announced and digest("upload.digest", announced), size)


def chunk(request: package_service_pb2.PushPackageRequest) -> bytes:
    """A later message of a push. Raises InvalidArgument."""
    if request.WhichOneof("content") != "chunk":
        raise InvalidArgument.field("chunk", "is required: after the first message come the bytes of the archive")
    if len(request.chunk) > CHUNK_BYTES:
        raise InvalidArgument.field("chunk", f"has {len(request.chunk):,} bytes; at most {CHUNK_BYTES:,} are taken")
    return request.chunk


def list_packages(request: package_service_pb2.ListPackagesRequest) -> ListPackages:
    """Raises InvalidArgument, naming every wrong field."""
    wrong = Violations()
    size = wrong.page_size(request.page_size)
    wrong.line("name", request.name, 100)
    wrong.refuse()
    return ListPackages(request.name, size, request.page_token)


def package_name(
    request: package_service_pb2.GetPackageRequest | package_service_pb2.DownloadPackageRequest,
) -> tuple[str, str]:
    """Name and version. Raises InvalidArgument."""
    wrong = Violations()
    wrong.line("name", request.name, 100, required=True)
    wrong.line("version", request.version, 100)
    wrong.refuse()
    return request.name, request.version


def package_version(request: package_service_pb2.DeletePackageRequest) -> tuple[str, str]:
    """Name and version, both of them given. Raises InvalidArgument."""
    wrong = Violations()
    wrong.line("name", request.name, 100, required=True)
    wrong.line("version", request.version, 100, required=True)
    wrong.refuse()
    return request.name, request.version


def to_package(package: Package, *, operations: bool = True) -> package_service_pb2.Package:
    manifest = package.manifest
    return package_service_pb2.Package(
        name=package.name,
        version=package.version,
        digest=package.digest,
        publisher=manifest.publisher,
        description=manifest.description,
        platforms=manifest.platforms,
        operations=[_operation(n, o) for n, o in manifest.operations.items()] if operations else [],
        size_bytes=package.size_bytes,
        push_time=to_timestamp(package.pushed_at),
        pusher=package.pusher,
    )


def to_archive(package: Package) -> package_service_pb2.PackageArchive:
    return package_service_pb2.PackageArchive(
        name=package.name, version=package.version, digest=package.digest, size_bytes=package.size_bytes
    )


def _operation(name: str, operation: Operation) -> package_service_pb2.Operation:
    return package_service_pb2.Operation(
        name=name,
        description=operation.description,
        run_timeout=duration_pb2.Duration(seconds=operation.run_timeout) if operation.run_timeout else None,
        cancel_grace=duration_pb2.Duration(seconds=operation.cancel_grace),
        inputs=[_input(n, i) for n, i in operation.inputs.items()],
        outputs=[
            package_service_pb2.Output(name=n, description=o.description, required=o.required)
            for n, o in operation.outputs.items()
        ],
        credentials=[_reference(n, r) for n, r in operation.credentials.items()],
    )


def _reference(name: str, declared: CredentialReference) -> package_service_pb2.CredentialReference:
    return package_service_pb2.CredentialReference(
        ref=name,
        description=declared.description,
        required=declared.required,
        kinds=[CREDENTIAL_KIND_NUMBERS[kind] for kind in declared.kinds],
        delivery=declared.delivery,
    )


def _input(name: str, declared: Input) -> package_service_pb2.Input:
    return package_service_pb2.Input(
        name=name,
        type=declared.type,
        description=declared.description,
        hint=declared.hint,
        required=declared.required,
        default_value=None if declared.default is None else text(declared.default),
        pattern=declared.pattern,
        choices=declared.choices,
        sensitive=declared.sensitive,
    )
