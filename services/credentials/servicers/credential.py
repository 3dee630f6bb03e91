"""CredentialService."""

from __future__ import annotations

from services.credentials import credentials
from services.credentials.convert import credentials as convert
from services.credentials.values import Values
from services.runtime.access import current_caller
from services.runtime.database import Database
from services.runtime.interceptors import Context
from sis.credentials.v1 import credential_service_pb2 as pb
from sis.credentials.v1 import credential_service_pb2_grpc


class CredentialServicer(credential_service_pb2_grpc.CredentialServiceServicer):
    """Adapts CredentialService to `credentials`."""

    def __init__(self, database: Database, values: Values) -> None:
        self._database = database
        self._values = values

    async def CreateCredential(
        self, request: pb.CreateCredentialRequest, context: Context
    ) -> pb.CreateCredentialResponse:
        command = convert.create_credential(request)
        found = await credentials.create(self._database, self._values, command, current_caller().name)
        return pb.CreateCredentialResponse(credential=convert.to_credential(found))

    async def ListCredentials(self, request: pb.ListCredentialsRequest, context: Context) -> pb.ListCredentialsResponse:
        size, after = convert.list_credentials(request)
        found, more = await credentials.list_page(self._database, after, size, for_one_job=request.include_for_one_job)
        return convert.to_page(request, found, more=more)

    async def GetCredential(self, request: pb.GetCredentialRequest, context: Context) -> pb.GetCredentialResponse:
        found = await credentials.get(self._database, convert.name(request.name))
        return pb.GetCredentialResponse(credential=convert.to_credential(found))

    async def ReplaceCredential(
        self, request: pb.ReplaceCredentialRequest, context: Context
    ) -> pb.ReplaceCredentialResponse:
        command = convert.replace_credential(request)
        found = await credentials.replace(self._database, self._values, command, current_caller().name)
        return pb.ReplaceCredentialResponse(credential=convert.to_credential(found))

    async def DeleteCredential(
        self, request: pb.DeleteCredentialRequest, context: Context
    ) -> pb.DeleteCredentialResponse:
        await credentials.delete(self._database, self._values, convert.name(request.name))
        return pb.DeleteCredentialResponse()

    async def ListCredentialUsage(
        self, request: pb.ListCredentialUsageRequest, context: Context
    ) -> pb.ListCredentialUsageResponse:
        name, size, before = convert.list_usage(request)
        return convert.to_usage_page(name, await credentials.usage(self._database, name, before, size))

    async def BindCredential(self, request: pb.BindCredentialRequest, context: Context) -> pb.BindCredentialResponse:
        name, job_id = convert.bind_credential(request)
        found = await credentials.bind(self._database, name, job_id)
        return pb.BindCredentialResponse(credential=convert.to_credential(found))
