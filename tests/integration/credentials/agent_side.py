"""What an agent, and whoever pretends to be one, sends for a certificate."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.credentials.convert import identities as convert
from services.credentials.identities import Enrolment, Renewal
from services.runtime.pairing import PairingCode, mac, renewal_message
from sis.credentials.v1 import certificate_pb2
from sis.credentials.v1 import certificate_service_pb2 as pb


class AgentSide:
    """An identity key, and a sealing key for each generation."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._sealing: dict[int, X25519PrivateKey] = {}

    def sealing_key(self, generation: int = 1) -> bytes:
        """The public one."""
        return self._sealing.setdefault(generation, X25519PrivateKey.generate()).public_key().public_bytes_raw()

    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def keys(self, generation: int = 1) -> bytes:
        """A serialised AgentKeys. What the CSR says but for its key is nonsense, which nobody may believe."""
        names = x509.SubjectAlternativeName([x509.DNSName("hub"), x509.UniformResourceIdentifier("spiffe://sis/x")])
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")]))
            .add_extension(names, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        keys = certificate_pb2.AgentKeys(
            csr=csr.public_bytes(serialization.Encoding.DER),
            sealing_key=self.sealing_key(generation),
            generation=generation,
        )
        return keys.SerializeToString()

    def enrolment_request(self, code: str, keys: bytes | None = None, generation: int = 1) -> pb.EnrolAgentRequest:
        """With these keys, else with its own."""
        found = PairingCode.parse(code)
        keys = self.keys(generation) if keys is None else keys
        return pb.EnrolAgentRequest(
            pairing_id=found.pairing_id, keys=keys, mac=mac(found.key(), keys), origin="10.0.0.7"
        )

    def enrolment(self, code: str, keys: bytes | None = None, generation: int = 1) -> Enrolment:
        return convert.enrol_agent(self.enrolment_request(code, keys, generation))

    def renewal_request(
        self, name: str, generation: int = 1, *, signer: AgentSide | None = None, signed_name: str | None = None
    ) -> pb.RenewAgentCertificateRequest:
        """Signed by itself for this name, unless something else is asked for."""
        keys = self.keys(generation)
        message = renewal_message(name if signed_name is None else signed_name, keys)
        signature = (signer or self).key.sign(message, ec.ECDSA(hashes.SHA256()))
        return pb.RenewAgentCertificateRequest(agent=name, keys=keys, signature=signature)

    def renewal(
        self, name: str, generation: int = 1, *, signer: AgentSide | None = None, signed_name: str | None = None
    ) -> Renewal:
        request = self.renewal_request(name, generation, signer=signer, signed_name=signed_name)
        return convert.renew_agent(request)
