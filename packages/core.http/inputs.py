"""What a job has asked for, from the environment: the request and the checks of its answer."""

from __future__ import annotations

import base64
import os
import re
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exchange import Answer, Header, NoAnswer, Request, checked

# These describe the message or are secrets: the ones are written elsewhere, the others are a credential.
RESERVED_HEADERS = ("authorization", "connection", "content-length", "proxy-authorization", "transfer-encoding")


@dataclass(frozen=True)
class Checks:
    """What the answer must be like."""

    statuses: list[str]
    pattern: re.Pattern[str] | None
    max_bytes: int

    def problems(self, answer: Answer) -> list[str]:
        """Each check that has failed, in words."""
        found = []
        if str(answer.status) not in self.statuses and f"{answer.status // 100}xx" not in self.statuses:
            found.append(f"the status is {answer.status}, not one of {', '.join(self.statuses)}")
        if not answer.whole:
            found.append(f"the body has more than {self.max_bytes} bytes; the rest was not read")
        if self.pattern and not self.pattern.search(answer.text):
            found.append(f"nothing in the body matches {self.pattern.pattern!r}")
        return found


def read(environ: Mapping[str, str]) -> tuple[Request, Checks]:
    """Raises NoAnswer when they cannot be used; nothing has been sent then."""

    def given(name: str) -> str:
        return environ.get(f"SIS_PARAM_{name.upper()}", "")

    method, max_bytes, expected = given("method"), int(given("max_bytes")), given("expect_body")
    if expected and method == "HEAD":
        raise NoAnswer("expect_body: an answer to HEAD has no body")
    try:
        pattern = re.compile(expected) if expected else None
    except re.error as error:
        raise NoAnswer(f"expect_body is not a regular expression: {error}") from None
    parts = checked(given("url"))
    credential = read_credential(environ, given("token_header"))
    if credential and parts.scheme == "http":
        print(f"the credential goes to {parts.netloc} unencrypted: the URL begins with http:", file=sys.stderr)
    request = Request(
        method=method,
        url=given("url"),
        headers=[read_header(line) for line in given("headers").split("\n") if line] + credential,
        body=read_body(given("body"), given("body_file")),
        follow_redirects=given("follow_redirects") == "true",
        context=tls_context(given("ca_file"), given("insecure") == "true"),
        # A host can have several addresses: the first one must not take the time of the others.
        connect_seconds=int(given("timeout")) / 3,
        max_bytes=max_bytes,
    )
    return request, Checks(given("expected_status").split("\n"), pattern, max_bytes)


def read_header(line: str) -> Header:
    name, _, value = line.partition(":")
    if name.lower() in RESERVED_HEADERS:
        raise NoAnswer(f"headers: {name} cannot be given; for a secret, name a credential as auth")
    return name, header_value(f"headers: {name}", value)


def header_value(what: str, value: str) -> bytes:
    value = value.strip(" \t")
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        raise NoAnswer(f"{what} has a control character, which no header can hold")
    return os.fsencode(value)


def read_credential(environ: Mapping[str, str], token_header: str) -> list[Header]:
    token = environ.get("SIS_CREDENTIAL_AUTH_TOKEN")
    if token is not None:
        bearer = token_header.lower() == "authorization"
        return [(token_header, header_value("the token", f"Bearer {token}" if bearer else token))]
    password = environ.get("SIS_CREDENTIAL_AUTH_PASSWORD")
    if password is None:
        return []
    name = environ.get("SIS_CREDENTIAL_AUTH_USERNAME", "")
    if ":" in name:
        raise NoAnswer("the user name of the credential has a colon, which basic authentication cannot express")
    return [("Authorization", b"Basic " + base64.b64encode(os.fsencode(f"{name}:{password}")))]


def read_body(text: str, path: str) -> bytes | None:
    if text and path:
        raise NoAnswer("body and body_file are both given: give one of the two")
    if path:
        return Path(path).read_bytes()
    return os.fsencode(text) if text else None


def tls_context(ca_file: str, insecure: bool) -> ssl.SSLContext:
    if ca_file and insecure:
        raise NoAnswer("ca_file and insecure are both given: give one of the two")
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except ssl.SSLError:
        raise NoAnswer("ca_file holds no certificate in PEM form") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The same certificates are good for every Python; from 3.13 on it would be stricter by itself.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if insecure:
        print("insecure: whoever answers is believed to be the server", file=sys.stderr)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
