"""The edge: one template, its files, its process."""

from weftd.envoy.config import Endpoint, EnvoyConfig
from weftd.envoy.process import EnvoyError, EnvoyProcess

__all__ = ["Endpoint", "EnvoyConfig", "EnvoyError", "EnvoyProcess"]
