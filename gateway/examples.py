"""Bodies of requests as people would send them, by method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BODIES: Mapping[str, dict[str, Any]] = {
    "CreateJob": {
        "displayName": "Disk usage",
        "type": "JOB_TYPE_PACKAGE",
        "package": {"name": "core.shell"},
        "operation": "run",
        "parameters": {"script": {"plain": "df -h"}},
        "siteTarget": {"group": "local"},
        "runTimeout": "30s",
        "requestId": "5d1c1f0e-6f0c-4d0b-9d3e-0a6a7f6f1f0c",
    },
    "ApplyVerb": {
        "verb": "JOB_VERB_CANCEL",
        "filter": {"runStates": ["RUN_STATE_READY"], "text": "nightly"},
        "validateOnly": True,
        "reason": "The site is closed today",
    },
    "RerunJob": {"requestId": "0f7d2c1a-6a39-4f4c-8a43-1d7b52a2c9b1"},
    "ActivateJob": {},
    "CancelJob": {"reason": "Not needed any more"},
    "AbortJob": {"reason": "It does not stop"},
    "CreateCredential": {
        "name": "db",
        "kind": "CREDENTIAL_KIND_USERNAME_PASSWORD",
        "username": "app",
        "value": {"secret": "Y29ycmVjdCBob3JzZQ=="},
    },
    "ReplaceCredential": {"value": {"secret": "YmF0dGVyeSBzdGFwbGU="}, "version": "1"},
    "BindCredential": {"jobId": "42"},
    "PairAgent": {"name": "web-1", "group": "dmz"},
    "RevokeAgent": {"reason": "The machine was taken out of service"},
}
"""Every method that takes a JSON body has one; a test holds each against its schema."""

PARAMETERS: Mapping[str, str] = {"jobId": "42", "name": "example", "version": "1.0.0"}
"""Values of what is in paths."""
