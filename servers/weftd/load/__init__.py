"""`weft load`: asks questions at a running mesh and says how fast it answers."""

from __future__ import annotations

from typing import Literal

__all__ = ["Transport"]

Transport = Literal["grpc", "converse", "grpc-web", "rest", "ws"]
