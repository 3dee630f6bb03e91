"""A stack that exports all it records, and whoever receives that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.support.stack import Stack


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as found:
        yield found


@pytest.fixture(scope="session")
def traced_stack(receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that tells the receiver everything, soon, and that Prometheus can read. The tests share it."""
    stack = Stack(tmp_path_factory.mktemp("traced") / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1000")
        try:
            stack.up("--metrics")
            yield stack
        finally:
            stack.close()
