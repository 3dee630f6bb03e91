"""What leaves a process: when it is asked for, without holding anything up, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from services.runtime import exporting, scrapes, tracing
from services.runtime.exporting import ExportSettings, exported
from services.runtime.scrapes import Scrapes
from sis.trace_context import TraceContext
from tests.support.otlp_receiver import otlp_receiver

JOB = TraceContext(0xABC, 0xDEF)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def _record(count: int = 1) -> None:
    for number in range(count):
        tracing.record("job wait", JOB, 1.0, 2.0, {tracing.Attribute.JOB_ID: number})


def test_what_was_recorded_is_sent_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.endpoint}/v1/traces")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
        with exported("queue", None, ["supervisor"]):
            _record()
            tracing.record("job run", JOB, 1.0, 2.0, {}, own=TraceContext(0xABC, 7), of="supervisor")
            assert not receiver.spans
        assert not tracing.records()
        assert {(span.service, span.name) for span in receiver.spans} == {
            ("sis-queue", "job wait"),
            ("sis-supervisor", "job run"),
        }
        assert {span.parent for span in receiver.spans} == {JOB.span_id}
        assert TraceContext(0xABC, 7) in {span.context for span in receiver.spans}


@contextmanager
def _silent_receiver() -> Iterator[str]:
    """It takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for each in taken:
                each.close()


_QUIET = """
import sys
from services.runtime.exporting import exported
import services.queue.main, services.sis_agent.agent.main
with exported("queue", None):
    slow = ("opentelemetry.sdk", "opentelemetry.exporter", "prometheus_client")
    print(sorted(name for name in sys.modules if name.startswith(slow)))
"""


def _python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


_RECORDING = """
import logging
from services.runtime import exporting, tracing
from sis.trace_context import TraceContext
logging.basicConfig(format="%(name)s")
with exporting.exported("queue", None):
    for number in range(10_000):
        tracing.record("job wait", TraceContext(0xABC, 0xDEF), 1.0, 2.0, {tracing.Attribute.JOB_ID: number})
"""
_UNSENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "600", "OTEL_BSP_SCHEDULE_DELAY": "1"}


def test_a_receiver_that_hangs_stops_nothing() -> None:
    """Neither recording, however much there is, nor the end of the process waits for it."""
    with _silent_receiver() as endpoint:
        done = _python(_RECORDING, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint, **_UNSENT)
    assert done.returncode == 0
    assert done.stderr.endswith("telemetry\n"), "it is said that not all was sent"


def test_a_receiver_that_is_away_stops_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    done = _python(_RECORDING, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint, **_UNSENT)
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if line.endswith("trace_exporter")]
    assert len(told) == 1, "it is said once, however often it is tried"


def test_unasked_nothing_of_the_sdk_is_even_imported() -> None:
    done = _python(_QUIET)
    assert done.stdout == "[]\n", done.stderr


_MEASURING = """
import urllib.request
from services.runtime import metrics, scrapes
from services.runtime.exporting import exported
from services.runtime.tracing import Attribute
addresses = []
class Kept(scrapes.Scrapes):
    def __init__(self, listen):
        super().__init__(listen)
        addresses.append(self.address)
scrapes.Scrapes = Kept
assert not metrics.kept()
with exported("hub", "127.0.0.1:0"):
    assert metrics.kept()
    metrics.observe("sis.hub.agents", "{agent}", "Agents.", lambda: [(3, {})])
    metrics.RPC.record(0.02, {Attribute.RPC_METHOD: "a/b", Attribute.RPC_STATUS: "OK"})
    print(urllib.request.urlopen(f"http://{addresses[0]}/metrics", timeout=10).read().decode())
try:
    urllib.request.urlopen(f"http://{addresses[0]}/metrics", timeout=10)
except OSError:
    print("closed")
"""


def test_prometheus_reads_names_and_units_of_the_conventions() -> None:
    done = _python(_MEASURING)
    assert done.returncode == 0, done.stderr
    assert 'rpc_server_call_duration_seconds_count{rpc_method="a/b",rpc_response_status_code="OK"} 1.0' in done.stdout
    assert 'rpc_server_call_duration_seconds_bucket{le="0.025"' in done.stdout
    assert "\nsis_hub_agents 3.0\n" in done.stdout
    assert 'service_name="sis-hub"' in done.stdout
    assert done.stdout.endswith("closed\n")


