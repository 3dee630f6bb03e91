"""Requests of people: every wrong field is named, all of them at once, and nothing else gets through."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.queue.convert import jobs as convert
from services.queue.convert import packages as convert_packages
from services.queue.creation import CreateJob, Limits, Priority
from services.queue.listing import ORDERS
from services.queue.logs import DebugLogView
from services.queue.packages import Package
from services.runtime.errors import InvalidArgument
from sis.packages.manifest import parse
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2


def request(**changes: Any) -> pb.CreateJobRequest:
    found = pb.CreateJobRequest(display_name="hello", type="JOB_TYPE_PACKAGE", operation="run")
    found.package.name = "core.shell"
    found.site_target.group = "local"
    found.MergeFrom(pb.CreateJobRequest(**changes))
    return found


def refused(call: Callable[[], object]) -> dict[str, str]:
    """The violations, by field."""
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.reason == "INVALID_FIELD"
    assert all(v.description for v in caught.value.violations)
    return {v.field: v.description for v in caught.value.violations}


def test_a_plain_request_has_the_documented_defaults() -> None:
    command = convert.create_job(request(), Limits())
    assert isinstance(command, CreateJob)
    assert (command.priority, command.deferral_limit, command.run_timeout) == (Priority.NORMAL, None, None)
    assert (command.heartbeat_timeout, command.start_timeout) == (timedelta(seconds=120), timedelta(minutes=5))
    assert (command.output_timeout, command.cancel_grace) == (timedelta(seconds=60), None)
    assert (command.site_kind, command.site_name, command.package_version) == ("group", "local", "")


def test_what_the_administrator_has_set_is_the_default_and_the_most() -> None:
    limits = Limits(deferral=timedelta(hours=1), heartbeat_timeout=timedelta(seconds=90))
    command = convert.create_job(request(deferred=True), limits)
    assert (command.deferral_limit, command.heartbeat_timeout) == (timedelta(hours=1), timedelta(seconds=90))
    shorter = request(deferred=True, deferral_limit={"seconds": 60}, heartbeat_timeout={"seconds": 200})
    command = convert.create_job(shorter, limits)
    assert (command.deferral_limit, command.heartbeat_timeout) == (timedelta(minutes=1), timedelta(seconds=200))
    longer = request(deferred=True, deferral_limit={"seconds": 3_601})
    assert refused(lambda: convert.create_job(longer, limits)) == {"deferral_limit": "must be between 60 s and 3,600 s"}


def test_an_empty_request_names_everything_that_is_required() -> None:
    fields = refused(lambda: convert.create_job(pb.CreateJobRequest(), Limits()))
    assert set(fields) == {"display_name", "type", "package.name", "operation", "site_target"}
    assert all("is required" in description for description in fields.values())


Change = Callable[[pb.CreateJobRequest], object]

BAD: dict[str, tuple[str, Change]] = {
    "a blank name": ("display_name", lambda r: setattr(r, "display_name", " \u3000")),
    "a long name": ("display_name", lambda r: setattr(r, "display_name", "é" * 201)),
    "a name of two lines": ("display_name", lambda r: setattr(r, "display_name", "a\nb")),
    "a name with an escape sequence": ("display_name", lambda r: setattr(r, "display_name", "\x1b[2Jx")),
    "a name with a NUL": ("display_name", lambda r: setattr(r, "display_name", "a\0b")),
    "a type that is not offered": ("type", lambda r: setattr(r, "type", 1)),
    "a type that is not known": ("type", lambda r: setattr(r, "type", 99)),
    "a negative type": ("type", lambda r: setattr(r, "type", -1)),
    "a package with a NUL": ("package.name", lambda r: setattr(r.package, "name", "a\0")),
    "a long version": ("package.version", lambda r: setattr(r.package, "version", "1" * 101)),
    "a long operation": ("operation", lambda r: setattr(r, "operation", "x" * 101)),
    "a parameter without a value": ("parameters.x", lambda r: r.parameters["x"]),
    "a parameter over 64 KiB": ("parameters.x", lambda r: setattr(r.parameters["x"], "plain", "é" * 33_000)),
    "a list over 64 KiB": ("parameters.x", lambda r: r.parameters["x"].list.items.extend(["y" * 1_000] * 66)),
    "a NUL in a parameter": ("parameters.x", lambda r: setattr(r.parameters["x"], "plain", "a\0")),
    "a NUL in an item": ("parameters.x", lambda r: r.parameters["x"].list.items.append("\0")),
    "an agent with a slash": ("site_target.agent", lambda r: setattr(r.site_target, "agent", "a/b")),
    "an empty group": ("site_target.group", lambda r: setattr(r.site_target, "group", "")),
    "a long agent": ("site_target.agent", lambda r: setattr(r.site_target, "agent", "a" * 64)),
    "a priority that is not known": ("priority", lambda r: setattr(r, "priority", 5)),
    "a time before 1970": ("not_before", lambda r: setattr(r.not_before, "seconds", -1)),
    "a time after 9000": ("latest_start", lambda r: setattr(r.latest_start, "seconds", 2**62)),
    "a time with odd nanoseconds": ("latest_start", lambda r: setattr(r.latest_start, "nanos", -1)),
    "deferred, and an earliest start": (
        "not_before", lambda r: (setattr(r, "deferred", True), setattr(r.not_before, "seconds", 1)),
    ),
    "a run timeout of nothing": ("run_timeout", lambda r: r.run_timeout.SetInParent()),
    "a run timeout of 31 days": ("run_timeout", lambda r: setattr(r.run_timeout, "seconds", 31 * 86_400)),
    "a run timeout beyond all": ("run_timeout", lambda r: setattr(r.run_timeout, "seconds", 2**63 - 1)),
    "a negative run timeout": ("run_timeout", lambda r: setattr(r.run_timeout, "seconds", -5)),
    "a heartbeat timeout under 60 s": ("heartbeat_timeout", lambda r: setattr(r.heartbeat_timeout, "seconds", 59)),
    "a heartbeat timeout over a day": ("heartbeat_timeout", lambda r: setattr(r.heartbeat_timeout, "seconds", 86_401)),
    "a deferral limit without a deferral": ("deferral_limit", lambda r: setattr(r.deferral_limit, "seconds", 60)),
    "a deferral limit under a minute": (
        "deferral_limit", lambda r: (setattr(r, "deferred", True), setattr(r.deferral_limit, "seconds", 59)),
    ),
    "a start timeout under 10 s": ("start_timeout", lambda r: setattr(r.start_timeout, "seconds", 9)),
    "a start timeout over a day": ("start_timeout", lambda r: setattr(r.start_timeout, "seconds", 86_401)),
    "an output timeout under 10 s": ("output_timeout", lambda r: setattr(r.output_timeout, "seconds", 9)),
    "an output timeout over an hour": ("output_timeout", lambda r: setattr(r.output_timeout, "seconds", 3_601)),
    "a negative grace": ("cancel_grace", lambda r: setattr(r.cancel_grace, "nanos", -1)),
    "a grace over an hour": ("cancel_grace", lambda r: setattr(r.cancel_grace, "seconds", 3_601)),
    "33 labels": ("labels", lambda r: r.labels.update({f"k{n}": "v" for n in range(33)})),
    "a label without a key": ("labels", lambda r: r.labels.update({"": "v"})),
    "a long value of a label": ("labels.k", lambda r: r.labels.update({"k": "v" * 201})),
    "an admin with a slash": ("admin", lambda r: setattr(r, "admin", "a/b")),
    "a long admin": ("admin", lambda r: setattr(r, "admin", "a" * 64)),
    "a run as with a blank": ("run_as", lambda r: setattr(r, "run_as", " ")),
    "a run as of two lines": ("run_as", lambda r: setattr(r, "run_as", "a\n")),
    "a reference without a credential": ("credentials.db", lambda r: r.credentials.update({"db": ""})),
    "a reference to a credential with a NUL": ("credentials.db", lambda r: r.credentials.update({"db": "\0"})),
    "a parameter without the credential that it names": (
        "parameters.x", lambda r: setattr(r.parameters["x"], "credential_ref", ""),
    ),
    "a parameter with a credential that can be none": (
        "parameters.x", lambda r: setattr(r.parameters["x"], "credential_ref", "é"),
    ),
    "a long request id": ("request_id", lambda r: setattr(r, "request_id", "x" * 65)),
    "a request id with a NUL": ("request_id", lambda r: setattr(r, "request_id", "\0")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_field_is_named(case: str) -> None:
    field, change = BAD[case]
    found = request()
    change(found)
    assert set(refused(lambda: convert.create_job(found, Limits()))) == {field}


def test_all_wrong_fields_are_named_at_once() -> None:
    found = request(request_id="x" * 65, priority=9)
    found.display_name = ""
    found.run_timeout.seconds = -1
    assert set(refused(lambda: convert.create_job(found, Limits()))) == {
        "display_name",
        "priority",
        "run_timeout",
        "request_id",
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda r: setattr(r, "display_name", "é" * 200),
        lambda r: setattr(r.parameters["x"], "plain", "y" * 65_536),
        lambda r: setattr(r, "request_id", "x" * 64),
        lambda r: setattr(r.site_target, "agent", "a" * 63),
        lambda r: setattr(r.run_timeout, "seconds", 30 * 86_400),
        lambda r: setattr(r.run_timeout, "seconds", 1),
        lambda r: setattr(r.heartbeat_timeout, "seconds", 60),
        lambda r: (setattr(r, "deferred", True), setattr(r.deferral_limit, "seconds", 30 * 86_400)),
        lambda r: setattr(r.start_timeout, "seconds", 86_400),
        lambda r: setattr(r.output_timeout, "seconds", 3_600),
        lambda r: r.cancel_grace.SetInParent(),
        lambda r: r.labels.update({f"k{n}": "v" for n in range(32)}),
        lambda r: setattr(r, "admin", "a" * 63),
        lambda r: setattr(r, "run_as", ".-_"),
        lambda r: setattr(r.parameters["x"], "credential_ref", "0"),
    ],
)
def test_what_is_just_within_the_limits_is_taken(change: Change) -> None:
    found = request()
    change(found)
    convert.create_job(found, Limits())


def test_the_fingerprint_is_of_the_request_and_not_of_the_order_of_its_maps() -> None:
    one, other, third = request(), request(), request(priority=4)
    for name in ("a", "b", "c"):
        one.labels[name] = name
    for name in ("c", "b", "a"):
        other.labels[name] = name
    assert convert.create_job(one, Limits()).fingerprint == convert.create_job(other, Limits()).fingerprint
    assert convert.create_job(request(), Limits()).fingerprint != convert.create_job(third, Limits()).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda r: setattr(r, "admin", "other"),
        lambda r: setattr(r, "run_as", "root"),
        lambda r: r.credentials.update({"db": "other"}),
        lambda r: setattr(r.parameters["x"], "credential_ref", "other"),
        lambda r: setattr(r.parameters["x"], "plain", "secret"),
    ],
)
def test_the_fingerprint_covers_the_credentials(change: Change) -> None:
    one, other = (request(admin="root", credentials={"db": "secret"}) for _ in range(2))
    for found in (one, other):
        found.parameters["x"].credential_ref = "secret"
    change(other)
    assert convert.create_job(one, Limits()).fingerprint != convert.create_job(other, Limits()).fingerprint


def test_the_names_of_credentials_are_read_apart_from_the_values() -> None:
    found = request(admin="root", run_as="web", credentials={"db": "main"})
    found.parameters["secret"].credential_ref = "mine"
    found.parameters["open"].plain = "x"
    command = convert.create_job(found, Limits())
    assert (command.admin, command.run_as, command.credentials) == ("root", "web", {"db": "main"})
    assert (command.parameters, command.parameter_credentials) == ({"open": "x"}, {"secret": "mine"})


def test_an_operation_shows_the_credentials_that_it_wants() -> None:
    manifest = parse(
        """
