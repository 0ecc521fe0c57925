"""Embedding models, in process."""
