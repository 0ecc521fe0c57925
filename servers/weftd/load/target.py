"""Where the mesh is that a load run asks."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from functools import cache

__all__ = ["Target", "target", "tls"]

_FORM = re.compile(
    r"((?P<scheme>https?)://)?(?P<host>[^\s:/@?#\[\]]+|\[[0-9a-fA-F:.]+\])(:(?P<port>\d{1,5}))?/?", re.ASCII
)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """`address` is "host:port". With `tls` the server's certificate is verified by `authorities` (PEM),
    without them by those of the system."""

    address: str
    tls: bool = False
    authorities: bytes | None = None


@cache
def tls(target: Target) -> ssl.SSLContext | None:
    """For connections of HTTP/1.1. ssl.SSLError where `authorities` are no certificates."""
    if not target.tls:
        return None
    known = None if target.authorities is None else target.authorities.decode("latin-1")
    return ssl.create_default_context(cadata=known)


def target(given: str, authorities: bytes | None = None) -> Target:
    """Of "host:port" or a URL without path; ValueError says how to write it."""
    form = _FORM.fullmatch(given)
    port = form and (form["port"] or _PORTS.get(form["scheme"] or ""))
    if form is None or not port:
        raise ValueError("--address is host:port or https://host: such as 127.0.0.1:8080.")
    encrypted = form["scheme"] == "https"
    if authorities is not None and not encrypted:
        raise ValueError("--ca is for TLS: write --address as https://host:port.")
    made = Target(f"{form['host']}:{port}", encrypted, authorities)
    try:
        tls(made)
    except (ssl.SSLError, ValueError):
        raise ValueError("--ca is no file of certificates in PEM.") from None
    return made
