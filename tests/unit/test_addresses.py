"""How addresses are written."""

from __future__ import annotations

import pytest

from weftd.addresses import endpoint, endpoints, grpc_target
from weftd.envoy.config import Endpoint


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("chat:50051", [("chat", 50051)]),
        ("[::1]:80", [("::1", 80)]),
        ("10.0.0.1:5001-5003", [("10.0.0.1", 5001), ("10.0.0.1", 5002), ("10.0.0.1", 5003)]),
        ("a:1, b:2-3", [("a", 1), ("b", 2), ("b", 3)]),
    ],
)
def test_one_or_several(written: str, meant: list[tuple[str, int]]) -> None:
    assert endpoints(written) == tuple(Endpoint(*each) for each in meant)


@pytest.mark.parametrize(
    "written", ["", "chat", ":80", "a:1,", "a:x", "a:3-2", "a:65536", "a:1-", "a b:1", "a:٣"]
)
def test_what_is_no_address(written: str) -> None:
    with pytest.raises(ValueError, match=r"write host:port|ports"):
        endpoints(written)


def test_one_where_one_is_meant() -> None:
    assert endpoint("a:1") == Endpoint("a", 1)
    with pytest.raises(ValueError, match="names 2 addresses: write one host:port"):
        endpoint("a:1-2")


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("127.0.0.1:1", "ipv4:127.0.0.1:1"),
        ("127.0.0.1:1-2,10.0.0.1:3", "ipv4:127.0.0.1:1,127.0.0.1:2,10.0.0.1:3"),
        ("[::1]:1-2", "ipv6:[::1]:1,[::1]:2"),
        ("chat:1", "dns:///chat:1"),
    ],
)
def test_what_a_channel_is_opened_with(written: str, target: str) -> None:
    assert grpc_target(written) == target


@pytest.mark.parametrize("written", ["chat:1,chat:2", "[::1]:1,127.0.0.1:2"])
def test_what_one_channel_cannot_reach(written: str) -> None:
    with pytest.raises(ValueError, match="IP addresses of one family"):
        grpc_target(written)
