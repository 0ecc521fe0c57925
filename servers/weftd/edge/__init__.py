"""What Envoy cannot do: the static page and the development token."""

from weftd.edge.app import DevToken, build_app
from weftd.edge.serve import serve

__all__ = ["DevToken", "build_app", "serve"]
