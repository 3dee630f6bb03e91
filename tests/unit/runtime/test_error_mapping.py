"""An error that crosses the wire is the same error on the other side."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from services.runtime import errors
from services.runtime.channels import from_status, grpc_error
from services.runtime.errors import FieldViolation, SisError, to_status
from sis.errors.v1.reason_pb2 import Reason

KINDS = [
    errors.InvalidArgument,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.NotFound,
    errors.AlreadyExists,
    errors.Aborted,
    errors.ResourceExhausted,
    errors.DeadlineExceeded,
    errors.Unavailable,
    errors.Internal,
]
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(
    st.sampled_from(KINDS),
    words,
    st.dictionaries(words, words, max_size=3),
    st.lists(st.builds(FieldViolation, words, words), max_size=3),
    st.none() | st.integers(0, 100_000).map(lambda milliseconds: milliseconds / 1000),
)
@example(errors.Unavailable, "", {}, [], 4.007)  # a thousand times it is a little less than 4,007
def test_errors_survive_the_wire(
    kind: type[SisError],
    message: str,
    metadata: dict[str, str],
    violations: list[FieldViolation],
    retry_after: float | None,
) -> None:
    sent = kind(message, reason="JOB_NOT_FOUND", metadata=metadata, violations=violations, retry_after=retry_after)
    wire = to_status(sent).SerializeToString()
    received = from_status(status_pb2.Status.FromString(wire))
    assert type(received) is kind
    assert (received.message, received.reason, received.metadata) == (message, "JOB_NOT_FOUND", metadata)
    assert received.violations == tuple(violations)
    assert received.retry_after == retry_after


def test_a_precondition_keeps_its_subject() -> None:
    class IllegalTransition(errors.FailedPrecondition):
        reason = "ILLEGAL_TRANSITION"

    received = from_status(to_status(IllegalTransition("no", subject="jobs/1", condition="SUCCEEDED")))
    assert isinstance(received, errors.FailedPrecondition)
    assert (received.reason, received.subject, received.condition) == (
        "ILLEGAL_TRANSITION",
        "jobs/1",
        "SUCCEEDED",
    )


@pytest.mark.parametrize("kind", [SisError, *KINDS, errors.FailedPrecondition])
def test_default_reasons_are_in_the_contract(kind: type[SisError]) -> None:
    assert f"REASON_{kind.reason}" in Reason.DESCRIPTOR.values_by_name


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Internal),
        (grpc.StatusCode.UNKNOWN, errors.Internal),
    ],
)
@pytest.mark.parametrize("trailers", [(), (("grpc-status-details-bin", b"\xff"),)])
def test_a_status_without_readable_details_keeps_its_code(
    code: grpc.StatusCode, expected: type[SisError], trailers: tuple[tuple[str, bytes], ...]
) -> None:
    failed = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details="why")
    received = grpc_error(failed)
    assert type(received) is expected
    assert "why" in received.message


def test_an_unknown_code_is_internal() -> None:
    assert from_status(status_pb2.Status(code=code_pb2.DATA_LOSS)).code == code_pb2.INTERNAL
