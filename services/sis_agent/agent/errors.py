"""What can go wrong at the agent.

    AgentError
     ├─ NotEnrolled          this program is no agent yet
     ├─ EnrolmentFailed      it did not become one
     ├─ IdentityDamaged      a file of the identity cannot be read
     ├─ CertificateRefused   a certificate came that proves nothing of this agent
     ├─ IllegalStep          a fault of the agent itself: an attempt cannot take this step
     ├─ JournalDamaged       the journal's durable records can no longer be read
     ├─ JournalUnwritable    a record could not be made durable
     ├─ PackageUnavailable   an attempt's package cannot be had at this site
     └─ ThreadsRefused       this machine has no room for the agent's own threads

Calls to the hub raise the errors of `services.runtime.errors`.
"""

from __future__ import annotations


class AgentError(Exception):
    """A failure that the agent understands. Its text says what to do, where somebody can do something."""


class NotEnrolled(AgentError):
    """There is no identity in the state directory."""


class EnrolmentFailed(AgentError):
    """This program did not become an agent. Nothing has changed."""


class IdentityDamaged(AgentError):
    """A file of the identity is there and cannot be read. Only another enrolment helps."""


class CertificateRefused(AgentError):
    """A certificate is for another key or agent, or from another CA, and is not taken."""


class IllegalStep(AgentError):
    """An attempt cannot take this step from where it stands. A fault of the caller."""


class JournalDamaged(AgentError):
    """Records that were durable can no longer be read, so nothing that the file says can be relied on."""


class JournalUnwritable(AgentError):
    """A record could not be made durable and is not in the journal. The caller may try again."""


class PackageUnavailable(AgentError):
    """The package is not there, is not what its digest says, or cannot be unpacked. A new try will not help."""


class ThreadsRefused(AgentError):
    """The agent's own threads cannot be started."""
