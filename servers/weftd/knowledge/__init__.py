"""Datasets, documents and index jobs."""
