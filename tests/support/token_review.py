"""The part of a Kubernetes API server that Vault asks whether a service account's token is good."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import secrets
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_AUDIENCE = "https://kubernetes.default.svc"


class TokenReviewServer:
    """Serves TokenReview over TLS on a loopback port, for the tokens that it has issued; `ca` is its certificate."""

    def __init__(self, directory: Path) -> None:
        self.ca = directory / "kubernetes.pem"
        self._key = directory / "kubernetes.key"
        self._accounts: dict[str, tuple[str, str]] = {}
        self.reviews = 0
        _certify(self.ca, self._key)

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/apis/authentication.k8s.io/v1/tokenreviews"
                answer = json.dumps(outer._review(body)).encode()
                self.send_response(201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca, self._key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def issue(self, namespace: str, account: str) -> str:
        """A token of this account."""
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        claims = {
            "iss": _AUDIENCE,
            "aud": [_AUDIENCE],
            "iat": now,
            "nbf": now,
            "exp": now + 3_600,
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "jti": secrets.token_hex(8),
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account, "uid": _uid(account)}},
        }
        parts = [json.dumps(part).encode() for part in ({"alg": "ES256", "typ": "JWT"}, claims)]
        token = ".".join(_encoded(part) for part in (*parts, secrets.token_bytes(64)))
        self._accounts[token] = (namespace, account)
        return token

    def withdraw(self, token: str) -> None:
        """The token is good no more."""
        del self._accounts[token]

    def _review(self, body: dict[str, Any]) -> dict[str, Any]:
        self.reviews += 1
        account = self._accounts.get(body["spec"]["token"])
        status: dict[str, Any] = {"authenticated": False, "error": "invalid bearer token"}
        if account is not None:
            namespace, name = account
            user = {
                "username": f"system:serviceaccount:{namespace}:{name}",
                "uid": _uid(name),
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"],
            }
            audiences = [each for each in body["spec"].get("audiences", [_AUDIENCE]) if each == _AUDIENCE]
            status = {"authenticated": bool(audiences), "user": user, "audiences": audiences}
        return {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status}


def _uid(account: str) -> str:
    return f"uid-of-{account}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _certify(certificate_file: Path, key_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes of a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key_file.write_bytes(private)
