"""Which commands are traced, and by which name."""

from __future__ import annotations

import pytest

from sis.cli import main, tracing
from sis.trace_context import TraceContext
from tests.support.otlp_receiver import otlp_receiver


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jobs", "create", "--name", "secret"], ["jobs", "create"]),
        (["credentials", "list"], ["credentials", "list"]),
        (["jobs", "secret"], ["jobs"]),
        (["jobs"], []),
        (["secret", "create"], []),
        (["up"], []),
        (["--version"], []),
        ([], []),
    ],
)
def test_a_span_is_named_for_the_command_alone(arguments: list[str], words: list[str]) -> None:
    assert main._command(arguments) == words


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_a_command_is_traced_where_somebody_receives_it(environment: dict[str, str], wanted: bool) -> None:
    assert tracing.wanted(environment) is wanted


@pytest.mark.parametrize("code", [0, 2])
def test_a_command_is_a_span_with_its_exit_code(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    given = TraceContext(0x1234, 0x5678)
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("TRACEPARENT", str(given))
        with tracing.traced(["jobs", "create"]) as codes:
            codes.append(code)
        (span,) = receiver.spans
    assert (span.service, span.name, span.failed) == ("sis", "sis jobs create", code != 0)
    assert (span.context.trace_id, span.parent) == (given.trace_id, given.span_id)
    assert span.attributes["process.exit.code"] == code


def test_a_receiver_that_is_away_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with tracing.traced(["jobs", "list"]) as codes:
        codes.append(0)
    assert capfd.readouterr() == ("", "")
