"""Who may have the development token: the page itself, not a page from elsewhere in the same browser."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

__all__ = ["refusal"]


def refusal(
    headers: Mapping[str, str], allowed_hosts: Collection[str], allowed_origins: Collection[str]
) -> str:
    """Why this request is refused; empty: it is not.

    A name that is made to point at 127.0.0.1 (DNS rebinding) is told by `Host`, a page of another site by
    `Origin` and `Sec-Fetch-Site`. A program that is no browser sends neither and passes.
    """
    host = headers.get("host", "")
    name = _host_name(host)
    if not (name and (_is_loopback(name) or name in {h.lower() for h in allowed_hosts})):
        return "This host name is not known here. Open the page by its address, or allow it in the settings."
    origin = headers.get("origin")
    if origin is not None:
        if origin in allowed_origins:
            return ""
        if origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return "A page of another site asked. Allow its origin in the settings if it is yours."
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "A page of another site asked. Allow its origin in the settings if it is yours."
    return ""


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
