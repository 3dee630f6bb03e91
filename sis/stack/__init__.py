"""The stack on one machine: PostgreSQL, the services and local agents, with nothing installed beforehand.

`up`, `down`, `restart` and `status` are what `sis up` and so on do.
"""

from sis.stack.control import down, up
from sis.stack.errors import StackError
from sis.stack.rolling import restart
from sis.stack.settings import Options
from sis.stack.status import ProcessStatus, Status, status

__all__ = ["Options", "ProcessStatus", "StackError", "Status", "down", "restart", "status", "up"]
