"""The edge: one template, its files, its process."""
