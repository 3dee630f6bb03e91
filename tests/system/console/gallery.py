"""Jobs of all sorts, for pictures of the console."""

from __future__ import annotations

from types import MappingProxyType, TracebackType
from typing import Final, Self

from sis.client import ApiError, Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2
from tests.support.numbered_job import until
from tests.system.console.test_job_list import ended, made

PAGES: Final = MappingProxyType(
    {
        "jobs": "/jobs",
        "no-jobs": "/jobs?text=nothing+has+this+text",
        "running": "/jobs/{running}",
        "failed": "/jobs/{failed}",
        "waiting": "/jobs/{waiting}",
        "output": "/jobs/{facts}?view=output",
        "debug-log": "/jobs/{failed}?view=debug",
        "processes": "/jobs/{canceled}?view=processes",
        "history": "/jobs/{canceled}?view=history",
        "dialog": "/jobs/{running}",
        "gone": "/jobs/999999",
        "create": "/jobs/new?package=core.shell",
        "keysafe": "/credentials",
        "credential": "/credentials/web-admin",
        "packages": "/packages",
        "package": "/packages/core.http",
        "agents": "/agents",
        "agent": "/agents/local-1",
    }
)

_BACKUP = """
i=0
while :; do
    i=$((i + 1))
    echo "copied /srv/data/volume-$i ($((i * 37)) MiB)"
    [ $((i % 9)) = 0 ] && printf '\\033[33mvolume-%s was slow\\033[0m\\n' $i >&2
    echo "$((i % 100)) copying" >> "$SIS_PROGRESS"
    sleep 0.4
done
"""
_DEPLOY = """
printf '\\033[1mDeploying\\033[0m release 4.2\\n'
printf '\\033[32mok\\033[0m   database schema\\n'
printf '\\033[32mok\\033[0m   static files\\n'
printf '\\033[31mfail\\033[0m health check: connection refused\\n' >&2
exit 3
"""
_STUBBORN = "(trap '' TERM; while :; do sleep 0.1; done) & echo started; wait"


class Gallery:
    """Makes them, and ends what still runs. `jobs` are their ids by what they are."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.jobs: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            self._client.credentials.create(
                credentials_pb.CreateCredentialRequest(
                    name="web-admin",
                    kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
                    username="deploy",
                    description="Deploys to the web servers",
                    value=credential_pb2.SecretValue(secret=b"correct horse battery"),
                )
            )
        except ApiError as error:
            if error.code != "ALREADY_EXISTS":
                raise
        client = self._client
        self.jobs["facts"] = made(client, "Disk usage of the web servers", "df -h /; free -m")
        ended(client, self.jobs["facts"])
        self.jobs["canceled"] = made(client, "Rotate the logs", _STUBBORN)
        until(lambda: client.jobs.get(self.jobs["canceled"]).status == job_pb2.JOB_STATUS_RUNNING, "it to run")
        client.jobs.cancel(self.jobs["canceled"], reason="the disk is being replaced")
        self.jobs["failed"] = made(client, "Deploy release 4.2", _DEPLOY, credentials={"secret": "web-admin"})
        self.jobs["deferred"] = made(client, "Reboot after the window", deferred=True)
        self.jobs["waiting"] = made(client, "Inventory of Lisbon", site="group:lisbon")
        for name in ("failed", "canceled"):
            ended(client, self.jobs[name])
        self.jobs["running"] = made(client, "Nightly backup", _BACKUP)
        until(lambda: client.jobs.get(self.jobs["running"]).progress_percent > 10, "some progress")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in ("running", "deferred", "waiting"):
            if name in self.jobs:
                self._client.jobs.abort(self.jobs[name])
