"""Following a job across broken connections."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from sis.client.errors import ApiError
from sis.queue.v1 import job_service_pb2 as pb

PATIENCE_SECONDS = 60.0
"""How long a monitor tries to get back before it gives up."""
_FIRST_DELAY, _LAST_DELAY = 0.2, 3.0


def resuming(
    open_stream: Callable[[str], Iterator[pb.MonitorJobResponse]],
    resume_token: str = "",
    *,
    patience: float = PATIENCE_SECONDS,
    on_interruption: Callable[[ApiError], None] | None = None,
) -> Iterator[pb.MonitorJobResponse]:
    """The responses of a monitor, each once, opened again from the last token whenever the stream breaks.

    `on_interruption` is told of each break. A response counts as progress and ends the interruption; the
    snapshot of the job at the start of every stream is one.

    Raises:
        ApiError: the call was refused, or for `patience` seconds no stream brought a response.
    """
    broken_since: float | None = None
    delay = _FIRST_DELAY
    while True:
        try:
            for response in open_stream(resume_token):
                resume_token = response.resume_token or resume_token
                broken_since, delay = None, _FIRST_DELAY
                yield response
        except ApiError as error:
            now = time.monotonic()
            broken_since = now if broken_since is None else broken_since
            if not error.passing or now - broken_since >= patience:
                raise
            if on_interruption is not None:
                on_interruption(error)
            wait = max(random.uniform(delay / 2, delay), min(error.retry_after or 0.0, _LAST_DELAY))  # noqa: S311
            time.sleep(wait)
            delay = min(delay * 2, _LAST_DELAY)
        else:
            return
