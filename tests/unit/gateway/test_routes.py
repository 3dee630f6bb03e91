"""Every public method has a path of its own, and is for people."""

from __future__ import annotations

import importlib
from pathlib import Path

from google.api import annotations_pb2

from gateway.routes import bindings
from gateway.upstreams import service_of
from services.runtime.access import ACCESS, Audience

PROTOS = Path(__file__).parents[3] / "protos"


def test_every_annotated_method_of_every_contract_is_bound() -> None:
    names = [path.relative_to(PROTOS).with_suffix("").as_posix().replace("/", ".") for path in PROTOS.rglob("*.proto")]
    annotated = {
        f"/{service.full_name}/{method.name}"
        for name in names
        for service in importlib.import_module(f"{name}_pb2").DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.GetOptions().HasExtension(annotations_pb2.http)
    }
    assert {binding.full_name for binding in bindings()} == annotated


def test_no_two_methods_share_a_path() -> None:
    paths = [(binding.verb, binding.pattern().pattern) for binding in bindings()]
    assert len(paths) == len(set(paths))


def test_every_one_is_for_people_with_a_token() -> None:
    people = {Audience.VIEWER, Audience.OPERATOR, Audience.ADMIN}
    assert {ACCESS[binding.full_name] for binding in bindings()} <= people
    assert {service_of(binding) for binding in bindings()} == {"queue", "credentials", "hub"}
