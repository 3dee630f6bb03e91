"""The stack on one machine: PostgreSQL, the services and local agents, with nothing installed beforehand.

`up`, `down`, `restart`, `status`, `backup` and `restore` are what `sis up`, `sis down` and so on do.
"""

from sis.stack.backup import backup
from sis.stack.control import down, up
from sis.stack.errors import StackError
from sis.stack.restore import restore
from sis.stack.rolling import restart
from sis.stack.settings import Options
from sis.stack.status import ProcessStatus, Status, status

__all__ = [
    "Options",
    "ProcessStatus",
    "StackError",
    "Status",
    "backup",
    "down",
    "restart",
    "restore",
    "status",
    "up",
]
