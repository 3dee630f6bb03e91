"""The KeySafe: `sis.credentials.v1.CredentialService`, as methods. Every one may raise ApiError; those that name a
credential, with CREDENTIAL_NOT_FOUND. A secret goes in and never comes out."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

from sis.client.aio.connection import Connection
from sis.credentials.v1 import credential_pb2, credential_service_pb2_grpc
from sis.credentials.v1 import credential_service_pb2 as pb


class Credentials:
    """The credentials that jobs can name."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = credential_service_pb2_grpc.CredentialServiceStub(connection.channel)

    async def create(self, request: pb.CreateCredentialRequest) -> credential_pb2.Credential:
        """Store a credential. Without a request id it gets a random one, so that the retries within this call make
        one credential; to repeat the call itself safely, choose the id."""
        if not request.request_id:
            named = pb.CreateCredentialRequest()
            named.CopyFrom(request)
            named.request_id = str(uuid.uuid4())
            request = named
        response = await self._connection.call(self._stub.CreateCredential, request)
        return response.credential

    async def get(self, name: str) -> credential_pb2.Credential:
        """One credential, without its secret."""
        response = await self._connection.call(self._stub.GetCredential, pb.GetCredentialRequest(name=name))
        return response.credential

    async def list(
        self, *, include_for_one_job: bool = False, page_size: int = 0, page_token: str = ""
    ) -> pb.ListCredentialsResponse:
        """One page of the credentials, by name."""
        request = pb.ListCredentialsRequest(
            include_for_one_job=include_for_one_job, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListCredentials, request)

    async def all(self, *, include_for_one_job: bool = False) -> AsyncIterator[credential_pb2.Credential]:
        """Every credential, by name."""
        token = ""
        while True:
            page = await self.list(include_for_one_job=include_for_one_job, page_token=token)
            for credential in page.credentials:
                yield credential
            token = page.next_page_token
            if not token:
                return

    async def replace(self, request: pb.ReplaceCredentialRequest) -> credential_pb2.Credential:
        """Replace the secret; safe to repeat only with the version that it replaces."""
        response = await self._connection.call(self._stub.ReplaceCredential, request)
        return response.credential

    async def delete(self, name: str) -> None:
        """Delete a credential for good. The second time it is CREDENTIAL_NOT_FOUND."""
        await self._connection.call(self._stub.DeleteCredential, pb.DeleteCredentialRequest(name=name))

    async def usage(self, name: str) -> AsyncIterator[credential_pb2.CredentialUsage]:
        """Who used it, newest first."""
        token = ""
        while True:
            request = pb.ListCredentialUsageRequest(name=name, page_token=token)
            page = await self._connection.call(self._stub.ListCredentialUsage, request)
            for use in page.usage:
                yield use
            token = page.next_page_token
            if not token:
                return

    async def bind(self, name: str, job_id: int) -> credential_pb2.Credential:
        """Tie a credential that was made for one job to that job. Safe to repeat."""
        request = pb.BindCredentialRequest(name=name, job_id=job_id)
        response = await self._connection.call(self._stub.BindCredential, request)
        return response.credential
