"""What Envoy cannot do: the static page and the development token."""
