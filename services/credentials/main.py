"""The credential service: the KeySafe, leases, agents' identities.

`python -m services.credentials.main [migrate [post] | recover]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from services.credentials.certificates import ServiceCertificates
from services.credentials.convert.leases import leased_secret
from services.credentials.identities import Identities
from services.credentials.leases import Leasing
from services.credentials.reconciler import Reconciler
from services.credentials.recovery import recover
from services.credentials.revocations import Revocations
from services.credentials.servicers.agent_identity import AgentIdentityServicer
from services.credentials.servicers.certificate import CertificateServicer
from services.credentials.servicers.credential import CredentialServicer
from services.credentials.servicers.lease import LeaseServicer
from services.credentials.tables import SCHEMA
from services.credentials.values import Values
from services.credentials.vault import Vault, VaultSettings
from services.credentials.vault_outbox import VaultOutbox
from services.runtime.database import Database
from services.runtime.dependencies import VAULT, Dependency
from services.runtime.health import Health
from services.runtime.identity import Identity, canonical_host_name
from services.runtime.probes import probed
from services.runtime.process import start
from services.runtime.schema import newest_revision
from services.runtime.server import Listener, Server, run
from services.runtime.settings import DatabaseUrl, Endpoint, IdentitySettings, Sha256Hex, Texts
from sis.credentials.v1.agent_identity_service_pb2_grpc import add_AgentIdentityServiceServicer_to_server
from sis.credentials.v1.certificate_service_pb2_grpc import add_CertificateServiceServicer_to_server
from sis.credentials.v1.credential_service_pb2_grpc import add_CredentialServiceServicer_to_server
from sis.credentials.v1.lease_service_pb2_grpc import add_LeaseServiceServicer_to_server

MIGRATIONS = Path(__file__).parent / "migrations"
POOL = 8
NAME = "credentials"


def _checked_join_tokens(given: tuple[str, ...]) -> tuple[str, ...]:
    for each in given:
        service, _, digest = each.partition("=")
        if not service or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError("give service=<SHA-256 of its join token, in lower-case hexadecimal>, separated by commas")
    return given


class CredentialsSettings(IdentitySettings):
    """The environment of the credential service."""

    model_config = SettingsConfigDict(env_prefix="SIS_CREDENTIALS_", env_nested_delimiter="_", env_nested_max_split=1)

    database_url: DatabaseUrl
    # Past a connection pooler, for LISTEN and migrations.
    database_direct_url: DatabaseUrl | None = None
    # For people, and for services that join.
    listen: Endpoint
    # For hubs.
    internal_listen: Endpoint
    admin_token_sha256: Sha256Hex
    # service=<SHA-256 of its join token>
    join_tokens: Annotated[Texts, AfterValidator(_checked_join_tokens)] = ()
    agent_certificate_seconds: Annotated[int, Field(ge=10, le=30 * 86_400)] = 86_400
    service_certificate_seconds: Annotated[int, Field(ge=30, le=30 * 86_400)] = 3 * 86_400

    # A variable for each of its fields: SIS_CREDENTIALS_VAULT_ADDRESS and so on.
    vault: VaultSettings = Field({}, validate_default=True)

    @property
    def services_by_token(self) -> Mapping[str, str]:
        """Service names by the SHA-256 of their join tokens."""
        pairs = (each.partition("=") for each in self.join_tokens)
        return {digest: service for service, _, digest in pairs}


async def serve(settings: CredentialsSettings) -> None:
    """Serve until SIGTERM."""
    async with probed(settings.probe_listen) as health:
        await _with_vault(settings, health)


async def _with_vault(settings: CredentialsSettings, health: Health) -> None:
    vault = Vault(settings.vault)
    try:
        services = ServiceCertificates(vault, life=timedelta(seconds=settings.service_certificate_seconds))
        identity = Identity(
            settings.identity,
            settings.tls_ca,
            services.obtain(NAME, settings.host_names),
            name=NAME,
            host_names=[NAME, *map(canonical_host_name, settings.host_names)],
        )
        await identity.ready()
        database = Database(
            settings.database_url,
            direct_url=settings.database_direct_url,
            pool_size=POOL,
            application_name="sis-credentials",
            revision=newest_revision(SCHEMA, MIGRATIONS),
        )
        try:
            await _serve(settings, vault, services, identity, database, health)
        finally:
            await database.dispose()
    finally:
        await vault.close()


async def _serve(
    settings: CredentialsSettings,
    vault: Vault,
    services: ServiceCertificates,
    identity: Identity,
    database: Database,
    health: Health,
) -> None:
    values = Values(vault)
    reconciler = Reconciler(database, values)
    revocations = Revocations(database)
    identities = Identities(database, vault, life=timedelta(seconds=settings.agent_certificate_seconds))
    leasing = Leasing(database, values, leased_secret)
    server = Server(
        NAME,
        [
            (add_CredentialServiceServicer_to_server, CredentialServicer(database, values)),
            (add_LeaseServiceServicer_to_server, LeaseServicer(leasing, reconciler.wake)),
            (add_CertificateServiceServicer_to_server, CertificateServicer(identities, services, revocations)),
            (add_AgentIdentityServiceServicer_to_server, AgentIdentityServicer(identities)),
        ],
        [
            Listener(settings.listen, identity.tls),
            Listener(settings.internal_listen, identity.tls, demand_client_certificate=True),
        ],
        admin_token_sha256=settings.admin_token_sha256,
        join_tokens=settings.services_by_token,
        health=health,
    )
    await run(
        server,
        vault.run,
        identity.run,
        reconciler.run,
        revocations.listen,
        VaultOutbox(database, vault).run,
        dependencies=[database.dependency, Dependency(VAULT, "Vault", vault.trouble, needed=False, interval=5.0)],
        on_drain=revocations.drain,
    )


def main() -> None:
    start(NAME, CredentialsSettings, serve, MIGRATIONS, SCHEMA, recover)


if __name__ == "__main__":
    main()
