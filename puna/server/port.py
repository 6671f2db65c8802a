"""The address that a server takes: bound before anything slow is begun, so that a port in use is known at once."""

from __future__ import annotations

import socket

from puna.errors import InputError, PunaError

SEND_BUFFER_BYTES = 256 << 10  # of a connection, in the system: it would take megabytes for a client that does not read


class PortError(PunaError):
    """The address cannot be served on."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. PortError says what to do."""
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}; allowed: 0 (any free one) to 65535", param="port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter for a name that the domain name system could not hold
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise PortError(f"the host {host[:200]!r} is not an address of this machine: {reason}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # accepted ones inherit it
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise PortError(
            f"cannot serve on {host} port {port}: {error.strerror}; choose another with --port, or 0 for any free one"
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"
