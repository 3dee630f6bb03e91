"""The stack on one machine: PostgreSQL, the services and local agents, with nothing installed beforehand.

`up`, `down` and `status` are what `sis up`, `sis down` and `sis status` do.
"""

from sis.stack.control import down, up
from sis.stack.errors import StackError
from sis.stack.settings import Options
from sis.stack.status import ProcessStatus, Status, status

__all__ = ["Options", "ProcessStatus", "StackError", "Status", "down", "status", "up"]
