"""What Envoy cannot do: the static page, the development token, chat over WebSocket."""

from weftd.edge.app import DevToken, build_app
from weftd.edge.chat_socket import ChatSockets
from weftd.edge.serve import serve

__all__ = ["ChatSockets", "DevToken", "build_app", "serve"]
