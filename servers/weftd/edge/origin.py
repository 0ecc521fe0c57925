"""Who may ask: our own page, not a page from elsewhere in the same browser."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

__all__ = ["foreign_page", "refusal"]

_FOREIGN = "A page of another site asked. Allow its origin with WEFT_ALLOWED_ORIGINS if it is yours."


def refusal(
    headers: Mapping[str, str], allowed_hosts: Collection[str], allowed_origins: Collection[str]
) -> str:
    """Why this request gets no development token; empty: it does.

    A name that is made to point at 127.0.0.1 (DNS rebinding) is told by `Host`.
    """
    name = _host_name(headers.get("host", ""))
    if not (name and (_is_loopback(name) or name in {h.lower() for h in allowed_hosts})):
        return "This host name is not known here. Open the page by its address, or set WEFT_ALLOWED_HOSTS."
    return foreign_page(headers, allowed_origins)


def foreign_page(headers: Mapping[str, str], allowed_origins: Collection[str]) -> str:
    """Why this is refused as a request of another site's page; empty: it is not one.

    Told by `Origin` and `Sec-Fetch-Site`. A program that is no browser sends neither and passes.
    """
    origin = headers.get("origin")
    if origin is not None:
        if origin in allowed_origins:
            return ""
        host = headers.get("host", "")
        if origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return _FOREIGN
    return "" if headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none") else _FOREIGN


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
