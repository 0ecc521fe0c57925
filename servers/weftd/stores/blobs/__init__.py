"""Blobs: the bytes of uploaded files."""
