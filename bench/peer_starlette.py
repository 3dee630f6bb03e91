"""The smallest HTTP handler that does the gateway's work for one method: Starlette, one grpc.aio call, json_format.

`python -m bench.peer_starlette PORT QUEUE_ENDPOINT CA_FILE`. It checks nothing, limits nothing and explains nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
import uvicorn
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sis.queue.v1 import job_service_pb2
from sis.queue.v1.job_service_pb2_grpc import JobServiceStub


def main() -> None:
    port, endpoint, ca = sys.argv[1:]
    trusted = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    stub: JobServiceStub | None = None

    async def get(request: Request) -> Response:
        nonlocal stub
        if stub is None:  # the channel belongs to the loop that serves
            stub = JobServiceStub(grpc.aio.secure_channel(endpoint, trusted))
        response = await stub.GetJob(
            job_service_pb2.GetJobRequest(job_id=int(request.path_params["job_id"])),
            metadata=(("authorization", request.headers["authorization"]),),
            timeout=20,
        )
        document = json_format.MessageToJson(response, always_print_fields_with_no_presence=True, indent=None)
        return Response(document, media_type="application/json")

    app = Starlette(routes=[Route("/v1/jobs/{job_id}", get)])
    uvicorn.run(app, host="127.0.0.1", port=int(port), loop="uvloop", http="httptools", log_level="warning")


if __name__ == "__main__":
    main()
