"""Tells the queue and the registry, at intervals, which sessions were heard."""

from __future__ import annotations

import asyncio
import logging
import random

from services.runtime.dependencies import Complaints
from services.runtime.errors import SisError
from services.sis_agent.hub.dispatcher import Dispatcher
from services.sis_agent.hub.presence import Presence
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.sessions import Session, Sessions
from sis.queue.v1 import dispatch_service_pb2 as queue

_log = logging.getLogger("heartbeats")


class Heartbeats:
    """One batch for each interval, of the sessions that have sent anything since the one before."""

    def __init__(
        self,
        connection: QueueConnection,
        sessions: Sessions,
        dispatcher: Dispatcher,
        presence: Presence,
        *,
        hub: str,
        interval: float,
    ) -> None:
        self._connection = connection
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._presence = presence
        self._hub = hub
        self._interval = interval
        self._complaints = Complaints(_log, "the queue takes no heartbeats")

    async def run(self) -> None:
        """Send a batch at each interval, for ever."""
        while True:
            await asyncio.sleep(self._interval * random.uniform(0.9, 1.0))  # noqa: S311  (jitter)
            heard = [session for session in self._sessions if session.heard]
            for session in heard:
                session.heard = False
            self._presence.heard(heard)
            if heard:
                await self._send(heard)

    async def _send(self, heard: list[Session]) -> None:
        request = queue.HeartbeatRequest(hub=self._hub)
        for session in heard:
            heartbeat = request.heartbeats.add(session=session.reference, draining=session.slots.draining)
            for job_id, number in session.slots.held:
                heartbeat.attempts.add(job_id=job_id, number=number)
        try:
            response = await self._connection.heartbeat(request)
        except SisError as error:
            self._complaints.note(error)
            for session in heard:
                session.heard = True
            return
        self._complaints.over()
        self._sessions.close_stale(response.stale_sessions)
        self._dispatcher.deliver(response.assignments)
        self._sessions.stop(response.stops)