def test_measurements_are_sent_at_the_end() -> None:
    program = """
from services.runtime import metrics
from services.runtime.exporting import exported
with exported("hub", None):
    metrics.TRANSACTION.record(0.1)
"""
    with otlp_receiver() as receiver:
        done = _python(program, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{receiver.endpoint}/v1/metrics")
        assert done.returncode == 0, done.stderr
        assert ("sis-hub", "sis.database.transaction.duration") in receiver.metrics
        assert not receiver.spans


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318", "give the URL"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://127.0.0.1", "give the URL"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "only http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "jaeger", "'otlp' or 'none'"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", "greater than or equal to 100"),
    ],
)
def test_a_variable_that_cannot_be_right_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended, exported("queue", None):
        pass
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert name in told and words in told


def test_what_the_sdk_reads_itself_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "-1")
    with pytest.raises(SystemExit) as ended, exported("queue", None):
        pass
    assert "OTEL_" in str(ended.value.code)


@pytest.mark.parametrize(
    ("environment", "traces", "metrics"),
    [
        ({}, False, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a/x"}, True, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://a/x"}, False, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_METRICS_EXPORTER": "none"}, True, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, False, False),
    ],
)
def test_what_is_sent_is_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], traces: bool, metrics: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = ExportSettings.load()
    assert (found.traces, found.metrics) == (traces, metrics)


# --- the listener for Prometheus ---


@pytest.fixture
def listener() -> Iterator[Scrapes]:
    found = Scrapes("127.0.0.1:0")
    try:
        yield found
    finally:
        found.close()


def _status(listener: Scrapes, path: str, method: str = "GET") -> int:
    request = urllib.request.Request(f"http://{listener.address}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_there_is_nothing_but_the_measurements(listener: Scrapes) -> None:
    assert _status(listener, "/metrics") == 200
    assert _status(listener, "/metrics?name[]=up") == 200
    assert [_status(listener, path) for path in ("/", "/metrics/", "/../etc/passwd")] == [404, 404, 404]
    assert _status(listener, "/metrics", "POST") == 404


def test_who_is_silent_is_cut_off(monkeypatch: pytest.MonkeyPatch, listener: Scrapes) -> None:
    monkeypatch.setattr(scrapes, "REQUEST_SECONDS", 0.2)
    host, _, port = listener.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as silent:
        silent.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert silent.recv(1) == b""
    monkeypatch.undo()
    assert _status(listener, "/metrics") == 200


@contextmanager
def _dripping(listener: Scrapes) -> Iterator[socket.socket]:
    """A client that sends a byte now and then, for ever; how it hears of its end."""
    host, _, port = listener.address.rpartition(":")
    enough = threading.Event()

    def drip(client: socket.socket) -> None:
        with suppress(OSError):
            while not enough.wait(0.02):
                client.sendall(b"x")

    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nName: ")
        dripper = threading.Thread(target=drip, args=[client])
        dripper.start()
        try:
            yield client
        finally:
            enough.set()
            dripper.join()


def test_who_drips_is_cut_off_and_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch, listener: Scrapes) -> None:
    monkeypatch.setattr(scrapes, "REQUEST_SECONDS", 0.2)
    with _dripping(listener) as client, suppress(ConnectionResetError):
        assert client.recv(1) == b""
    monkeypatch.setattr(scrapes, "REQUEST_SECONDS", 600.0)
    assert _status(listener, "/metrics") == 200
    taken, setup = threading.Event(), scrapes._Handler.setup

    def noted(handler: scrapes._Handler) -> None:
        setup(handler)
        taken.set()

    monkeypatch.setattr(scrapes._Handler, "setup", noted)
    with _dripping(listener):
        assert taken.wait(20)
        end = threading.Thread(target=listener.close, daemon=True)
        end.start()
        end.join(20)
        assert not end.is_alive()


def test_an_address_that_is_taken_is_named(listener: Scrapes) -> None:
    program = f"from services.runtime.exporting import exported\nwith exported('hub', {listener.address!r}): pass"
    done = _python(program)
    assert done.returncode == 1
    assert f"error: the listener for Prometheus, {listener.address}, cannot be had" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_bound_of_the_end_is_below_what_a_stop_may_take() -> None:
    from sis.stack.settings import STOP_SECONDS

    assert exporting.FLUSH_SECONDS < STOP_SECONDS