name: test
version: 1.0.0
operations:
  use:
    command: ["true"]
    credentials:
      database: {description: of it, required: true, kinds: [ssh-key, domain-account], delivery: file}
      other: {}
"""
    )
    package = Package("test", "1.0.0", "0" * 64, 1, datetime(2026, 1, 1, tzinfo=UTC), "alice", manifest)
    (operation,) = convert_packages.to_package(package).operations
    assert list(operation.credentials) == [
        package_service_pb2.CredentialReference(
            ref="database",
            description="of it",
            required=True,
            kinds=["CREDENTIAL_KIND_SSH_KEY", "CREDENTIAL_KIND_DOMAIN_ACCOUNT"],
            delivery="file",
        ),
        package_service_pb2.CredentialReference(ref="other", delivery="environment"),
    ]


any_text = st.text(max_size=20)


@given(
    st.builds(
        pb.CreateJobRequest,
        display_name=any_text,
        type=st.integers(-5, 10),
        operation=any_text,
        priority=st.integers(-5, 10),
        labels=st.dictionaries(any_text, any_text, max_size=3),
        request_id=any_text,
        admin=any_text,
        credentials=st.dictionaries(any_text, any_text, max_size=3),
        deferred=st.booleans(),
    )
)
def test_no_request_raises_anything_else(found: pb.CreateJobRequest) -> None:
    try:
        convert.create_job(found, Limits())
    except InvalidArgument as error:
        assert error.violations


# Lists.


@pytest.mark.parametrize("form", ["{}", "{} desc", " {}  asc "])
@pytest.mark.parametrize("name", [*ORDERS, ""])
def test_every_documented_order_is_taken(name: str, form: str) -> None:
    order = form.format(name) if name else ""
    query = convert.list_jobs(pb.ListJobsRequest(order_by=order))
    assert query.order_by in ORDERS
    assert query.descending == ("desc" in order or not order)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("order_by", {"order_by": "creator"}),
        ("order_by", {"order_by": "job_id DESC"}),
        ("order_by", {"order_by": "job_id desc, status"}),
        ("order_by", {"order_by": "desc"}),
        ("page_size", {"page_size": -1}),
        ("filter.types[1]", {"filter": pb.JobFilter(types=[2, 77])}),
        ("filter.statuses[0]", {"filter": pb.JobFilter(statuses=[0])}),
        ("filter.run_states[0]", {"filter": pb.JobFilter(run_states=[8])}),
        ("filter.statuses", {"filter": pb.JobFilter(statuses=[1] * 101)}),
        ("filter.text", {"filter": pb.JobFilter(text="x" * 201)}),
        ("filter.text", {"filter": pb.JobFilter(text="a\0")}),
    ],
)
def test_a_wrong_field_of_a_list_is_named(field: str, change: dict[str, Any]) -> None:
    assert set(refused(lambda: convert.list_jobs(pb.ListJobsRequest(**change)))) == {field}


def test_page_sizes_are_cut_and_tokens_bound_to_the_rest_of_the_request() -> None:
    assert convert.list_jobs(pb.ListJobsRequest()).page_size == 50
    assert convert.list_jobs(pb.ListJobsRequest(page_size=5_000)).page_size == 1_000
    one = convert.list_jobs(pb.ListJobsRequest(page_size=1, page_token="x", order_by="status")).request
    assert one == convert.list_jobs(pb.ListJobsRequest(page_size=2, order_by="status")).request
    assert one != convert.list_jobs(pb.ListJobsRequest(order_by="type")).request


def test_the_other_requests_name_their_fields() -> None:
    assert set(refused(lambda: convert.job_id(0))) == {"job_id"}
    assert set(refused(lambda: convert.job_id(-7))) == {"job_id"}
    assert set(refused(lambda: convert.reason("x" * 501))) == {"reason"}
    assert set(refused(lambda: convert.reason("a\nb"))) == {"reason"}
    assert set(refused(lambda: convert.debug_log_view(9))) == {"view"}
    assert convert.debug_log_view(0) is DebugLogView.STANDARD
    assert set(refused(lambda: convert.history_size(pb.ListJobHistoryRequest(page_size=-1)))) == {"page_size"}
    assert convert.history_size(pb.ListJobHistoryRequest()) == 200


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("upload", lambda: convert_packages.upload(package_service_pb2.PushPackageRequest(chunk=b"x"))),
        ("upload.size_bytes", lambda: _upload(digest="0" * 64, size_bytes=-1)),
        ("upload.size_bytes", lambda: _upload(digest="0" * 64, size_bytes=2**40)),
        ("upload.digest", lambda: _upload(digest="0" * 63, size_bytes=1)),
        ("upload.digest", lambda: _upload(digest="A" * 64, size_bytes=1)),
        ("chunk", lambda: convert_packages.chunk(package_service_pb2.PushPackageRequest())),
        ("chunk", lambda: convert_packages.chunk(package_service_pb2.PushPackageRequest(chunk=bytes(2**20 + 1)))),
        ("page_size", lambda: _list_packages(page_size=-1)),
        ("name", lambda: _list_packages(name="a\0")),
        ("name", lambda: convert_packages.package_name(package_service_pb2.GetPackageRequest())),
        (
            "version",
            lambda: convert_packages.package_name(package_service_pb2.GetPackageRequest(name="a", version="\0")),
        ),
    ],
)
def test_a_wrong_field_of_the_library_is_named(field: str, call: Callable[[], object]) -> None:
    assert set(refused(call)) == {field}


def _list_packages(**fields: Any) -> object:
    return convert_packages.list_packages(package_service_pb2.ListPackagesRequest(**fields))


def _upload(**fields: Any) -> object:
    upload = package_service_pb2.PackageUpload(**fields)
    return convert_packages.upload(package_service_pb2.PushPackageRequest(upload=upload))
