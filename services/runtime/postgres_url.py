"""Where PostgreSQL is: the URL of the settings as the parameters of its client library."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

_SCHEMES: Final = ("postgresql+psycopg", "postgresql", "postgres")
_HOST: Final = re.compile(r"(?:\[(?P<bracketed>[^\]]+)\]|(?P<bare>[^:/,\[\]]*))(?::(?P<port>[0-9]{1,5}))?")


def parameters(url: str) -> dict[str, str]:
    """What a connection is made with. Unless the URL says otherwise only a server that takes writes will do, so that of
    several hosts the primary is found, wherever it is now.

    Several hosts are given in the authority (`postgresql://user@h1:5432,h2:5432/db`), as `host` and `port` with commas,
    or as `host` repeated, each with its port (`?host=h1:5432&host=h2:5432`). Hosts with a `/` are directories of Unix
    sockets.

    Raises:
        ValueError: it is no such URL. The message holds nothing of it but names of parameters.
    """
    import psycopg  # an agent, which has settings and no database, need not have it
    from psycopg.conninfo import conninfo_to_dict

    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError("give postgresql+psycopg://user@host:port/database, or the same with several hosts")
    authority, _, query = rest.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    others = [(name, value) for name, value in pairs if name != "host"]
    hosts = [value for name, value in pairs if name == "host"]
    try:
        found = conninfo_to_dict(f"postgresql://{authority}?{urlencode(others, quote_via=quote)}")
    except psycopg.ProgrammingError:
        names = ", ".join(name for name, _ in others) or "none"
        raise ValueError(
            "is not understood: quote what is special in user and password as %XX, and use only parameters of libpq "
            f"(given: {names})"
        ) from None
    result = {name: str(value) for name, value in found.items() if value is not None}
    if hosts:
        result |= _hosts(hosts)
    result.setdefault("target_session_attrs", "read-write")
    return result


def checked(url: str) -> str:
    """The URL, for settings. Raises as `parameters`."""
    parameters(url)
    return url


def _hosts(given: list[str]) -> dict[str, str]:
    if len(given) == 1 and ("," in given[0] or (given[0].count(":") > 1 and given[0][0] != "[")):
        return {"host": given[0]}  # libpq's own list, or a bare IPv6 address
    hosts, ports = [], []
    for each in given:
        if "/" in each:
            hosts.append(each)
            ports.append("")
            continue
        found = _HOST.fullmatch(each)
        if found is None:
            raise ValueError("a host is not host or host:port; an IPv6 address with a port is in brackets")
        hosts.append(found["bracketed"] or found["bare"])
        ports.append(found["port"] or "")
    return {"host": ",".join(hosts)} | ({"port": ",".join(ports)} if any(ports) else {})
