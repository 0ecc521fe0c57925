"""Addresses as operators write them: "host:port", several with commas, a row of ports as "host:5001-5004"."""

from __future__ import annotations

import contextlib
import random
import re
import socket

from weftd.envoy.config import Endpoint

__all__ = ["endpoint", "endpoints", "free_port", "grpc_target"]

_PORTS = (20_000, 32_768)
_FORM = re.compile(r"\[?(?P<host>[^\[\]\s,]+?)\]?:(?P<first>\d{1,5})(-(?P<last>\d{1,5}))?", re.ASCII)


def endpoints(addresses: str) -> tuple[Endpoint, ...]:
    """All that are named, in their order. ValueError says how to write them."""
    return tuple(each for address in addresses.split(",") for each in _row(address.strip()))


def endpoint(address: str) -> Endpoint:
    """The one that is named. ValueError where it is none, or several."""
    found = endpoints(address)
    if len(found) != 1:
        raise ValueError(f"{address} names {len(found)} addresses: write one host:port.")
    return found[0]


def grpc_target(addresses: str) -> str:
    """What a channel is opened with, so that calls go to each of them in turn.

    ValueError where several are not all IP addresses of one family: gRPC can resolve one name only.
    """
    found = endpoints(addresses)
    if len(found) == 1 and not found[0].is_address:
        return f"dns:///{found[0]}"
    families = {"ipv6" if ":" in each.host else "ipv4" for each in found}
    if len(families) != 1 or not all(each.is_address for each in found):
        raise ValueError(
            f"{addresses}: write several servers as IP addresses of one family, or one name that has several."
        )
    return f"{families.pop()}:{','.join(map(str, found))}"


def _row(address: str) -> list[Endpoint]:
    form = _FORM.fullmatch(address)
    if form is None:
        raise ValueError(f"{address!r} is no address: write host:port.")
    first, last = int(form["first"]), int(form["last"] or form["first"])
    if not 0 <= first <= last <= 65535:
        raise ValueError(f"{address} has no such ports: they go from 0 to 65535, the lower one first.")
    return [Endpoint(form["host"], port) for port in range(first, last + 1)]


def free_port() -> int:
    """On loopback. None that outgoing connections are given: one could take it while its owner is down."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(*_PORTS)))
            return int(probe.getsockname()[1])
