"""Ports to what keeps data, and their adapters."""
