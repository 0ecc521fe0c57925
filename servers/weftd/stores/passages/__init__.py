"""Passages of documents: found by vectors and by words."""
