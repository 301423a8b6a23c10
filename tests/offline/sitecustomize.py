"""No network: Python imports a module of this name at start-up when its folder is on PYTHONPATH.

An audit hook sees every connection and every look-up of a name that Python makes, in any thread and library, and
cannot be taken out again. Unix sockets and the loopback interface, which gloo needs, are let through.
"""

import socket
import sys
from typing import Any

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")
# Refused so far; code that swallows the error is found by this. Kept in `sys`, because a worker of pytest has this
# module twice: by its own name from the start of Python, and as part of the tests.
attempts: list[str] = sys.__dict__.setdefault("refused_attempts", [])


def is_local(host: object) -> bool:
    """Whether a host name or address is this machine."""
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    return name.startswith(LOCAL) or name == socket.gethostname()


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise ConnectionRefusedError for whatever would leave this machine."""
    if event in ("socket.connect", "socket.sendto"):
        own, address = arguments[0], arguments[1]
        outside = own.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[0]
        outside = not is_local(address)
    else:
        return
    if outside:
        attempts.append(f"{event} {address}")
        raise ConnectionRefusedError(f"there is no network in the tests: {event} {address}")


sys.addaudithook(refuse)
