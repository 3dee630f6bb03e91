"""What it means when Vault, or what stands before it, answers a call with a refusal. Pure."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from services.credentials.vault_errors import (
    CasMismatch,
    ValueMissing,
    VaultFailed,
    VaultForbidden,
    VaultRateLimited,
    VaultSealed,
    VaultUnreachable,
)

_LONGEST_RETRY_AFTER: Final = 300.0
# What is sent there is secret, so what is said of it is not repeated.
_UNQUOTED: Final = re.compile(r"/login$|/data/|/sys/(un)?seal|/sys/init|/secret-id")


def refusal(response: requests.Response, method: str, url: str, address: str) -> Exception:
    """The error of `vault_errors` for an answer without success to a call of `url`, a path, at Vault's `address`."""
    status = response.status_code
    if 300 <= status < 400:
        return VaultUnreachable(address, _sent_on(response))
    document = _document(response)
    errors = _errors(document, response)
    text = "; ".join(errors)
    if status == 404 and _is_missing(document):
        return ValueMissing()
    if status == 400 and "check-and-set" in text:
        return CasMismatch()
    if status == 400 and url.endswith("/revoke") and "not found" in text:
        return ValueMissing()
    if status in (401, 403):
        return VaultForbidden(f"Vault denies {method} {url.removeprefix('/v1/')}")
    if status == 400 and url.endswith("/login"):
        return VaultForbidden("Vault does not accept the login")
    if status == 429:
        return VaultRateLimited(_retry_after(response))
    if status in (501, 503) and ("sealed" in text or "not initialized" in text):
        return VaultSealed()
    if status in (502, 503, 504) or "node not active" in text or "readonly storage" in text:
        return VaultUnreachable(address, "it has no active node")
    detail = f": {text}" if text and (method not in ("POST", "PUT") or not _UNQUOTED.search(url)) else ""
    return VaultFailed(f"Vault answered {method} {url.removeprefix('/v1/')} with {status}{detail}")


def _document(response: requests.Response) -> dict[str, Any] | None:
    try:
        found = response.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _errors(document: dict[str, Any] | None, response: requests.Response) -> list[str]:
    found = None if document is None else document.get("errors") or []
    if not isinstance(found, list):
        return [f"not an answer of Vault ({response.headers.get('Content-Type', 'no content type')})"]
    return [str(each)[:300] for each in found[:5]]


def _is_missing(document: dict[str, Any] | None) -> bool:
    """Whether Vault itself says that there is nothing, or nothing any more. Where it has words for it, it is the mount
    or the namespace that is not there; and what stands before Vault knows nothing of what is kept."""
    if document is None:
        return False
    data = document.get("data")
    deleted = "request_id" in document and isinstance(data, dict) and isinstance(data.get("metadata"), dict)
    return document.get("errors") == [] or (deleted and not document.get("errors"))


def _sent_on(response: requests.Response) -> str:
    try:
        to = urlsplit(response.headers.get("Location", ""))
        host = f"{to.hostname}:{to.port}" if to.port else to.hostname
    except ValueError:
        host = None
    where = f"{to.scheme}://{host}" if host else "another place"
    return (
        f"it sends its callers on to {where}, which is not followed: give the address of its active node, or of what "
        "leads there"
    )


def _retry_after(response: requests.Response) -> float | None:
    given = response.headers.get("Retry-After", "")
    return min(float(given), _LONGEST_RETRY_AFTER) if given.isascii() and given.isdigit() else None
