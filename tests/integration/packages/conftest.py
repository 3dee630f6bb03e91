from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.integration.packages import operation_runner


@pytest.fixture
def run(tmp_path: Path) -> operation_runner.Runner:
    """`run(package, operation, **values)`."""
    return partial(operation_runner.run, tmp_path)
