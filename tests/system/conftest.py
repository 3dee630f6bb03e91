"""What the tests with the distribution's servers share."""

from __future__ import annotations

from tests.acceptance.conftest import stack
from tests.support.images import images

__all__ = ["images", "stack"]
